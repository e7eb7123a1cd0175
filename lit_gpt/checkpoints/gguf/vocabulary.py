"""The tokenizer inside a GGUF file.

llama.cpp supports two kinds of BPE: byte-level (`gpt2`: tokens in GPT-2's byte alphabet, with merges) and SentencePiece
(`llama`: pieces with `▁` for a space and bytes as `<0x0A>`, merged by score). The score of a SentencePiece token is its
negated position in the list of merges, so that pairs are merged in the same order.

The pre-tokenization patterns of byte-level BPE are built into llama.cpp and chosen by name (`tokenizer.ggml.pre`); a
file cannot define its own. So the rules in tokenizer.json are compared with those of each name, and a tokenizer that
matches none is rejected, because llama.cpp would tokenize text differently than in training. Reading a file (the second
part of this module) is the inverse: its pre-tokenizer's name selects rules, and scores are converted to merges.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lit_gpt.data.chat import template_of
from lit_gpt.data.chat.template import has_template
from lit_gpt.data.compiled_bpe import (
    GPT2_PATTERN,
    GPT4_PATTERN,
    GPT4O_PATTERN,
    QWEN2_PATTERN,
    TEKKEN_PATTERN,
    canonical_pattern,
)
from lit_gpt.data.tokenizers import Tokenizer
from lit_gpt.errors import UserError
from lit_gpt.models.families.family import MetadataValue

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""`gguf.TokenType`."""
_PREFIX, _TEMPLATE = "tokenizer.ggml.", "tokenizer.chat_template"
_SPECIAL = ("bos", "eos", "eot", "eom", "unknown", "padding")
"""Special tokens, whose ids have the keys `<name>_token_id`."""
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_SPACE = "▁"

_DIGITS = "digits"
"""Stands for the rule that each digit is a separate word."""

