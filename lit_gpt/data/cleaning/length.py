"""`length`: documents that are too short or too long are dropped."""

from lit_gpt.data.cleaning.base import PerDocumentStep, check_at_least
from lit_gpt.data.cleaning.step import Doc, Rejected
from lit_gpt.data.cleaning.words import split_words
from lit_gpt.errors import UserError


class Length(PerDocumentStep):
    """Drops documents by their length. Set at least one bound.

    Args:
        min_chars: Least number of characters, white space at both ends not counted.
        max_chars: Greatest number of characters.
        min_words: Least number of words, punctuation not counted.
        max_words: Greatest number of words.
    """

    name = "length"

    def __init__(
        self,
        min_chars: int | None = None,
        max_chars: int | None = None,
        min_words: int | None = None,
        max_words: int | None = None,
    ) -> None:
        super().__init__()
        if min_chars is max_chars is min_words is max_words is None:
            raise UserError("length has no bound; set one, such as min_chars: 200, or leave the step out")
        check_at_least("length: min_chars", min_chars, 0)
        check_at_least("length: max_chars", max_chars, max(min_chars or 0, 1))
        check_at_least("length: min_words", min_words, 0)
        check_at_least("length: max_words", max_words, max(min_words or 0, 1))
        self.min_chars = min_chars
        self.max_chars = max_chars
        self.min_words = min_words
        self.max_words = max_words

    def apply(self, document: Doc) -> Doc | Rejected:
        """Returns the document, or why it is dropped."""
        chars = len(document.text.strip())
        if self.min_chars is not None and chars < self.min_chars:
            return Rejected("too_short", f"{chars} characters < {self.min_chars}")
        if self.max_chars is not None and chars > self.max_chars:
            return Rejected("too_long", f"{chars} characters > {self.max_chars}")
        if self.min_words is None and self.max_words is None:
            return document
        words = sum(1 for word in split_words(document.text) if word[0].isalnum() or word[0] == "_")
        if self.min_words is not None and words < self.min_words:
            return Rejected("too_short", f"{words} words < {self.min_words}")
        if self.max_words is not None and words > self.max_words:
            return Rejected("too_long", f"{words} words > {self.max_words}")
        return document
