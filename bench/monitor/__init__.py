"""How a grid stands: the state of every stage, whatever runs it."""
