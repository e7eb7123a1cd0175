"""What an objective makes of a row: sequences of tokens, which of them are learned, and numbers that belong to them."""

from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from lit_gpt.data.rows.sources import Row


class EncodedSequence(NamedTuple):
    """Tokens, and which of them are targets."""

    ids: list[int]
    mask: list[bool]


@dataclass(frozen=True, slots=True)
class EncodedRow:
    """A row as tokens.

    Attributes:
        sequences: One (an instruction) or several (a pair); every row of a data set has the same number.
        split_key: Text whose hash decides the split: the prompt.
        numbers: Further values of the row, such as a label, by name; every row has the same names.
        notes: What happened to it ("cut"), each counted.
        attached: Text that is stored with the tokens, such as what a reward compares an answer with.
    """

    sequences: tuple[EncodedSequence, ...]
    split_key: str
    numbers: dict[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    attached: str = ""


class RowEncoder(Protocol):
    """Turns rows into tokens; a pure function of the row and of what the fingerprint is made of."""

    vocab_size: int

    def fingerprint(self) -> str:
        """Return a hash of everything that decides the result: tokenizer, template, lengths."""
        ...

    def __call__(self, row: Row) -> EncodedRow | str:
        """Encode a row, or leaves it out by a rule: then returns the rule's name, under which it is counted.

        Raises:
            UserError: if the row cannot be used; the caller names its file and place.
        """
        ...
