"""What training costs on this computer: `python -m bench.speed` (see `__main__.py`)."""
