"""A GPT on many devices: the layout of a run over them, and sharding of the model along each axis."""

from lit_gpt.parallel.layout import Layout
from lit_gpt.parallel.pipeline import Pipeline, add_loss
from lit_gpt.parallel.sharding import check_model, parallelize

__all__ = ["Layout", "Pipeline", "add_loss", "check_model", "parallelize"]
