"""What the worker of every stage imports, for a process that is forked for each: see `bench.training.fork_server`."""

import sklearn.metrics  # noqa: F401
import torch

import bench.training.evaluate
import bench.training.fit  # noqa: F401

torch.use_deterministic_algorithms(False)  # as it was; the first call imports torch's compiler
