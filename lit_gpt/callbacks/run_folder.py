"""`RunFolder`: a run's folder, which contains all of its files and none of any other run.

config.yaml     (written by the command line)     events.out...   (TensorBoard's, written by the logger)
lineage.json    origin of the model               checkpoints/    (written by `RunCheckpoint`)
tokenizer/      a copy of its tokenizer
"""

import contextlib
import fcntl
import json
import os
import secrets
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer

from lit_gpt.atomic import atomic_file
from lit_gpt.checkpoints.bundle import copy_tokenizer
from lit_gpt.checkpoints.huggingface.tensors import read_json
from lit_gpt.checkpoints.provenance import LINEAGE, code_versions, collect_lineage, hash_tokenizer
from lit_gpt.checkpoints.resolve import TOKENIZER, list_checkpoints
from lit_gpt.checkpoints.step import CHECKPOINTS
from lit_gpt.checks import local_path
from lit_gpt.data_info import DataInfo, read_data_info
from lit_gpt.errors import UserError

LOCK = "running.json"


def run_dir_of(trainer: Trainer) -> Path:
    """Return a run's folder: `trainer.run_dir` of `lit_gpt.Trainer`, `default_root_dir` of a stock Trainer."""
    return local_path("default_root_dir", getattr(trainer, "run_dir", None) or trainer.default_root_dir)


def require_fresh(run_dir: Path) -> None:
    """Raise if a new run would start in a folder with another run's checkpoints.

    Raises:
        UserError: it has checkpoints; the message says how to resume that run and how to start another one.
    """
    found = list_checkpoints(run_dir)
    if found:
        raise UserError(
            f"{run_dir} already contains a run ({found[0].name} is its newest checkpoint); resume it with "
            "--ckpt_path last (auto: start it or resume it), or start another run with --trainer.name <another>"
        )


class RunLock:
    """A lock file in the run's folder that identifies the process writing to the folder.

    The owner is a host, a process id and that process's start time, so that the lock of a killed process is recognized
    as stale and taken over. (An operating-system lock would work on one host, but not on a shared disk.) A lock of
    another host is taken over if the same job of torchrun or SLURM left it: they end all processes of a job before
    they start them again, and then process 0 may be on another machine, as when its own has failed.

    Args:
        run_dir: the run's folder.
    """

    def __init__(self, run_dir: Path) -> None:
        self.path = run_dir / LOCK
        started = psutil.Process().create_time()
        self._owner = {"host": socket.gethostname(), "pid": os.getpid(), "started": started, "job": _job()}
        self._owner["start"] = int(os.environ.get("SLURM_RESTART_COUNT", 0))

    def acquire(self) -> None:
        """Acquire the lock.

        Raises:
            UserError: another process that may still be running holds it.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # A name unique to this call: on a shared disk, processes of two hosts may have the same id.
        complete = self.path.with_name(f".{LOCK}-{secrets.token_hex(8)}")
        complete.write_text(json.dumps(self._owner), encoding="utf-8")
        try:
            # One process at a time: if two processes found the same stale lock, the second one could remove the lock
            # that the first has just taken. Only processes of one host can find a lock stale.
            with _one_at_a_time(self.path.parent):
                self._link(complete)
        finally:
            complete.unlink()

    def _link(self, complete: Path) -> None:
        while True:
            try:
                _link_new(complete, self.path)
                return
            except FileExistsError:
                holder = self._read()
            if holder is not None and holder != self._owner and self._may_run(holder):
                raise UserError(
                    f"another process is training in {self.path.parent} (process {holder['pid']} on {holder['host']}); "
                    f"wait for it, start another run with --trainer.name <another>, or remove {self.path} if that "
                    "process is gone"
                )
            self.path.unlink(missing_ok=True)  # stale, or owned by this process

    def release(self) -> None:
        """Release the lock, if this process owns it."""
        if self._read() == self._owner:
            self.path.unlink(missing_ok=True)

    def _read(self) -> dict[str, Any] | None:
        try:
            holder: dict[str, Any] = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError):  # removed in the meantime, or truncated by a crash
            return None
        return holder if {"host", "pid", "started"} <= holder.keys() else None

    def _may_run(self, holder: dict[str, Any]) -> bool:
        if holder["host"] != self._owner["host"]:
            # Its processes cannot be checked.
            job = self._owner["job"]
            if job is None or holder.get("job") != job:
                return True
            # One start of a SLURM job may contain several runs side by side.
            return str(job).startswith("SLURM") and holder.get("start", 0) >= self._owner["start"]
        try:
            return abs(psutil.Process(holder["pid"]).create_time() - holder["started"]) < 1
        except psutil.Error:
            return False


def _job() -> str | None:
    """Return the launcher's name of the job that this process belongs to; None: it has none, or no launcher."""
    for variable in ("TORCHELASTIC_RUN_ID", "SLURM_JOB_ID"):
        name = os.environ.get(variable, "none")
        if name != "none":  # torchrun's default, which all jobs share
            return f"{variable}={name}"
    return None


