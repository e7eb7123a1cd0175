"""Progress of a measure: how it is reported, and the bars that show it on a terminal."""

import sys
from collections.abc import Callable
from time import monotonic

from tqdm import tqdm

from lit_gpt.pages.text import visible
from lit_gpt.progress import Bar

Progress = Callable[[int, int], None]
"""Called with (done, total), at any frequency."""
_ESTIMATE_AFTER = 5.0
"""Seconds of work from which the duration is estimated."""
_LONG = 60.0
"""Seconds from which the estimated duration is printed."""
_LINE_EVERY = 30.0
"""Seconds between two lines if there is no terminal."""


def no_progress(done: int, total: int) -> None:
    """Show nothing."""


def part_of(progress: Progress, start: int, size: int, total: int) -> Progress:
    """Return the progress callback of one part of a task, as a share of the whole.

    Args:
        progress: Progress of the whole task.
        start: Amount done before this part.
        size: Size of this part.
        total: Size of the whole task.
    """

    def part(done: int, of: int) -> None:
        progress(start + (size * done // of if of else 0), total)

    return part


class ProgressBars:
    """Shows the running measure on standard error: a bar with the remaining time, or lines if there is no terminal.

    If a measure will take more than a minute, its estimated duration is printed once.
    """

    def __init__(self) -> None:
        self._bar: Bar | None = None

    def start(self, label: str) -> Progress:
        """Close the last bar and open the next one."""
        self.close()
        bar = self._bar = Bar(desc=visible(label), unit="", unit_scale=True, leave=True)
        started, announced, finished, line_at = monotonic(), False, False, _LINE_EVERY

        def progress(done: int, total: int) -> None:
            nonlocal announced, finished, line_at
            elapsed = monotonic() - started
            if bar.disable:
                # A total that was only estimated may be reached several times.
                if not finished and (done == total or elapsed >= line_at):
                    finished = done == total
                    line_at = elapsed + _LINE_EVERY
                    share = done / total if total else 1.0
                    print(f"{visible(label)}: {share:.0%} after {elapsed:.0f} s", file=sys.stderr, flush=True)
            else:
                bar.total, bar.n = total, done
                bar.refresh() if done == total else bar.update(0)
            if not announced and 0 < done < total and elapsed >= _ESTIMATE_AFTER:
                announced = True
                seconds = elapsed * total / done
                if seconds > _LONG:
                    tqdm.write(f"{visible(label)}: about {seconds / 60:.0f} minutes", file=sys.stderr)

        return progress

    def close(self) -> None:
        """Close the bar that is open."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
