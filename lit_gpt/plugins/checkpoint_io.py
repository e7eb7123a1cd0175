"""`AtomicCheckpointIO`: Lightning checkpoints as folders that are written atomically."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO

from lit_gpt.atomic import remove_atomically
from lit_gpt.checkpoints.step import EMA, read_checkpoint, to_plain, write_checkpoint
from lit_gpt.checks import local_path
from lit_gpt.errors import UserError
from lit_gpt.plugins.background import BackgroundWriter, finish


class AtomicCheckpointIO(CheckpointIO):
    """Saves checkpoints as folders: `model.safetensors`, `state.pt`, `manifest.json` (see `lit_gpt.checkpoints.step`).

    `trainer.save_checkpoint` writes to a temporary folder, hashes, fsyncs and renames it, so that a process killed at
    any moment leaves either no new checkpoint or a complete one. Loading verifies every byte first and never unpickles
    code, regardless of `weights_only`. For strategies that gather the state on one process (one device, DDP);
    sharded ones need `ParallelStrategy`.

    Args:
        async_checkpoint: write in the background, from a copy in host memory, while training goes on. The next save and
            the end of the run wait for it, and raise its error.

    Example:
        >>> trainer = Trainer(plugins=[AtomicCheckpointIO()])  # doctest: +SKIP
    """

    def __init__(self, async_checkpoint: bool = False) -> None:
        super().__init__()
        self._writer = BackgroundWriter() if async_checkpoint else None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint folder.

        Raises:
            UserError: the disk is full, or a value could not be loaded back safely (the message has its path).
        """
        if storage_options is not None:
            raise UserError(f"{type(self).__name__} writes to a local folder and does not support storage_options")
        path = local_path("default_root_dir", path)
        if self._writer is None:
            write_checkpoint(checkpoint, path)
            return
        self._writer.wait()
        # What is not plain data is named now, and not when the run has gone on.
        weights = {key: checkpoint[key] for key in ("state_dict", EMA) if key in checkpoint}
        rest = to_plain({key: value for key, value in checkpoint.items() if key not in weights})
        copied = self._writer.copy(rest | weights)
        self._writer.start(path, lambda: write_checkpoint(copied, path))

    def when_saved(self, action: Callable[[], None]) -> None:
        """Run an action once the latest checkpoint is published: now, or in the background."""
        if self._writer is None:
            action()
        else:
            self._writer.then(action)

    def wait(self) -> None:
        """Wait for the checkpoint in flight.

        Raises:
            UserError: it could not be written.
        """
        if self._writer is not None:
            self._writer.wait()

    def teardown(self) -> None:
        """Wait for the checkpoint in flight, at the end of a run or after an error."""
        if self._writer is not None:
            finish(self._writer)

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Verify and read a checkpoint folder, or a plain Lightning `.ckpt` file if it contains only data.

        Raises:
            UserError: it does not exist, or one of its files is missing, truncated or damaged.
        """
        self.wait()
        path = local_path("ckpt_path", path)
        if path.is_file():
            return _read_file(path)
        if not path.is_dir():
            raise UserError(f"no checkpoint at {path}; name a step-*.ckpt folder, or `last` for the newest")
        return read_checkpoint(path)

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove a checkpoint; if the removal is interrupted, nothing that looks like a checkpoint remains."""
        # A checkpoint must not be deleted in favor of one that does not exist yet.
        self.when_saved(lambda: remove_atomically(Path(path)))


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
