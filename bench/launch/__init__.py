"""Launchers: ways to run the stages of a plan. Each takes a `Queue` and reports to a `Reporter`."""
