"""Published quality filters, based on datatrove's implementations: Gopher, C4, FineWeb.

- `gopher_repetition`, `gopher_quality`: MassiveText's rules (Rae et al. 2021, arXiv:2112.11446, appendix A.1.1);
  datatrove's `GopherRepetitionFilter` and `GopherQualityFilter`; the defaults are the paper's (table A1 and its text).
- `c4_quality`: the line and page rules of C4 (Raffel et al. 2020, JMLR 21(140), section 2.2); datatrove's
 `C4QualityFilter`, which follows the published code of C4. It drops all source code (a single curly bracket suffices).
- `fineweb_quality`: the additional rules of FineWeb (Penedo et al. 2024, arXiv:2406.17557); datatrove's
 `FineWebQualityFilter`, the code that produced FineWeb.

All were designed for English web text; source code and other languages need different thresholds.
"""

from typing import TYPE_CHECKING, Any, cast

from lit_gpt.checks import check_at_least, check_between, check_list
from lit_gpt.data.cleaning.base import Doc, Rejected, Transform
from lit_gpt.data.cleaning.words import excerpt, split_words, word_tokenizer
from lit_gpt.errors import UserError

if TYPE_CHECKING:
    from datatrove.pipeline.filters.base_filter import BaseFilter

JUDGED_CHARS = 1_000_000


class DatatroveFilter(Transform):
    """Base class of transforms that wrap a datatrove filter.

    A subclass creates the filter in `make_filter`. Documents longer than a million characters are judged by an excerpt
    of that length, so that time and memory remain bounded (datatrove's n-gram lists take some fifty times the text).

    Args:
        words: Word tokenizer: "unicode" (this package's, linear in time), or a language code of datatrove ("en"), which
            needs datatrove's library for that language.
    """

    prefix = ""
    """Prefix of datatrove's reasons, which identifies the filter."""

    def __init__(self, words: str = "unicode") -> None:
        super().__init__()
        self.words = words
        self._filter: BaseFilter | None = None

    def make_filter(self) -> "BaseFilter":
        """Return the datatrove filter with this transform's options."""
        raise NotImplementedError

    def explain(self, reason: str) -> str:
        """Return a description of a reason, including the threshold."""
        return ""

    def apply(self, document: Doc) -> Doc | Rejected:
        """Return the document, or a rejection with the filter's reason."""
        judged = Doc(excerpt(document.text, JUDGED_CHARS), document.id, document.metadata)
        return self.verdict(judged) or document

    def verdict(self, document: Doc) -> Rejected | None:
        """Return the filter's rejection of a document (which it may edit), or None."""
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
    """Return {n: share} in the form that datatrove expects.

    Raises:
        UserError: for an n below 1 or a share outside 0 to 1.
    """
    for n, share in thresholds.items():
        if int(n) < 1 or not 0 <= share <= 1:
            raise UserError(f"{name} has {n}: {share}; write an n-gram length (1 or more) and a share between 0 and 1")
    return tuple(sorted((int(n), float(share)) for n, share in thresholds.items()))


TOP_N_GRAMS = {2: 0.20, 3: 0.18, 4: 0.16}
DUPLICATE_N_GRAMS = {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10}


