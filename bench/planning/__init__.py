"""From gin files to a plan: bindings, the registry of methods, cells, and the distinct stages behind them."""
