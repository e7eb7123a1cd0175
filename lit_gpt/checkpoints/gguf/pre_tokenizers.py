"""llama.cpp's name of the way a byte-level tokenizer cuts text into words.

llama.cpp has these ways built in and chooses one by `tokenizer.ggml.pre`; a file cannot bring a pattern of its own. So
the rules of tokenizer.json are compared with those of each name, and what is none of them is refused: a text would be
cut into other tokens than the model was trained on.
"""

from typing import Any

from lit_gpt.data.bpe import GPT2_PATTERN, GPT4_PATTERN
from lit_gpt.errors import UserError

_DIGITS = "digits"
"""Each digit a word of its own."""

# Source of the patterns and of what each name switches on: llama.cpp, src/llama-vocab.cpp.
_QWEN2_PATTERN = GPT4_PATTERN.replace(r"\p{N}{1,3}", r"\p{N}")
_TEKKEN_PATTERN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_GPT4O_PATTERN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?[\p{{Lu}}\p{{Lt}}\p{{Lm}}\p{{Lo}}\p{{M}}]*[\p{{Ll}}\p{{Lm}}\p{{Lo}}\p{{M}}]+{_CONTRACTIONS}"
    rf"|[^\r\n\p{{L}}\p{{N}}]?[\p{{Lu}}\p{{Lt}}\p{{Lm}}\p{{Lo}}\p{{M}}]+[\p{{Ll}}\p{{Lm}}\p{{Lo}}\p{{M}}]*{_CONTRACTIONS}"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_NAMES: dict[tuple[str, ...], tuple[str, str]] = {
    (GPT2_PATTERN,): ("gpt-2", ""),
    (_DIGITS, GPT2_PATTERN): ("smollm", ""),
    (GPT4_PATTERN,): ("dbrx", "llama-bpe"),
    (GPT4_PATTERN, _DIGITS): ("qwen2", ""),
    (_QWEN2_PATTERN,): ("qwen2", ""),
    (_TEKKEN_PATTERN,): ("", "tekken"),
    (_GPT4O_PATTERN,): ("gpt-4o", ""),
}
"""Patterns in the order in which they are applied → the name where merges decide, and the name where a word that is
itself a token is taken whole (`ignore_merges`)."""


def pre_tokenizer_name(state: dict[str, Any]) -> str:
    """Return `tokenizer.ggml.pre`.

    Args:
        state: tokenizer.json of a byte-level BPE.

    Raises:
        UserError: llama.cpp has no such way of cutting text.
    """
    normalizer = (state["normalizer"] or {}).get("type")
    if normalizer not in (None, "NFC"):
        raise _refusal(f"a normalizer of type {normalizer}")
    parts = _parts(state["pre_tokenizer"] or {})
    merged, whole = _NAMES.get(tuple(parts), ("", ""))
    name = whole if state["model"].get("ignore_merges") else merged
    if not name and not (name := merged or whole):
        raise _refusal(f"the words that it cuts, {' then '.join(parts)}")
    return name


def decides_by_merges(name: str) -> bool:
    """Whether llama.cpp joins a word's bytes by the merges alone under this name, even where the word is a token."""
    return all(name != whole for _, whole in _NAMES.values() if whole)


def _parts(rule: dict[str, Any]) -> list[str]:
    """Flatten a pre-tokenizer into the patterns that it applies."""
    kind = rule.get("type")
    if kind == "Sequence":
        return [part for inner in rule["pretokenizers"] for part in _parts(inner)]
    if kind == "ByteLevel":
        if rule.get("add_prefix_space"):
            raise _refusal("a space that it puts before each text (add_prefix_space)")
        return [GPT2_PATTERN] if rule.get("use_regex", True) else []
    if kind == "Digits" and rule.get("individual_digits"):
        return [_DIGITS]
    if kind == "Split" and rule.get("behavior") in ("Isolated", "Removed") and "Regex" in rule["pattern"]:
        if (rule["behavior"] == "Removed") != bool(rule.get("invert")):
            raise _refusal("text that it drops between words")
        return [_spelled_alike(rule["pattern"]["Regex"])]
    raise _refusal(f"a pre-tokenizer of type {kind}")


def _spelled_alike(pattern: str) -> str:
    """Bring spellings of one pattern together."""
    if pattern == r"\p{N}":
        return _DIGITS
    original = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
    return GPT2_PATTERN if pattern == original else pattern


def _refusal(what: str) -> UserError:
    return UserError(
        f"llama.cpp has no tokenizer with {what}, so a GGUF file would cut text into other tokens; use --format hf, or "
        "train with tokenizer pattern gpt2 or gpt4"
    )
