"""What the steps share: the protocol's three attributes, and checks of options that name value, bound and remedy."""

from collections import Counter
from collections.abc import Collection, Iterable
from typing import Literal

from lit_gpt.errors import UserError


class PerDocumentStep:
    """Base of the steps that judge one document at a time."""

    name: str = ""
    kind: Literal["per_document", "corpus"] = "per_document"

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()


class CorpusWideStep(PerDocumentStep):
    """Base of the steps that must see every document first."""

    kind: Literal["per_document", "corpus"] = "corpus"


def check_at_least(name: str, value: float | None, least: float) -> None:
    """Refuses an option below its bound; None means "off" and passes.

    Raises:
        UserError: naming the option, its value and the bound.
    """
    if value is not None and value < least:
        raise UserError(f"{name} is {value}; it must be {least} or more")


def check_fraction(name: str, value: float | None) -> None:
    """Refuses a share that is not between 0 and 1; None means "off" and passes.

    Raises:
        UserError: naming the option and its value.
    """
    if value is not None and not 0 <= value <= 1:
        raise UserError(f"{name} is {value}; it is a share, so it must be between 0 and 1")


def check_choice(name: str, value: str, choices: Collection[str]) -> None:
    """Refuses a value that is not among the choices.

    Raises:
        UserError: naming the option, its value and the choices.
    """
    if value not in choices:
        raise UserError(f"{name} is {value!r}; it can be {', '.join(choices)}")


def check_list(name: str, value: Iterable[str]) -> None:
    """Refuses a string where a list of strings is meant.

    Raises:
        UserError: naming the option and how to write it.
    """
    if isinstance(value, str):
        raise UserError(f"{name} is the text {value!r}; it is a list: write {name}: [{value}]")
