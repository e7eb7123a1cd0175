"""`c4_quality`: the line and page rules of C4 (Raffel et al. 2020, JMLR 21(140), section 2.2).

The rules are datatrove's `C4QualityFilter`, which follows the published code of C4. They remove lines, and drop what
keeps too few sentences. Made for English web pages: they drop all source code (a curly bracket is enough).
"""

from typing import TYPE_CHECKING

from lit_gpt.data.cleaning.base import check_at_least
from lit_gpt.data.cleaning.datatrove_filter import JUDGED_CHARS, DatatroveFilter
from lit_gpt.data.cleaning.step import Doc, Rejected
from lit_gpt.data.cleaning.words import word_tokenizer

if TYPE_CHECKING:
    from datatrove.pipeline.filters.base_filter import BaseFilter


class C4Quality(DatatroveFilter):
    """Removes lines that are no sentences, and drops pages that are no prose (Raffel et al. 2020, section 2.2).

    Counts `lines_removed`.

    Args:
        min_sentences: Least number of sentences that must remain; None turns the rule off.
        min_words_per_line: A line with fewer words is removed; None turns the rule off.
        max_word_chars: A line with a longer word is removed; None turns the rule off.
        require_end_punctuation: Remove lines that do not end in one of . ? ! " '
        remove_citations: Remove Wikipedia's [1], [edit] and [citation needed].
        drop_lorem_ipsum: Drop documents that hold "lorem ipsum".
        drop_curly_brackets: Drop documents that hold a curly bracket.
        remove_javascript_lines: Remove lines that mention JavaScript.
        remove_policy_lines: Remove lines that mention cookies, terms of use or a privacy policy.
        words: How sentences are found: "unicode", or a language code of datatrove (needs its library, mostly spaCy).
    """

    name = "c4_quality"
    prefix = "c4_"

    def __init__(
        self,
        min_sentences: int | None = 5,
        min_words_per_line: int | None = 3,
        max_word_chars: int | None = 1000,
        require_end_punctuation: bool = True,
        remove_citations: bool = True,
        drop_lorem_ipsum: bool = True,
        drop_curly_brackets: bool = True,
        remove_javascript_lines: bool = True,
        remove_policy_lines: bool = True,
        words: str = "unicode",
    ) -> None:
        super().__init__(words)
        check_at_least("c4_quality: min_sentences", min_sentences, 0)
        check_at_least("c4_quality: min_words_per_line", min_words_per_line, 0)
        check_at_least("c4_quality: max_word_chars", max_word_chars, 1)
        self.min_sentences = min_sentences
        self.min_words_per_line = min_words_per_line
        self.max_word_chars = max_word_chars
        self.require_end_punctuation = require_end_punctuation
        self.remove_citations = remove_citations
        self.drop_lorem_ipsum = drop_lorem_ipsum
        self.drop_curly_brackets = drop_curly_brackets
        self.remove_javascript_lines = remove_javascript_lines
        self.remove_policy_lines = remove_policy_lines

    def make_filter(self) -> "BaseFilter":
        """Returns datatrove's filter with these rules."""
        language = word_tokenizer(self.words)
        from datatrove.pipeline.filters.c4_filters import C4QualityFilter

        return C4QualityFilter(
            remove_citations=self.remove_citations,
            filter_no_terminal_punct=self.require_end_punctuation,
            min_num_sentences=-1 if self.min_sentences is None else self.min_sentences,
            min_words_per_line=-1 if self.min_words_per_line is None else self.min_words_per_line,
            max_word_length=-1 if self.max_word_chars is None else self.max_word_chars,
            filter_lorem_ipsum=self.drop_lorem_ipsum,
            filter_javascript=self.remove_javascript_lines,
            filter_curly_bracket=self.drop_curly_brackets,
            filter_policy=self.remove_policy_lines,
            language=language,
        )

    def apply(self, document: Doc) -> Doc | Rejected:
        """Returns the document with the lines that C4 keeps, or why it is dropped."""
        before = len(document.text.splitlines())
        rejected = self.verdict(document)
        if len(document.text) > JUDGED_CHARS:
            _forget_sentences()
        if rejected is not None:
            return rejected
        if not document.text:
            return Rejected("c4_no_lines_left", "every line was removed")
        self.counts["lines_removed"] += before - (document.text.count("\n") + 1)
        return document

    def explain(self, reason: str) -> str:
        """Returns what a reason means, with the threshold."""
        return {
            "too_few_sentences": f"fewer than {self.min_sentences} sentences in the lines that stay",
            "lorem_ipsum": 'it holds "lorem ipsum"',
            "curly_bracket": "it holds a curly bracket",
        }.get(reason, "")


def _forget_sentences() -> None:
    """Empties datatrove's cache, which holds the last five texts and their words, however long they are."""
    from datatrove.utils.text import split_into_parts

    split_into_parts.cache_clear()
