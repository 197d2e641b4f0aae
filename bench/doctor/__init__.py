"""What is in the way of a run on this computer or cluster: `python -m bench.doctor`."""
