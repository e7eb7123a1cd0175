"""`BackgroundWriter`: writes a checkpoint in a thread while training goes on.

Training pauses only while the state is copied to host memory (pinned where there is a GPU; the buffers are kept from
one save to the next). At most one checkpoint is in flight: the next one waits for it, because two would need the
memory of two copies and could be published in the wrong order.
"""

import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions


class BackgroundWriter:
    """One thread that writes one checkpoint at a time."""

    def __init__(self) -> None:
        self._stager: DefaultStager | None = None
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._actions: list[Callable[[], None]] = []
        self._lock = threading.Lock()
        self._busy = False
        self.path: Path | None = None
        """Where the latest checkpoint is, or will be."""

    def copy(self, state: Any) -> Any:
        """Return nested containers with copies of their tensors in host memory; tensors that share memory still do.

        The copy is valid until the next call.
        """
        if self._stager is None:
            on_gpu = torch.cuda.is_available()
            options = StagingOptions(
                use_pinned_memory=on_gpu,
                use_shared_memory=False,
                use_async_staging=False,
                use_non_blocking_copy=on_gpu,
            )
            self._stager = DefaultStager(options)
        return self._stager.stage(state)

    def start(self, path: Path, write: Callable[[], None]) -> None:
        """Run `write` in a thread, then the actions of `then`; call `wait` before."""
        assert not self._busy, "a checkpoint is in flight"
        self.path, self._error, self._busy = path, None, True

        # A daemon: a process that is ending by an error elsewhere must not wait for peers that are gone. What the
        # thread leaves then is a temporary folder, as after SIGKILL.
        self._thread = threading.Thread(target=self._run, args=(write,), name="checkpoint", daemon=True)
        self._thread.start()

    def _run(self, write: Callable[[], None]) -> None:
        try:
            write()
            while True:
                with self._lock:
                    if not self._actions:
                        self._busy = False
                        return
                    action = self._actions.pop(0)
                action()
        except BaseException as error:  # raised by `wait`, in the thread that trains
            with self._lock:
                self._error, self._busy = error, False
                self._actions.clear()

    def then(self, action: Callable[[], None]) -> None:
        """Run an action once the checkpoint in flight is published, or now if there is none; never if it fails."""
        with self._lock:
            if self._busy:
                self._actions.append(action)
                return
        if self._error is None:
            action()

    @property
    def is_running(self) -> bool:
        """Whether a checkpoint is in flight."""
        return self._busy

    @property
    def has_failed(self) -> bool:
        """Whether the latest checkpoint could not be written, which `wait` has not raised yet."""
        return self._error is not None

    def wait(self) -> None:
        """Wait until the checkpoint in flight is published.

        Raises:
            BaseException: what the thread raised; once.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error


def finish(writer: BackgroundWriter) -> None:
    """Wait for a writer at the end of a run; its error does not hide the one that is ending the run.

    Raises:
        BaseException: what the thread raised, if the run is not ending by an error.
    """
    is_ending = sys.exc_info()[0] is not None
    try:
        writer.wait()
    except Exception as error:
        if not is_ending:
            raise
        print(f"{writer.path} was not saved: {error}", file=sys.stderr)
