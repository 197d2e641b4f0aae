"""From a stage to its record: the worker process, models and data brought together, the loop, evaluation."""
