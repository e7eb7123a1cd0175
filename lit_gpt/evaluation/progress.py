"""How far a long work is, told to whoever shows it."""

from collections.abc import Callable

Progress = Callable[[int, int], None]
"""Called with (done, of how many), as often as one likes."""


def no_progress(done: int, total: int) -> None:
    """For those who show none."""
