"""Where stages run: here, in worker processes, or on a cluster."""
