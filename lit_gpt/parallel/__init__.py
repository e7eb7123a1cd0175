"""A GPT on many devices: the layout of a run over them, and sharding of the model along each axis."""

from lit_gpt.parallel.layout import Layout
from lit_gpt.parallel.sharding import check_model, parallelize

__all__ = ["Layout", "check_model", "parallelize"]