class GopherRepetition(DatatroveFilter):
    """Drops documents that repeat themselves: lines, paragraphs and n-grams (Rae et al. 2021, table A1).

    Args:
        duplicate_lines: Maximum share of lines that occurred before; None disables the rule.
        duplicate_paragraphs: Maximum share of paragraphs that occurred before.
        duplicate_line_chars: Maximum share of characters in such lines.
        duplicate_paragraph_chars: Maximum share of characters in such paragraphs.
        top_n_grams: For each n, the maximum share of characters in the most frequent n-gram.
        duplicate_n_grams: For each n, the maximum share of characters in n-grams that occurred before.
        words: Word tokenizer: "unicode", or a language code of datatrove (needs its library, usually spaCy).
    """

    name = "gopher_repetition"
    prefix = "gopher_"

    def __init__(
        self,
        duplicate_lines: float | None = 0.30,
        duplicate_paragraphs: float | None = 0.30,
        duplicate_line_chars: float | None = 0.20,
        duplicate_paragraph_chars: float | None = 0.20,
        top_n_grams: dict[int, float] | None = None,
        duplicate_n_grams: dict[int, float] | None = None,
        words: str = "unicode",
    ) -> None:
        super().__init__(words)
        for option, value in (
            ("duplicate_lines", duplicate_lines),
            ("duplicate_paragraphs", duplicate_paragraphs),
            ("duplicate_line_chars", duplicate_line_chars),
            ("duplicate_paragraph_chars", duplicate_paragraph_chars),
        ):
            check_between(f"gopher_repetition: {option}", value, 0, 1)
        self.duplicate_lines = duplicate_lines
        self.duplicate_paragraphs = duplicate_paragraphs
        self.duplicate_line_chars = duplicate_line_chars
        self.duplicate_paragraph_chars = duplicate_paragraph_chars
        self.top_n_grams = pairs("gopher_repetition: top_n_grams", TOP_N_GRAMS if top_n_grams is None else top_n_grams)
        self.duplicate_n_grams = pairs(
            "gopher_repetition: duplicate_n_grams",
            DUPLICATE_N_GRAMS if duplicate_n_grams is None else duplicate_n_grams,
        )

    def make_filter(self) -> "BaseFilter":
        """Return the datatrove filter with these thresholds."""
        language = word_tokenizer(self.words)
        from datatrove.pipeline.filters.gopher_repetition_filter import GopherRepetitionFilter

        return GopherRepetitionFilter(
            self.duplicate_lines,
            self.duplicate_paragraphs,
            self.duplicate_line_chars,
            self.duplicate_paragraph_chars,
            self.top_n_grams,
            self.duplicate_n_grams,
            language=language,
        )

    def explain(self, reason: str) -> str:
        """Return a description of a reason, including the threshold."""
        rules = {
            "dup_line_frac": f"over {self.duplicate_lines} of the lines occurred before",
            "dup_para_frac": f"over {self.duplicate_paragraphs} of the paragraphs occurred before",
            "dup_line_char_frac": f"over {self.duplicate_line_chars} of the characters are in repeated lines",
            "dup_para_char_frac": f"over {self.duplicate_paragraph_chars} of the characters are in repeated paragraphs",
        }
        rules |= {f"top_{n}_gram": f"over {s} of the characters are in one {n}-gram" for n, s in self.top_n_grams}
        rules |= {
            f"duplicated_{n}_n_grams": f"over {s} of the characters are in {n}-grams that occurred before"
            for n, s in self.duplicate_n_grams
        }
        return rules.get(reason, "")


