"""What the server of tests/forked.py imports; a thread of pyarrow's would be lost in the processes forked from it."""

import os

from bench.training.fork_server import NO_THREAD

os.environ.update(NO_THREAD)

import bench.grid
import bench.models.image
import bench.training.imports  # noqa: F401
