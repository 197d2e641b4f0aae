"""Data sets: which there are, what is prepared, and the examples that a stage reads."""
