"""The names of `bench.planning.registry`, for methods' files that were written before `bench.methods`."""

from bench.planning.registry import declare, recipe, register_backbone

__all__ = ["declare", "recipe", "register_backbone"]