class GopherQuality(DatatroveFilter):
    """Drops documents that do not look like prose (Rae et al. 2021, appendix A.1.1, "Quality filtering").

    Args:
        min_words: Minimum number of words (symbols not counted); None disables the rule.
        max_words: Maximum number of words.
        min_mean_word_chars: Minimum mean word length.
        max_mean_word_chars: Maximum mean word length.
        max_symbols_per_word: Maximum number of "#", or of ellipses, per word.
        max_bullet_lines: Maximum share of lines that start with a bullet.
        max_ellipsis_lines: Maximum share of lines that end in an ellipsis.
        min_alphabetic_words: Minimum share of words that contain a letter. The paper's 0.8 refers to words split at
            spaces; here, as in datatrove, punctuation marks count as words.
        min_stop_words: Minimum number of different stop words.
        stop_words: The stop words; None for the paper's eight English ones (the be to of and that have with).
        words: Word tokenizer: "unicode", or a language code of datatrove (needs its library, usually spaCy).
    """

    name = "gopher_quality"
    prefix = "gopher_"

    def __init__(
        self,
        min_words: int | None = 50,
        max_words: int | None = 100_000,
        min_mean_word_chars: float | None = 3,
        max_mean_word_chars: float | None = 10,
        max_symbols_per_word: float | None = 0.1,
        max_bullet_lines: float | None = 0.9,
        max_ellipsis_lines: float | None = 0.3,
        min_alphabetic_words: float | None = 0.8,
        min_stop_words: int | None = 2,
        stop_words: list[str] | None = None,
        words: str = "unicode",
    ) -> None:
        super().__init__(words)
        check_at_least("gopher_quality: min_words", min_words, 0)
        check_at_least("gopher_quality: max_words", max_words, max(min_words or 0, 1))
        check_at_least("gopher_quality: min_mean_word_chars", min_mean_word_chars, 0)
        check_at_least("gopher_quality: max_mean_word_chars", max_mean_word_chars, min_mean_word_chars or 0)
        check_at_least("gopher_quality: max_symbols_per_word", max_symbols_per_word, 0)
        check_between("gopher_quality: max_bullet_lines", max_bullet_lines, 0, 1)
        check_between("gopher_quality: max_ellipsis_lines", max_ellipsis_lines, 0, 1)
        check_between("gopher_quality: min_alphabetic_words", min_alphabetic_words, 0, 1)
        check_at_least("gopher_quality: min_stop_words", min_stop_words, 0)
        if stop_words is not None:
            check_list("gopher_quality: stop_words", stop_words)
        self.min_words = min_words
        self.max_words = max_words
        self.min_mean_word_chars = min_mean_word_chars
        self.max_mean_word_chars = max_mean_word_chars
        self.max_symbols_per_word = max_symbols_per_word
        self.max_bullet_lines = max_bullet_lines
        self.max_ellipsis_lines = max_ellipsis_lines
        self.min_alphabetic_words = min_alphabetic_words
        self.min_stop_words = min_stop_words
        self.stop_words = stop_words

    def make_filter(self) -> "BaseFilter":
        """Return the datatrove filter with these thresholds."""
        language = word_tokenizer(self.words)
        from datatrove.pipeline.filters.gopher_quality_filter import GopherQualityFilter

        return GopherQualityFilter(
            min_doc_words=self.min_words,
            max_doc_words=self.max_words,
            min_avg_word_length=self.min_mean_word_chars,
            max_avg_word_length=self.max_mean_word_chars,
            max_symbol_word_ratio=self.max_symbols_per_word,
            max_bullet_lines_ratio=self.max_bullet_lines,
            max_ellipsis_lines_ratio=self.max_ellipsis_lines,
            max_non_alpha_words_ratio=self.min_alphabetic_words,
            min_stop_words=self.min_stop_words,
            stop_words=self.stop_words,
            language=language,
        )

    def explain(self, reason: str) -> str:
        """Return a description of a reason, including the threshold."""
        return {
            "gopher_short_doc": f"fewer than {self.min_words} words",
            "gopher_long_doc": f"more than {self.max_words} words",
            "gopher_below_avg_threshold": f"words of fewer than {self.min_mean_word_chars} letters on average",
            "gopher_above_avg_threshold": f"words of more than {self.max_mean_word_chars} letters on average",
            "gopher_too_many_hashes": f"more than {self.max_symbols_per_word} # per word",
            "gopher_too_many_ellipsis": f"more than {self.max_symbols_per_word} ellipses per word",
            "gopher_too_many_bullets": f"over {self.max_bullet_lines} of the lines begin with a bullet",
            "gopher_too_many_end_ellipsis": f"over {self.max_ellipsis_lines} of the lines end in an ellipsis",
            "gopher_below_alpha_threshold": f"under {self.min_alphabetic_words} of the words contain a letter",
            "gopher_enough_stop_words": f"fewer than {self.min_stop_words} stop words",
        }.get(reason, "")


