"""The names of `bench.interfaces.hooks`, for methods' files that were written before `bench.methods`."""

from bench.interfaces.hooks import Batch, Context, Loss, ParameterGroup, State, TeacherOutput

__all__ = ["Batch", "Context", "Loss", "ParameterGroup", "State", "TeacherOutput"]
