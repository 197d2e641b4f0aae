"""What every method owes the suite, as a kit: the suite's own are held to it by its tests, others by `bench.check`."""
