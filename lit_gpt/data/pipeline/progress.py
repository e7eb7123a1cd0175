"""Progress of a pass, reported through small files so that it works for processes on any machine.

Each task writes the number of characters that it has read to `<folder>/<rank>` about twice per second; `watching` shows
the sum in a progress bar. Nothing else depends on these files: a lost or incomplete one only shows a wrong number for
half a second.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType

from lit_gpt.progress import Bar

_INTERVAL_SECONDS = 0.5
_CHECK_EVERY = 64


class TaskProgress:
    """Progress of one task.

    Args:
        folder: Folder of the progress file; None writes nothing.
        rank: Rank of the task.
    """

    def __init__(self, folder: Path | None, rank: int) -> None:
        self._path = None if folder is None else folder / f"{rank:05d}"
        self._done = self._calls = 0
        self._next = 0.0

    def advance(self, amount: int) -> None:
        """Count `amount` more characters as read."""
        self._done += amount
        self._calls += 1
        if self._calls % _CHECK_EVERY and amount < 1 << 16:
            return
        now = time.monotonic()
        if now >= self._next:
            self._next = now + _INTERVAL_SECONDS
            self._write()

    def _write(self) -> None:
        if self._path is not None:
            with suppress(OSError):  # only a display
                self._path.write_text(str(self._done))

    def __enter__(self) -> "TaskProgress":
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self._write()


def _total(folder: Path) -> int:
    total = 0
    with suppress(OSError):
        for path in folder.iterdir():
            with suppress(OSError, ValueError):
                total += int(path.read_text())
    return total


@contextmanager
def watching(folder: Path, total: int | None, what: str) -> Iterator[None]:
    """Show a progress bar over all tasks while the body runs (only on a terminal).

    Args:
        folder: Folder of the tasks' progress files.
        total: Total characters or bytes of all tasks; None if unknown.
        what: Label of the bar.
    """
    stop = threading.Event()
    with Bar(total=total, unit="B", unit_scale=True, desc=what) as bar:

        def poll() -> None:
            while not stop.wait(_INTERVAL_SECONDS):
                bar.n = _total(folder)
                bar.refresh()

        thread = threading.Thread(target=poll, daemon=True) if not bar.disable else None
        if thread is not None:
            thread.start()
        try:
            yield
            if total is not None:
                bar.n = total
        finally:
            stop.set()
            if thread is not None:
                thread.join()
