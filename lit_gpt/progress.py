"""Progress bars on standard error."""

from typing import Any

from tqdm import tqdm

COLUMNS, ROWS = 80, 24
"""Size of a terminal that does not know its own (some containers and editors report 0)."""


class Bar(tqdm):
    """A tqdm bar that fits any terminal, and is not drawn in files and pipes, which would fill with carriage returns.

    Args:
        args: as in tqdm.
        disable: None: draw only on a terminal; True: never.
        kwargs: as in tqdm.
    """

    def __init__(self, *args: Any, disable: bool | None = None, **kwargs: Any) -> None:
        # Redrawn by time alone: tqdm's own number of items between two updates makes uneven work jump.
        super().__init__(*args, disable=disable or None, dynamic_ncols=True, miniters=1, **kwargs)

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; a size of the terminal below 1, with which tqdm draws nothing, is replaced."""
        if name in ("ncols", "nrows") and value is not None and value < 1:
            value = COLUMNS if name == "ncols" else ROWS
        super().__setattr__(name, value)