class C4Quality(DatatroveFilter):
    """Removes lines that are not sentences, and drops pages that are not prose (Raffel et al. 2020, section 2.2).

    Counts `lines_removed`.

    Args:
        min_sentences: Minimum number of remaining sentences; None disables the rule.
        min_words_per_line: Lines with fewer words are removed; None disables the rule.
        max_word_chars: Lines with a longer word are removed; None disables the rule.
        require_end_punctuation: Whether to remove lines that do not end in one of . ? ! " '
        remove_citations: Whether to remove Wikipedia's [1], [edit] and [citation needed].
        drop_lorem_ipsum: Whether to drop documents that contain "lorem ipsum".
        drop_curly_brackets: Whether to drop documents that contain a curly bracket.
        remove_javascript_lines: Whether to remove lines that mention JavaScript.
        remove_policy_lines: Whether to remove lines that mention cookies, terms of use or a privacy policy.
        words: Sentence tokenizer: "unicode", or a language code of datatrove (needs its library, usually spaCy).
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
        """Return the datatrove filter with these rules."""
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
        """Return the document with the lines that C4 keeps, or the reason to drop it."""
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
        """Return a description of a reason, including the threshold."""
        return {
            "too_few_sentences": f"fewer than {self.min_sentences} sentences in the remaining lines",
            "lorem_ipsum": 'it contains "lorem ipsum"',
            "curly_bracket": "it contains a curly bracket",
        }.get(reason, "")


def _forget_sentences() -> None:
    """Clear datatrove's cache, which keeps the last five texts and their words regardless of their length."""
    from datatrove.utils.text import split_into_parts

    split_into_parts.cache_clear()


class FineWebQuality(DatatroveFilter):
    """Drops lists, menus and documents of repeated or unfinished lines (Penedo et al. 2024).

    Args:
        min_punctuated_lines: Minimum share of lines that end in closing punctuation (0.12).
        max_short_lines: Maximum share of short lines (0.67).
        short_line_chars: Maximum number of characters of a short line (30).
        max_duplicate_line_chars: Maximum share of characters in lines that occurred before. datatrove's default is
            0.01; the paper has 0.1.
        max_line_breaks_per_word: Maximum number of line breaks per word (0.3).
        words: Word tokenizer: "unicode", or a language code of datatrove (needs its library, usually spaCy).
    """

    name = "fineweb_quality"
    prefix = "fineweb_"

    def __init__(
        self,
        min_punctuated_lines: float = 0.12,
        max_short_lines: float = 0.67,
        short_line_chars: int = 30,
        max_duplicate_line_chars: float = 0.1,
        max_line_breaks_per_word: float = 0.3,
        words: str = "unicode",
    ) -> None:
        super().__init__(words)
        check_between("fineweb_quality: min_punctuated_lines", min_punctuated_lines, 0, 1)
        check_between("fineweb_quality: max_short_lines", max_short_lines, 0, 1)
        check_at_least("fineweb_quality: short_line_chars", short_line_chars, 0)
        check_between("fineweb_quality: max_duplicate_line_chars", max_duplicate_line_chars, 0, 1)
        check_at_least("fineweb_quality: max_line_breaks_per_word", max_line_breaks_per_word, 0)
        self.min_punctuated_lines = min_punctuated_lines
        self.max_short_lines = max_short_lines
        self.short_line_chars = short_line_chars
        self.max_duplicate_line_chars = max_duplicate_line_chars
        self.max_line_breaks_per_word = max_line_breaks_per_word

    def make_filter(self) -> "BaseFilter":
        """Return the datatrove filter with these thresholds."""
        language = word_tokenizer(self.words)
        from datatrove.pipeline.filters.fineweb_quality_filter import FineWebQualityFilter

        return FineWebQualityFilter(
            line_punct_thr=self.min_punctuated_lines,
            short_line_thr=self.max_short_lines,
            short_line_length=self.short_line_chars,
            char_duplicates_ratio=self.max_duplicate_line_chars,
            new_line_ratio=self.max_line_breaks_per_word,
            language=language,
        )

    def explain(self, reason: str) -> str:
        """Return a description of a reason, including the threshold."""
        return {
            "line_punct_ratio": f"under {self.min_punctuated_lines} of the lines end in punctuation",
            "short_line_ratio": f"over {self.max_short_lines} of the lines: at most {self.short_line_chars} characters",
            "char_dup_ratio": f"over {self.max_duplicate_line_chars} of the characters are in repeated lines",
            "list_ratio": f"more than {self.max_line_breaks_per_word} line breaks per word",
        }.get(reason, "")
