"""Records collated: mean ± standard deviation over seeds, and what each number means."""
