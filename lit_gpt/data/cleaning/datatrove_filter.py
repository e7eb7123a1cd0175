"""One of datatrove's filters as a step: its rules and thresholds are datatrove's code, asked one document at a time."""

from typing import TYPE_CHECKING, Any, cast

from lit_gpt.data.cleaning.base import PerDocumentStep
from lit_gpt.data.cleaning.step import Doc, Rejected
from lit_gpt.data.cleaning.words import excerpt, split_words
from lit_gpt.errors import UserError

if TYPE_CHECKING:
    from datatrove.pipeline.filters.base_filter import BaseFilter

JUDGED_CHARS = 1_000_000


class DatatroveFilter(PerDocumentStep):
    """Base of the steps around a filter of datatrove.

    A subclass makes the filter in `make_filter`. Documents longer than a million characters are judged by an excerpt of
    that length, so that time and memory stay bounded (datatrove's n-gram lists take some fifty times the text).

    Args:
        words: How words are found: "unicode" (this package's, linear in time), or a language code of datatrove ("en"),
            which needs the library that datatrove has for that language.
    """

    prefix = ""
    """Put before datatrove's names of the reasons, so that reasons say which filter they come from."""

    def __init__(self, words: str = "unicode") -> None:
        super().__init__()
        self.words = words
        self._filter: BaseFilter | None = None

    def make_filter(self) -> "BaseFilter":
        """Returns the filter of datatrove with this step's options."""
        raise NotImplementedError

    def explain(self, reason: str) -> str:
        """Returns what a reason means, with the threshold."""
        return ""

    def apply(self, document: Doc) -> Doc | Rejected:
        """Returns the document, or the reason that the filter gives."""
        judged = Doc(excerpt(document.text, JUDGED_CHARS), document.id, document.metadata)
        return self.verdict(judged) or document

    def verdict(self, document: Doc) -> Rejected | None:
        """Returns why the filter drops a document (which it may edit), or None."""
        if not split_words(document.text[:JUDGED_CHARS]):  # datatrove's filters divide by the number of words
            return Rejected("empty", "no words")
        if self._filter is None:
            self._filter = self.make_filter()
        result: Any = self._filter.filter(cast(Any, document))
        kept, reason = result if isinstance(result, tuple) else (result, None)
        if kept:
            return None
        reason = str(reason or "dropped")
        detail = self.explain(reason)
        return Rejected(reason if reason.startswith(self.prefix) else self.prefix + reason, detail)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_filter": None}


def pairs(name: str, thresholds: dict[int, float]) -> tuple[tuple[int, float], ...]:
    """Returns {n: share} as datatrove takes it.

    Raises:
        UserError: for an n below 1 or a share outside 0 to 1.
    """
    for n, share in thresholds.items():
        if int(n) < 1 or not 0 <= share <= 1:
            raise UserError(f"{name} has {n}: {share}; write n-gram length (1 or more): share between 0 and 1")
    return tuple(sorted((int(n), float(share)) for n, share in thresholds.items()))