@contextlib.contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    """Wait until no other process of this host is in this context with the same folder."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # the file system does not support such locks
            fcntl.flock(opened, fcntl.LOCK_EX)
        yield
    finally:
        os.close(opened)


def _link_new(complete: Path, path: Path) -> None:
    """Give a complete file a second name, which must not exist yet.

    Raises:
        FileExistsError: it exists.
    """
    try:
        os.link(complete, path)  # atomic: the file is always complete
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links (FAT, some network and FUSE mounts)
        with open(path, "x", encoding="utf-8") as file:
            file.write(complete.read_text(encoding="utf-8"))


class RunFolder(Callback):
    """Creates and locks the run's folder, copies the tokenizer and writes `lineage.json`.

    What other callbacks have as `lineage`, a mapping, is recorded too.
    """

    def __init__(self) -> None:
        self._lock: RunLock | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check that all processes start from the same checkpoint, before any of them loads it.

        Raises:
            UserError: they do not, because they see different files under the same name.
        """
        if stage != "fit" or trainer.world_size == 1 or not dist.is_initialized():
            return
        names: list[Any] = [None] * trainer.world_size
        dist.all_gather_object(names, Path(trainer.ckpt_path).name if trainer.ckpt_path else "the first step")
        if len(set(names)) > 1:
            other = next(rank for rank, name in enumerate(names) if name != names[0])
            raise UserError(
                f"process 0 starts from {names[0]} and process {other} from {names[other]}: {run_dir_of(trainer)} is "
                "not the same folder on all nodes; set trainer.default_root_dir to one on a disk that they share"
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the folder, then fill it; on all strategies, only at this point is it known whether the run is resumed.

        Raises:
            UserError: the folder contains another run, or the run was started with another tokenizer.
        """
        if getattr(trainer, "fast_dev_run", False):
            return
        run_dir = run_dir_of(trainer)
        resumed = bool(trainer.ckpt_path)
        if resumed:
            _require_own(run_dir, Path(str(trainer.ckpt_path)))
        else:
            require_fresh(run_dir)
        if trainer.is_global_zero:
            self._lock = RunLock(run_dir)
            self._lock.acquire()
            info = read_data_info(trainer)
            if info.tokenizer_path is not None:
                _keep_tokenizer(info.tokenizer_path, run_dir / TOKENIZER, resumed)
            _keep_lineage(run_dir / LINEAGE, trainer, pl_module, info, resumed)
        trainer.strategy.barrier("RunFolder")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Release the lock of the folder."""
        self._release()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Release the lock of the folder."""
        self._release()

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.release()
        self._lock = None


def _require_own(run_dir: Path, checkpoint: Path) -> None:
    """Raise if a run's folder would be resumed from the checkpoint of another run.

    Raises:
        UserError: the folder contains checkpoints, and this is not one of them.
    """
    folder = run_dir / CHECKPOINTS
    # Only the checkpoint's parent is resolved, because the checkpoint itself may be a link to where it was moved.
    if list_checkpoints(run_dir) and checkpoint.absolute().parent.resolve() != folder.resolve():
        raise UserError(
            f"ckpt_path {checkpoint} is not a checkpoint of the run in {run_dir}, whose own checkpoints would be lost; "
            "resume the run with --ckpt_path last, or start another run from these weights with --trainer.name "
            "<another> "
            "and model.init_args.init_from"
        )


def _keep_tokenizer(source: Path, target: Path, resumed: bool) -> None:
    if not target.exists() or not resumed:
        copy_tokenizer(source, target)
        return
    if hash_tokenizer(source) != hash_tokenizer(target):
        raise UserError(
            f"the run was started with the tokenizer in {target}, and {source} is a different one; give the DataModule "
            "the "
            "run's own tokenizer, or start a new run with --trainer.name <another>"
        )


def _keep_lineage(path: Path, trainer: Trainer, pl_module: LightningModule, info: DataInfo, resumed: bool) -> None:
    """Write the run's origin; a resume adds the version of the code that continued it."""
    session = {"from_step": trainer.global_step, "code": code_versions()}
    if resumed and path.exists():
        lineage = read_json(path, "restore it, or remove it to have it written from here on")
        lineage.setdefault("resumed", []).append(session)
    else:
        config: Any = getattr(pl_module, "config", None)
        of_callbacks = [getattr(callback, "lineage", None) for callback in trainer.callbacks]  # type: ignore[attr-defined]
        entries = [entry for entry in of_callbacks if isinstance(entry, Mapping)]
        lineage = collect_lineage(
            config.to_dict() if hasattr(config, "to_dict") else None,
            info.tokenizer_path,
            None if info.lineage is None else info.lineage(),
            init_from=getattr(pl_module, "init_from", None),
            precision=getattr(trainer, "precision", None),
            **{name: value for entry in entries for name, value in entry.items()},
        )
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(lineage, indent=2, sort_keys=True) + "\n", encoding="utf-8")
