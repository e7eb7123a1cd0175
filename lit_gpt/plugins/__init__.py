"""Lightning plugins that write checkpoints, on one device and on many."""

from lit_gpt.plugins.checkpoint_io import AtomicCheckpointIO
from lit_gpt.plugins.strategy import ParallelStrategy

__all__ = ["AtomicCheckpointIO", "ParallelStrategy"]
