"""`gopher_repetition` and `gopher_quality`: MassiveText's rules (Rae et al. 2021, arXiv:2112.11446, appendix A.1.1).

The rules are datatrove's `GopherRepetitionFilter` and `GopherQualityFilter`; the defaults are the paper's (table A1 and
the text beside it). They were made for English web text: code and other languages need thresholds of their own.
"""

from typing import TYPE_CHECKING

from lit_gpt.data.cleaning.base import check_at_least, check_fraction, check_list
from lit_gpt.data.cleaning.datatrove_filter import DatatroveFilter, pairs
from lit_gpt.data.cleaning.words import word_tokenizer

if TYPE_CHECKING:
    from datatrove.pipeline.filters.base_filter import BaseFilter

TOP_N_GRAMS = {2: 0.20, 3: 0.18, 4: 0.16}
DUPLICATE_N_GRAMS = {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10}


class GopherRepetition(DatatroveFilter):
    """Drops documents that repeat themselves: lines, paragraphs and n-grams (Rae et al. 2021, table A1).

    Args:
        duplicate_lines: Greatest share of lines that occurred before; None turns a rule off.
        duplicate_paragraphs: Greatest share of paragraphs that occurred before.
        duplicate_line_chars: Greatest share of characters in such lines.
        duplicate_paragraph_chars: Greatest share of characters in such paragraphs.
        top_n_grams: For each n, the greatest share of characters in the most frequent n-gram.
        duplicate_n_grams: For each n, the greatest share of characters in n-grams that occurred before.
        words: How words are found: "unicode", or a language code of datatrove (needs its library, mostly spaCy).
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
            check_fraction(f"gopher_repetition: {option}", value)
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
        """Returns datatrove's filter with these thresholds."""
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
        """Returns what a reason means, with the threshold."""
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
    """Drops documents that hardly look like prose (Rae et al. 2021, appendix A.1.1, "Quality filtering").

    Args:
        min_words: Least number of words (symbols not counted); None turns a rule off.
        max_words: Greatest number of words.
        min_mean_word_chars: Least mean length of a word.
        max_mean_word_chars: Greatest mean length of a word.
        max_symbols_per_word: Greatest number of "#", or of ellipses, per word.
        max_bullet_lines: Greatest share of lines that begin with a bullet.
        max_ellipsis_lines: Greatest share of lines that end in an ellipsis.
        min_alphabetic_words: Least share of words that hold a letter. The paper's 0.8 was counted on words split at
            spaces; as in datatrove, punctuation marks are words here.
        min_stop_words: Least number of different stop words.
        stop_words: The stop words; None for the paper's eight English ones (the be to of and that have with).
        words: How words are found: "unicode", or a language code of datatrove (needs its library, mostly spaCy).
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
        check_fraction("gopher_quality: max_bullet_lines", max_bullet_lines)
        check_fraction("gopher_quality: max_ellipsis_lines", max_ellipsis_lines)
        check_fraction("gopher_quality: min_alphabetic_words", min_alphabetic_words)
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
        """Returns datatrove's filter with these thresholds."""
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
        """Returns what a reason means, with the threshold."""
        return {
            "gopher_short_doc": f"fewer than {self.min_words} words",
            "gopher_long_doc": f"more than {self.max_words} words",
            "gopher_below_avg_threshold": f"words of fewer than {self.min_mean_word_chars} letters on average",
            "gopher_above_avg_threshold": f"words of more than {self.max_mean_word_chars} letters on average",
            "gopher_too_many_hashes": f"more than {self.max_symbols_per_word} # a word",
            "gopher_too_many_ellipsis": f"more than {self.max_symbols_per_word} ellipses a word",
            "gopher_too_many_bullets": f"over {self.max_bullet_lines} of the lines begin with a bullet",
            "gopher_too_many_end_ellipsis": f"over {self.max_ellipsis_lines} of the lines end in an ellipsis",
            "gopher_below_alpha_threshold": f"under {self.min_alphabetic_words} of the words hold a letter",
            "gopher_enough_stop_words": f"fewer than {self.min_stop_words} stop words",
        }.get(reason, "")
