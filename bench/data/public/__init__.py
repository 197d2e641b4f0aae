"""The public data sets of the papers."""
