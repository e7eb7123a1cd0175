"""How a text that is longer than the context is cut, so that every token is predicted once and from enough before it.

The first window predicts all that fits; each further one moves on by `stride` tokens and predicts these alone, from
the `window - stride` tokens before them and those of the stride already read. A small stride is more exact and slower:
each token is read window / stride times.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from lit_gpt.errors import UserError


class Window(NamedTuple):
    """One forward: `context` is read, `targets` are predicted.

    Attributes:
        start: Index of the first target among the text's own tokens, 0 for the one after the prefix.
        context: At least one token.
        targets: At least one token, those that follow.
    """

    start: int
    context: Sequence[int]
    targets: Sequence[int]


def check_window(window: int | None, stride: int | None, block_size: int) -> tuple[int, int]:
    """Return window and stride, with their defaults put in: the model's whole context, and half of the window.

    Raises:
        UserError: One of them is out of bounds.
    """
    width = block_size if window is None else window
    if not 1 <= width <= block_size:
        raise UserError(f"window is {window}; it must be from 1 to the model's context of {block_size} tokens")
    step = max(1, width // 2) if stride is None else stride
    if not 1 <= step <= width:
        raise UserError(f"stride is {stride}; it must be from 1 to the window of {width} tokens")
    return width, step


def windows(prefix: Sequence[int], ids: Sequence[int], window: int, stride: int) -> Iterator[Window]:
    """Cut a text.

    Args:
        prefix: Tokens before it that are not predicted, at least one.
        ids: The text's tokens, each of which is predicted exactly once.
        window: Tokens that the model reads at once, at most: the last one is the one before the last target.
        stride: Targets of every window but the first.
    """
    text = [*prefix, *ids]
    first = len(prefix)
    begin = first
    while begin < len(text):
        room = max(1, window - first + 1) if begin == first else stride
        end = min(begin + room, len(text))
        yield Window(begin - first, text[max(0, end - 1 - window) : begin], text[begin:end])
        begin = end
