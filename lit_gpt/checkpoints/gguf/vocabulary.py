"""The tokenizer inside a GGUF file.

llama.cpp supports two kinds of BPE: byte-level (`gpt2`: tokens in GPT-2's byte alphabet, with merges) and SentencePiece
(`llama`: pieces with `▁` for a space and bytes as `<0x0A>`, merged by score). The score of a SentencePiece token is its
negated position in the list of merges, so that pairs are merged in the same order.

The pre-tokenization patterns of byte-level BPE are built into llama.cpp and chosen by name (`tokenizer.ggml.pre`); a
file cannot define its own. So the rules in tokenizer.json are compared with those of each name, and a tokenizer that
matches none is rejected, because llama.cpp would tokenize text differently than in training.
"""

import json
import re
from collections.abc import Sequence
from typing import Any

from lit_gpt.data.bpe import GPT2_PATTERN, GPT4_PATTERN
from lit_gpt.data.chat import template_of
from lit_gpt.data.chat.template import has_template
from lit_gpt.data.tokenizers import Tokenizer
from lit_gpt.errors import UserError
from lit_gpt.models.families.family import MetadataValue

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""`gguf.TokenType`."""
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_SPACE = "▁"

_DIGITS = "digits"
"""Represents the rule that each digit is a word."""

# Source of the patterns and of the rules that each name selects: llama.cpp, src/llama-vocab.cpp.
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
"""Patterns in order of application → the name if words are always built by merges, and the name if a word that is a
token is used directly (`ignore_merges`)."""


def vocabulary(tokenizer: Tokenizer, vocab_size: int, stop_ids: Sequence[int]) -> dict[str, MetadataValue]:
    """Return the key-value pairs of a tokenizer.

    Args:
        tokenizer: The model's tokenizer, with the `opening_ids` that the model expects.
        vocab_size: Rows of the embedding; rows without a token are marked as unused.
        stop_ids: Tokens that end a text or a chat turn, the end of text first.

    Raises:
        UserError: If llama.cpp would tokenize text differently.
    """
    state = json.loads(tokenizer.backend.to_str())
    if state["model"]["type"] != "BPE":
        raise UserError(f"llama.cpp reads BPE tokenizers, but this one is {state['model']['type']}; use --format hf")
    pieces = state["model"].get("byte_fallback", False)
    tokens, types = _tokens(tokenizer, state, vocab_size, pieces)
    values: dict[str, MetadataValue] = {"tokens": tokens, "token_type": types}
    merges = [pair.split(" ", 1) if isinstance(pair, str) else pair for pair in state["model"]["merges"]]
    if pieces:
        values |= {"model": "llama", "pre": "default", "scores": _scores(tokens, types, merges)}
        values["add_space_prefix"] = _adds_space_before(state)
        values |= _token_id("unknown", tokenizer.backend.token_to_id(state["model"]["unk_token"] or "<unk>"))
    else:
        pre = pre_tokenizer_name(state)
        if bool(state["model"].get("ignore_merges")) == decides_by_merges(pre):
            _check_reachable(state, merges)
        values |= {"model": "gpt2", "pre": pre, "merges": [" ".join(pair) for pair in merges]}
    opening = tokenizer.opening_ids
    if len(opening) > 1:
        raise UserError(f"llama.cpp starts a text with at most one token, but this model uses {len(opening)}")
    values |= {"add_bos_token": bool(begins_with(tokenizer)), "add_eos_token": False}
    values |= _token_id("bos", opening[0] if opening else None)
    for name, index in zip(("eos", "eot", "eom"), dict.fromkeys(stop_ids), strict=False):
        values |= _token_id(name, index)
    named = {f"tokenizer.ggml.{key}": value for key, value in values.items()}
    return named | ({"tokenizer.chat_template": _plain_jinja(tokenizer)} if has_template(tokenizer) else {})


def begins_with(tokenizer: Tokenizer) -> tuple[int, ...]:
    """Return the tokens that llama.cpp must prepend to every text.

    llama.cpp also prepends them to conversations. Conversations in lit_gpt's training start with the template's own
    first token, so nothing is prepended for a tokenizer with a template that was made by lit_gpt.
    """
    return () if has_template(tokenizer) and not tokenizer.is_published else tokenizer.opening_ids


def _tokens(tokenizer: Tokenizer, state: dict[str, Any], vocab_size: int, pieces: bool) -> tuple[list[str], list[int]]:
    tokens = [f"[PAD{index}]" for index in range(vocab_size)]
    types = [UNUSED] * vocab_size
    added = {token["id"]: token for token in state["added_tokens"]}
    for token, index in tokenizer.backend.get_vocab(with_added_tokens=True).items():
        if index >= vocab_size:  # special tokens without an embedding row, which the bundle warned about
            continue
        tokens[index], types[index] = token, NORMAL
        if index in added:
            types[index] = CONTROL if added[index]["special"] else USER_DEFINED
        elif pieces and _BYTE.fullmatch(token):
            types[index] = BYTE
        if types[index] == USER_DEFINED:
            tokens[index] = token.replace(_SPACE, " ")
        if pieces and token == (state["model"]["unk_token"] or "<unk>"):
            types[index] = UNKNOWN
    return tokens, types


def _scores(tokens: list[str], types: list[int], merges: list[list[str]]) -> list[float]:
    """Return a score for each token, minus the index of the first merge that produces it.

    Raises:
        UserError: If merges with the same result are not adjacent, so that no score expresses their order.
    """
    place: dict[str, int] = {}
    last = ""
    for number, (left, right) in enumerate(merges):
        token = left + right
        if token in place and token != last:
            raise UserError(
                f"the merges of this tokenizer that produce {token!r} are not adjacent, so SentencePiece's scores "
                "cannot express their order; use --format hf"
            )
        place.setdefault(token, number)
        last = token
    never = -float(len(merges) + 1)
    return [
        0.0 if kind in (BYTE, UNKNOWN, CONTROL) else -float(place[token]) if token in place else never
        for token, kind in zip(tokens, types, strict=True)
    ]


def _adds_space_before(state: dict[str, Any]) -> bool:
    """Return whether a space is prepended to a text (as in Llama 2 and Mistral, but not Gemma).

    Raises:
        UserError: If the tokenizer has a rule that llama.cpp's SentencePiece lacks.
    """
    rules = [rule for rule in (state["normalizer"], state["pre_tokenizer"]) if rule]
    found = False
    while rules:
        rule = rules.pop()
        kind = rule["type"]
        if kind == "Sequence":
            rules += rule.get("normalizers") or rule.get("pretokenizers") or []
        elif kind == "Metaspace":
            found = found or rule.get("prepend_scheme", "always") != "never"
        elif kind == "Prepend":
            found = True
        elif kind == "Split" and rule["pattern"] == {"String": " "}:
            pass  # has no effect, because spaces have already been replaced by ▁ (Gemma)
        elif not (kind == "Replace" and rule["pattern"] == {"String": " "} and rule["content"] == _SPACE):
            raise UserError(f"llama.cpp's SentencePiece has no rule of type {kind}; use --format hf")
    return found


def _check_reachable(state: dict[str, Any], merges: list[list[str]]) -> None:
    """Raise unless every token is a result of merges.

    Only then do words that are used directly as tokens, and words that are built by merges, always agree, so that it
    does not matter which of these rules the pre-tokenizer's name implies.
    """
    from tokenizers import models

    added = {token["content"] for token in state["added_tokens"]}
    by_merges = models.BPE(vocab=state["model"]["vocab"], merges=[(left, right) for left, right in merges])
    for token in state["model"]["vocab"]:
        if token not in added and len(by_merges.tokenize(token)) != 1:
            raise UserError(
                f"the token {token!r} of this tokenizer is not a result of its merges, and llama.cpp treats "
                "such tokens differently with this pre-tokenizer; use --format hf"
            )


def _plain_jinja(tokenizer: Tokenizer) -> str:
    """Return the chat template without transformers' `generation` tags, which plain Jinja does not support."""
    ended = re.sub(r"(\{%[-+]?\s*)endgeneration(\s*[-+]?%\})", r"\1endif\2", template_of(tokenizer).source)
    return re.sub(r"(\{%[-+]?\s*)generation(\s*[-+]?%\})", r"\1if true\2", ended)