# Source of the patterns and of the rules that each name selects: llama.cpp, src/llama-vocab.cpp.
_NAMES: dict[tuple[str, ...], tuple[str, str]] = {
    (GPT2_PATTERN,): ("gpt-2", ""),
    (_DIGITS, GPT2_PATTERN): ("smollm", ""),
    (GPT4_PATTERN,): ("dbrx", "llama-bpe"),
    (GPT4_PATTERN, _DIGITS): ("qwen2", ""),
    (QWEN2_PATTERN,): ("qwen2", ""),
    (TEKKEN_PATTERN,): ("", "tekken"),
    (GPT4O_PATTERN,): ("gpt-4o", ""),
}
"""Patterns in order of application → the name if words are always built by merges, and the name if a word that is a
token is used directly (`ignore_merges`)."""
_ALIASES = {
    "gpt-2": ("phi-2", "mpt", "olmo", "jais", "trillion", "granite-docling", "gigachat", "a.x-4.0", "mellum"),
    "smollm": ("starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b", "mellum2"),
    "dbrx": ("smaug-bpe", "chatglm-bpe"),
    "llama-bpe": ("llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "glm4", "glm5"),
    "qwen2": ("stablelm2", "deepseek-r1-qwen", "megrez", "hunyuan", "solar-open", "grok-2", "kormo"),
    "gpt-4o": ("llama4", "kanana2", "minimax-m2"),
}
"""Aliases under which llama.cpp applies the same rules; they are read but never written."""
_PRE_TOKENIZERS_ADDING_BOS = (
    "llama-bpe",
    "llama3",
    "llama-v3",
    "falcon3",
    "falcon-h1",
    "pixtral",
    "midm-2.0",
    "lfm2",
    "tekken",
)
"""Pre-tokenizer names for which llama.cpp prepends the BOS token by default (unless the file says otherwise)."""


def vocabulary(tokenizer: Tokenizer, vocab_size: int, stop_ids: Sequence[int]) -> dict[str, MetadataValue]:
    """Return the key-value pairs of a tokenizer.

    Args:
        tokenizer: The model's tokenizer, with the `opening_ids` that the model expects.
        vocab_size: Number of rows of the embedding; rows without a token are marked as unused.
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
        if bool(state["model"].get("ignore_merges")) == always_applies_merges(pre):
            _check_reachable(state, merges)
        values |= {"model": "gpt2", "pre": pre, "merges": [" ".join(pair) for pair in merges]}
    opening = tokenizer.opening_ids
    if len(opening) > 1:
        raise UserError(f"llama.cpp starts a text with at most one token, but this model uses {len(opening)}")
    values |= {"add_bos_token": bool(begins_with(tokenizer)), "add_eos_token": False}
    values |= _token_id("bos", opening[0] if opening else None)
    for name, index in zip(("eos", "eot", "eom"), dict.fromkeys(stop_ids), strict=False):
        values |= _token_id(name, index)
    named = {f"{_PREFIX}{key}": value for key, value in values.items()}
    return named | ({_TEMPLATE: _plain_jinja(tokenizer)} if has_template(tokenizer) else {})


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
        if index >= vocab_size:  # special tokens without an embedding row; the bundle has warned about them
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
    position: dict[str, int] = {}
    last = ""
    for number, (left, right) in enumerate(merges):
        token = left + right
        if token in position and token != last:
            raise UserError(
                f"the merges of this tokenizer that produce {token!r} are not adjacent, so SentencePiece's scores "
                "cannot express their order; use --format hf"
            )
        position.setdefault(token, number)
        last = token
    never = -float(len(merges) + 1)
    return [
        0.0 if kind in (BYTE, UNKNOWN, CONTROL) else -float(position[token]) if token in position else never
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


def always_applies_merges(name: str) -> bool:
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
        pattern = rule["pattern"]["Regex"]
        return [_DIGITS if pattern == r"\p{N}" else canonical_pattern(pattern)]
    raise _no_pre_tokenizer(f"a pre-tokenizer of type {kind}")


def _no_pre_tokenizer(what: str) -> UserError:
    return UserError(
        f"llama.cpp has no tokenizer with {what}, so it would tokenize text differently; use --format hf, or train a "
        "tokenizer with pattern gpt2 or gpt4"
    )


# ------------------------------------------------------------------ reading


@dataclass(frozen=True)
class ReadVocabulary:
    """The tokenizer of a GGUF file as the files of a Hugging Face folder."""

    files: dict[str, bytes]
    """Name and content of each file of the folder."""
    token_ids: dict[str, Any]
    """IDs of special tokens as in config.json; a list if several tokens end a text."""


def read_vocabulary(metadata: Mapping[str, Any], vocab_size: int) -> ReadVocabulary | None:
    """Return the tokenizer that a file's key-value pairs describe; None if they describe none.

    Args:
        metadata: The file's key-value pairs.
        vocab_size: Number of rows of the embedding.

    Raises:
        UserError: If its pre-tokenizer is unknown, or it does not fit the model.
    """
    values = {key.removeprefix(_PREFIX): value for key, value in metadata.items() if key.startswith(_PREFIX)}
    kind = values.get("model", "none")
    if kind == "none":
        return None
    if kind not in ("gpt2", "llama"):
        raise UserError(f"its tokenizer is of type {kind!r}; lit_gpt reads gpt2 (byte-level) and llama (SentencePiece)")
    tokens = _list(values, "tokens", str)
    if len(tokens) != vocab_size:
        raise UserError(
            f"its tokenizer has {len(tokens):,} tokens, but its embedding has {vocab_size:,} rows; download it again"
        )
    types = _list(values, "token_type", int, [NORMAL] * len(tokens))
    pieces = kind == "llama"
    rules = _piece_rules(values, tokens, types) if pieces else _byte_level_rules(values)
    defaults = {"bos": 1, "eos": 2, "unknown": 0} if pieces else {}
    ids = {name: _special(values, name, len(tokens), defaults.get(name)) for name in _SPECIAL}
    adds = {"bos": values.get("add_bos_token", pieces or values.get("pre") in _PRE_TOKENIZERS_ADDING_BOS)}
    adds["eos"] = values.get("add_eos_token", False)
    state = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            _added(index, token, kind == CONTROL)
            for index, (token, kind) in enumerate(zip(tokens, types, strict=True))
            if kind in (CONTROL, USER_DEFINED) or index == ids["unknown"]
        ],
        **rules,
        "post_processor": _template(tokens, *(ids[name] if adds[name] else None for name in ("bos", "eos"))),
    }
    state["model"]["vocab"] = {
        token: index for index, (token, kind) in enumerate(zip(tokens, types, strict=True)) if kind != UNUSED
    }
    if pieces:
        state["model"]["unk_token"] = None if ids["unknown"] is None else tokens[ids["unknown"]]
    content = json.dumps(state, ensure_ascii=False).encode()
    _check_opens(content)
    names = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "add_bos_token": adds["bos"],
        "model_max_length": 1 << 30,
        **{key: tokens[index] for name, key in names.items() if (index := ids[name]) is not None},
    }
    files = {"tokenizer.json": content, "tokenizer_config.json": (json.dumps(config, indent=2) + "\n").encode()}
    if isinstance(template := metadata.get(_TEMPLATE), str):
        files["chat_template.jinja"] = template.encode()
    ends = list(dict.fromkeys(ids[name] for name in ("eos", "eot", "eom") if ids[name] is not None))
    found = {"bos_token_id": ids["bos"], "eos_token_id": ends if len(ends) > 1 else next(iter(ends), None)}
    found["pad_token_id"] = ids["padding"]
    return ReadVocabulary(files, {key: value for key, value in found.items() if value is not None})


def _list(values: Mapping[str, Any], key: str, kind: type, default: list[Any] | None = None) -> list[Any]:
    found = values.get(key, default)
    if not isinstance(found, list) or not all(type(value) is kind for value in found):
        raise UserError(f"its tokenizer has no list of {key}; download it again")
    if key in ("token_type", "scores") and len(found) != len(values["tokens"]):
        raise UserError(
            f"its tokenizer has {len(values['tokens']):,} tokens but {len(found):,} {key}; download it again"
        )
    return found


def _special(values: Mapping[str, Any], name: str, count: int, default: int | None) -> int | None:
    index = values.get(f"{name}_token_id", default)
    if index is not None and not (type(index) is int and 0 <= index < count):
        raise UserError(f"its tokenizer has {name}_token_id {index!r}, which is not one of its {count:,} tokens")
    return index


def _added(index: int, token: str, special: bool) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": index, "content": token, **flags, "special": special}


def _bpe(merges: list[list[str]], **differences: Any) -> dict[str, Any]:
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        "vocab": {},
        "merges": merges,
        **differences,
    }


def _byte_level_rules(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the rules of a byte-level BPE, selected by the name of its pre-tokenizer."""
    name = values.get("pre")
    canonical_name = next((canonical for canonical, aliases in _ALIASES.items() if name in aliases), name)
    found = {written: parts for parts, names in _NAMES.items() for written in names if written}
    if canonical_name not in found:
        known = sorted({*found, *(alias for aliases in _ALIASES.values() for alias in aliases)})
        raise UserError(f"its pre-tokenizer is {name!r}, which lit_gpt does not support (only {', '.join(known)})")
    *rules, last = [_pre_tokenizer(part) for part in found[canonical_name]]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    rules += [last] if last == byte_level | {"use_regex": True} else [last, byte_level]
    merges = _list(values, "merges", str)
    pairs = [[merge[:cut], merge[cut + 1 :]] for merge in merges for cut in (merge.find(" ", 1),)]
    return {
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": rules},
        "decoder": byte_level | {"use_regex": True},
        "model": _bpe(pairs, ignore_merges=not always_applies_merges(canonical_name)),
    }


def _pre_tokenizer(part: str) -> dict[str, Any]:
    if part == _DIGITS:
        return {"type": "Digits", "individual_digits": True}
    if part == GPT2_PATTERN:  # built into `tokenizers`, which is faster
        return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {"type": "Split", "pattern": {"Regex": part}, "behavior": "Isolated", "invert": False}


def _piece_rules(values: Mapping[str, Any], tokens: list[str], types: list[int]) -> dict[str, Any]:
    """Return the rules of a SentencePiece BPE, with the merges that its scores imply.

    Every pair of tokens whose concatenation is a token is a merge, ordered by the score of the result, as in
    SentencePiece; pairs with the same result are ordered by their ids (as in transformers' `SentencePieceExtractor`).
    """
    scores = _list(values, "scores", float)
    ids = {token: index for index, token in enumerate(tokens) if types[index] == NORMAL}
    ranked: list[tuple[float, int, int, int]] = []
    for token, index in ids.items():
        for cut in range(1, len(token)):
            left, right = ids.get(token[:cut]), ids.get(token[cut:])
            if left is not None and right is not None:
                ranked.append((-scores[index], index, left, right))
    merges = [[tokens[left], tokens[right]] for _, _, left, right in sorted(ranked)]
    space = values.get("add_space_prefix", True)
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
    prepend = [{"type": "Prepend", "prepend": _SPACE}] if space else []
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if space else []
    decoders = [
        {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
        *strip,
    ]
    return {
        "normalizer": {"type": "Sequence", "normalizers": [*prepend, replace]},
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": _bpe(merges, byte_fallback=BYTE in types, fuse_unk=True),
    }


def _template(tokens: list[str], bos: int | None, eos: int | None) -> dict[str, Any] | None:
    """Return the rule that adds tokens before and after a text."""
    if bos is None and eos is None:
        return None
    text = {"Sequence": {"id": "A", "type_id": 0}}
    before, after = (
        [] if index is None else [{"SpecialToken": {"id": tokens[index], "type_id": 0}}] for index in (bos, eos)
    )
    second = {"Sequence": {"id": "B", "type_id": 1}}
    special = {
        tokens[index]: {"id": tokens[index], "ids": [index], "tokens": [tokens[index]]}
        for index in (bos, eos)
        if index is not None
    }
    return {
        "type": "TemplateProcessing",
        "single": [*before, text, *after],
        "pair": [*before, text, *after, *before, second, *after],
        "special_tokens": special,
    }


def _check_opens(content: bytes) -> None:
    import tokenizers

    try:
        tokenizers.Tokenizer.from_str(content.decode())
    except Exception as error:  # the Rust extension raises bare Exception
        raise UserError(f"its tokenizer is damaged: {str(error).splitlines()[0]}; download it again") from error
