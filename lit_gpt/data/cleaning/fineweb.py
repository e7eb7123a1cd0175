"""`fineweb_quality`: the rules that FineWeb added to Gopher's and C4's (Penedo et al. 2024, arXiv:2406.17557).

The rules are datatrove's `FineWebQualityFilter`, the code that made FineWeb.
"""

from typing import TYPE_CHECKING

from lit_gpt.data.cleaning.base import check_at_least, check_fraction
from lit_gpt.data.cleaning.datatrove_filter import DatatroveFilter
from lit_gpt.data.cleaning.words import word_tokenizer

if TYPE_CHECKING:
    from datatrove.pipeline.filters.base_filter import BaseFilter


class FineWebQuality(DatatroveFilter):
    """Drops lists, menus and documents of repeated or unfinished lines (Penedo et al. 2024).

    Args:
        min_punctuated_lines: Least share of lines that end in closing punctuation (0.12).
        max_short_lines: Greatest share of short lines (0.67).
        short_line_chars: A line of at most so many characters is short (30).
        max_duplicate_line_chars: Greatest share of characters in lines that occurred before. datatrove's default is
            0.01; the paper says 0.1.
        max_line_breaks_per_word: Greatest number of line breaks per word (0.3).
        words: How words are found: "unicode", or a language code of datatrove (needs its library, mostly spaCy).
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
        check_fraction("fineweb_quality: min_punctuated_lines", min_punctuated_lines)
        check_fraction("fineweb_quality: max_short_lines", max_short_lines)
        check_at_least("fineweb_quality: short_line_chars", short_line_chars, 0)
        check_fraction("fineweb_quality: max_duplicate_line_chars", max_duplicate_line_chars)
        check_at_least("fineweb_quality: max_line_breaks_per_word", max_line_breaks_per_word, 0)
        self.min_punctuated_lines = min_punctuated_lines
        self.max_short_lines = max_short_lines
        self.short_line_chars = short_line_chars
        self.max_duplicate_line_chars = max_duplicate_line_chars
        self.max_line_breaks_per_word = max_line_breaks_per_word

    def make_filter(self) -> "BaseFilter":
        """Returns datatrove's filter with these thresholds."""
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
        """Returns what a reason means, with the threshold."""
        return {
            "line_punct_ratio": f"under {self.min_punctuated_lines} of the lines end in punctuation",
            "short_line_ratio": f"over {self.max_short_lines} of the lines: at most {self.short_line_chars} characters",
            "char_dup_ratio": f"over {self.max_duplicate_line_chars} of the characters are in repeated lines",
            "list_ratio": f"more than {self.max_line_breaks_per_word} line breaks a word",
        }.get(reason, "")
