"""`AtomicCheckpointIO`: Lightning checkpoints as folders that are written atomically."""

from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO

from lit_gpt.atomic import remove_atomically
from lit_gpt.checkpoints.step import read_checkpoint, write_checkpoint
from lit_gpt.checks import local_path
from lit_gpt.errors import UserError


class AtomicCheckpointIO(CheckpointIO):
    """Saves checkpoints as folders: `model.safetensors`, `state.pt`, `manifest.json` (see `lit_gpt.checkpoints.step`).

    `trainer.save_checkpoint` writes to a temporary folder, hashes, fsyncs and renames it, so that a process killed at
    any moment leaves either no new checkpoint or a complete one. Loading verifies every byte first and never unpickles
    code, regardless of `weights_only`. For strategies that gather the state on one process (one device, DDP);
    sharded ones need `ParallelStrategy`.

    Example:
        >>> trainer = Trainer(plugins=[AtomicCheckpointIO()])  # doctest: +SKIP
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint folder.

        Raises:
            UserError: the disk is full, or a value could not be loaded back safely (the message has its path).
        """
        if storage_options is not None:
            raise UserError(f"{type(self).__name__} writes to a local folder and does not support storage_options")
        write_checkpoint(checkpoint, local_path("default_root_dir", path))

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Verify and read a checkpoint folder, or a plain Lightning `.ckpt` file if it contains only data.

        Raises:
            UserError: it does not exist, or one of its files is missing, truncated or damaged.
        """
        path = local_path("ckpt_path", path)
        if path.is_file():
            return _read_file(path)
        if not path.is_dir():
            raise UserError(f"no checkpoint at {path}; name a step-*.ckpt folder, or `last` for the newest")
        return read_checkpoint(path)

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove a checkpoint; if the removal is interrupted, nothing that looks like a checkpoint remains."""
        remove_atomically(Path(path))


def _read_file(path: Path) -> dict[str, Any]:
    """Read one of Lightning's own checkpoint files, if it contains only plain data."""
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler may raise anything on a foreign file
        raise UserError(
            f"{path} contains more than plain data and is not loaded, since it could run code; name a step-*.ckpt "
            "folder of a run, or `last`"
        ) from error
    if not isinstance(checkpoint, dict) or not {"state_dict", "pytorch-lightning_version"} <= checkpoint.keys():
        raise UserError(f"{path} is not a Lightning checkpoint; name a step-*.ckpt folder of a run, or `last`")
    return checkpoint
