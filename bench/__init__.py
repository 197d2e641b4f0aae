"""A benchmark harness for ways of adapting pre-trained transformers: plans grids, runs stages, writes tables."""

__version__ = "0.1.0"
