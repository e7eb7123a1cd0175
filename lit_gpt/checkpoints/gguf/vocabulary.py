"""The tokenizer inside a GGUF file.

llama.cpp knows two of the kinds that language models use: byte-level BPE (`gpt2`: tokens in GPT-2's alphabet of bytes,
and merges) and SentencePiece's (`llama`: pieces with `▁` for a space, bytes as `<0x0A>`, joined by score). A token of
the second kind gets as its score the place of its merges among all, which gives the order in which pairs are joined.
"""

import json
import re
from collections.abc import Sequence
from typing import Any

from lit_gpt.checkpoints.gguf.metadata import Value
from lit_gpt.checkpoints.gguf.pre_tokenizers import decides_by_merges, pre_tokenizer_name
from lit_gpt.data.chat import template_of
from lit_gpt.data.chat.template import has_template
from lit_gpt.data.tokenizers import Tokenizer
from lit_gpt.errors import UserError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""`gguf.TokenType`."""
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_SPACE = "▁"


def vocabulary(tokenizer: Tokenizer, vocab_size: int, stop_ids: Sequence[int]) -> dict[str, Value]:
    """Return the key-value pairs of a tokenizer.

    Args:
        tokenizer: The model's, its `opening_ids` as the model expects them.
        vocab_size: Rows of the embedding; those beyond the tokenizer's tokens are named as unused.
        stop_ids: Tokens that end a text or an answer, the end of text first.

    Raises:
        UserError: llama.cpp would cut text into other tokens.
    """
    state = json.loads(tokenizer.backend.to_str())
    if state["model"]["type"] != "BPE":
        raise UserError(
            f"llama.cpp's language models read BPE tokenizers, and this one is {state['model']['type']}; "
            "use --format hf"
        )
    pieces = state["model"].get("byte_fallback", False)
    tokens, types = _tokens(tokenizer, state, vocab_size, pieces)
    values: dict[str, Value] = {"tokens": tokens, "token_type": types}
    merges = [pair.split(" ", 1) if isinstance(pair, str) else pair for pair in state["model"]["merges"]]
    if pieces:
        values |= {"model": "llama", "pre": "default", "scores": _scores(tokens, types, merges)}
        values["add_space_prefix"] = _puts_space_before(state)
        values |= _token_id("unknown", tokenizer.backend.token_to_id(state["model"]["unk_token"] or "<unk>"))
    else:
        pre = pre_tokenizer_name(state)
        if bool(state["model"].get("ignore_merges")) == decides_by_merges(pre):
            _check_reachable(state, merges)
        values |= {"model": "gpt2", "pre": pre, "merges": [" ".join(pair) for pair in merges]}
    opening = tokenizer.opening_ids
    if len(opening) > 1:
        raise UserError(f"llama.cpp begins a text with one token at most, and this model with {len(opening)}")
    values |= {"add_bos_token": bool(begins_with(tokenizer)), "add_eos_token": False}
    values |= _token_id("bos", opening[0] if opening else None)
    for name, index in zip(("eos", "eot", "eom"), dict.fromkeys(stop_ids), strict=False):
        values |= _token_id(name, index)
    named = {f"tokenizer.ggml.{key}": value for key, value in values.items()}
    return named | ({"tokenizer.chat_template": _plain_jinja(tokenizer)} if has_template(tokenizer) else {})


def begins_with(tokenizer: Tokenizer) -> tuple[int, ...]:
    """Return what llama.cpp shall put before every text that it reads.

    It does so before conversations too. Those that a model is trained on here begin with the template's own first
    token, so a model with a template of ours is not to see the end of text before it.
    """
    return () if has_template(tokenizer) and not tokenizer.is_published else tokenizer.opening_ids


def _tokens(tokenizer: Tokenizer, state: dict[str, Any], vocab_size: int, pieces: bool) -> tuple[list[str], list[int]]:
    tokens = [f"[PAD{index}]" for index in range(vocab_size)]
    types = [UNUSED] * vocab_size
    added = {token["id"]: token for token in state["added_tokens"]}
    for token, index in tokenizer.backend.get_vocab(with_added_tokens=True).items():
        if index >= vocab_size:  # special tokens that the model cannot read, which the bundle warned of
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
    """The higher the sooner: minus the place of the first merge that gives the token.

    Raises:
        UserError: merges that give one token are not side by side, so that no score of a token says their order.
    """
    place: dict[str, int] = {}
    last = ""
    for number, (left, right) in enumerate(merges):
        token = left + right
        if token in place and token != last:
            raise UserError(
                f"the merges of this tokenizer that give {token!r} are not side by side, so SentencePiece's scores "
                "cannot say their order; use --format hf"
            )
        place.setdefault(token, number)
        last = token
    never = -float(len(merges) + 1)
    return [
        0.0 if kind in (BYTE, UNKNOWN, CONTROL) else -float(place[token]) if token in place else never
        for token, kind in zip(tokens, types, strict=True)
    ]


def _puts_space_before(state: dict[str, Any]) -> bool:
    """Whether a space is put before a text (Llama 2, Mistral; Gemma does not).

    Raises:
        UserError: the tokenizer changes text in a way that SentencePiece in llama.cpp does not.
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
            pass  # after spaces have become ▁ it cuts nothing (Gemma)
        elif not (kind == "Replace" and rule["pattern"] == {"String": " "} and rule["content"] == _SPACE):
            raise UserError(f"llama.cpp's SentencePiece has no rule of type {kind}; use --format hf")
    return found


def _check_reachable(state: dict[str, Any], merges: list[list[str]]) -> None:
    """Refuse a vocabulary where taking a word whole and joining it by merges may differ.

    They are the same if merges bring every token about; only then does it not matter which of the two the name means.
    """
    from tokenizers import models

    added = {token["content"] for token in state["added_tokens"]}
    by_merges = models.BPE(vocab=state["model"]["vocab"], merges=[(left, right) for left, right in merges])
    for token in state["model"]["vocab"]:
        if token not in added and len(by_merges.tokenize(token)) != 1:
            raise UserError(
                f"the token {token!r} of this tokenizer is no result of its merges, and llama.cpp has the two rules "
                "for such tokens the other way round for this way of cutting words; use --format hf"
            )


def _plain_jinja(tokenizer: Tokenizer) -> str:
    """The chat template without transformers' `generation` blocks: others keep what is in them and do nothing."""
    ended = re.sub(r"(\{%[-+]?\s*)endgeneration(\s*[-+]?%\})", r"\1endif\2", template_of(tokenizer).source)
    return re.sub(r"(\{%[-+]?\s*)generation(\s*[-+]?%\})", r"\1if true\2", ended)


def _token_id(name: str, index: int | None) -> dict[str, Value]:
    return {} if index is None else {f"{name}_token_id": index}
