"""Weights made elsewhere: where they come from, how they become this suite's, what is prepared of them."""