def _token_id(name: str, index: int | None) -> dict[str, MetadataValue]:
    return {} if index is None else {f"{name}_token_id": index}


def pre_tokenizer_name(state: dict[str, Any]) -> str:
    """Return llama.cpp's name of a pre-tokenizer, `tokenizer.ggml.pre`.

    Args:
        state: Contents of tokenizer.json, of a byte-level BPE.

    Raises:
        UserError: If llama.cpp has no equivalent pre-tokenizer.
    """
    normalizer = (state["normalizer"] or {}).get("type")
    if normalizer not in (None, "NFC"):
        raise _no_pre_tokenizer(f"a normalizer of type {normalizer}")
    parts = _parts(state["pre_tokenizer"] or {})
    merged, whole = _NAMES.get(tuple(parts), ("", ""))
    name = whole if state["model"].get("ignore_merges") else merged
    if not name and not (name := merged or whole):
        raise _no_pre_tokenizer(f"the pattern {' followed by '.join(parts)}")
    return name


def decides_by_merges(name: str) -> bool:
    """Return whether llama.cpp, under this name, builds words only by merges, even words that are tokens."""
    return all(name != whole for _, whole in _NAMES.values() if whole)


def _parts(rule: dict[str, Any]) -> list[str]:
    """Return the patterns that a pre-tokenizer applies, in order."""
    kind = rule.get("type")
    if kind == "Sequence":
        return [part for inner in rule["pretokenizers"] for part in _parts(inner)]
    if kind == "ByteLevel":
        if rule.get("add_prefix_space"):
            raise _no_pre_tokenizer("a space prepended to each text (add_prefix_space)")
        return [GPT2_PATTERN] if rule.get("use_regex", True) else []
    if kind == "Digits" and rule.get("individual_digits"):
        return [_DIGITS]
    if kind == "Split" and rule.get("behavior") in ("Isolated", "Removed") and "Regex" in rule["pattern"]:
        if (rule["behavior"] == "Removed") != bool(rule.get("invert")):
            raise _no_pre_tokenizer("a rule that drops text between words")
        return [_canonical(rule["pattern"]["Regex"])]
    raise _no_pre_tokenizer(f"a pre-tokenizer of type {kind}")


def _canonical(pattern: str) -> str:
    """Return the canonical form of a pattern that has several equivalent forms."""
    if pattern == r"\p{N}":
        return _DIGITS
    original = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
    return GPT2_PATTERN if pattern == original else pattern


def _no_pre_tokenizer(what: str) -> UserError:
    return UserError(
        f"llama.cpp has no tokenizer with {what}, so it would tokenize text differently; use --format hf, or train a "
        "tokenizer with pattern gpt2 or gpt4"
    )
