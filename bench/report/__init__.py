"""One HTML file that shows the results of a grid and what is behind them: `python -m bench.report`."""
