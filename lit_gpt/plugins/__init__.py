"""Lightning plugins: checkpoints, devices and processes of a run."""

from lit_gpt.plugins.checkpoint_io import AtomicCheckpointIO
from lit_gpt.plugins.rendezvous import TorchrunEnvironment
from lit_gpt.plugins.strategy import ParallelStrategy

__all__ = ["AtomicCheckpointIO", "ParallelStrategy", "TorchrunEnvironment"]
