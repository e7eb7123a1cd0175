"""Constrained output: before each token is sampled, tokens that would violate the format get probability zero.

Uses `llguidance` (pip install -e '.[constrain]'), an Earley parser in Rust over the tokenizer's tokens that takes about
50 µs per token. The allowed tokens are sampled as usual, so the format is followed and their relative probabilities are
kept.
"""

import json
import math
import re
import threading
import weakref
from decimal import Decimal, InvalidOperation
from typing import Any
from urllib.parse import unquote

import numpy as np
import torch
from torch import Tensor

from lit_gpt.data.tokenizers import Tokenizer
from lit_gpt.errors import UserError
from lit_gpt.extras import need
from lit_gpt.generation.request import Constraint

DEAD_END = "no token can continue the constraint"
"""Error of a request whose constraint turned out to have no completion from its current state."""
MAX_MULTIPLE = 10_000
"""Maximum least common multiple of all `multipleOf` in a schema. The library builds an automaton with this many states,
in time that grows with the square and that none of its limits bounds: 999983 took 21 s, four two-digit primes did not
finish."""
MAX_DIGITS = 40
_MULTIPLE = re.compile(r'"multipleOf"\s*:\s*([^\s,}\]]*)')
_PLACE = re.compile(r"^at \d+\(\d+\): ")
_ESCAPE = re.compile(r"\\u([0-9a-fA-F]{4})")
_LOCK = threading.Lock()
_TOKENIZERS: "weakref.WeakKeyDictionary[Tokenizer, dict[tuple[int, ...], Any]]" = weakref.WeakKeyDictionary()


class GrammarMatcher:
    """A `Matcher` for a grammar.

    Args:
        grammar: From `compile_constraint`.
        tokenizer: The library's tokenizer, from `_guidance_tokenizer`.

    Raises:
        UserError: If the library rejects the grammar.
    """

    def __init__(self, grammar: str, tokenizer: Any) -> None:
        from llguidance import LLMatcher

        self._matcher = LLMatcher(tokenizer, grammar, log_level=0)
        # The first mask takes longest, and reveals a format that no text satisfies, such as `start: start`.
        self._first: bytes | None = self._matcher.compute_bitmask()
        self._raise_errors(UserError)
        if not any(self._first):
            raise UserError("the constraint cannot be followed: no text has this form")

    def mask(self, logits: Tensor) -> Tensor:
        """Return the logits (V,) with -inf for tokens that would violate the format."""
        packed, self._first = self._first, None
        words = np.frombuffer(self._matcher.compute_bitmask() if packed is None else packed, dtype=np.uint8)
        self._raise_errors(RuntimeError)
        allowed = np.unpackbits(words, bitorder="little").astype(bool)[: logits.shape[0]]
        if not allowed.any():
            raise RuntimeError(DEAD_END)
        seen = torch.from_numpy(allowed).to(logits.device)
        if seen.shape[0] < logits.shape[0]:
            seen = torch.nn.functional.pad(seen, (0, logits.shape[0] - seen.shape[0]), value=False)
        return logits.masked_fill(~seen, -math.inf)

    def accept(self, token: int) -> bool:
        """Accept a sampled token; return True if the format is complete and nothing may follow."""
        self._matcher.consume_token(token)
        self._raise_errors(RuntimeError)
        stopped = bool(self._matcher.is_stopped())
        if stopped and not self._matcher.is_accepting():  # the parser gave up before the text was complete
            raise RuntimeError(DEAD_END)
        return stopped

    def _raise_errors(self, kind: type[Exception]) -> None:
        if self._matcher.is_error():
            reason = _first_line(self._matcher.get_error())
            # If no text is possible, the library gives its reason as a single internal identifier.
            reason = "no text has this form" if reason.isidentifier() else reason
            raise kind(f"the constraint cannot be followed: {reason}")


def build_matcher(
    constraint: Constraint, tokenizer: Tokenizer, vocab_size: int, stop_ids: tuple[int, ...] = ()
) -> GrammarMatcher:
    """Return a matcher at the beginning of a constraint's format.

    Args:
        constraint: The format.
        tokenizer: The model's tokenizer.
        vocab_size: The model's vocabulary size, V.
        stop_ids: Tokens that may end the text when the format is complete, in addition to the separator.

    Raises:
        UserError: If the extra is not installed, or the format is rejected.
    """
    grammar = compile_constraint(constraint)
    return GrammarMatcher(grammar, _guidance_tokenizer(tokenizer, vocab_size, stop_ids))


def compile_constraint(constraint: Constraint) -> str:
    """Return the library's grammar of a constraint.

    Raises:
        UserError: If the extra is not installed, or the schema, expression or grammar is rejected.
    """
    LLMatcher = need("llguidance", "constrain", "constrained output").LLMatcher
    source = constraint.source
    if constraint.kind in ("json_schema", "json_object"):
        try:
            schema = {"type": "object"} if constraint.kind == "json_object" else source
            schema = json.loads(schema) if isinstance(schema, str) else schema
            text = json.dumps(schema, ensure_ascii=False)
            _check_multiples(text)
            _check_finite(schema)
            grammar = LLMatcher.grammar_from_json_schema(text, defaults={"whitespace_flexible": False})
        except UserError:
            raise
        except ValueError as error:
            raise UserError(f"the JSON schema cannot be read: {_first_line(str(error))}") from error
    elif not isinstance(source, str):
        raise UserError(f"a {constraint.kind} constraint is a text, got {type(source).__name__}")
    elif constraint.kind == "regex":
        grammar = LLMatcher.grammar_from_regex(source)
    else:
        _check_multiples(source)  # a grammar may contain schemas, after %json
        grammar = LLMatcher.grammar_from_lark(source)
    refused, messages = LLMatcher.validate_grammar_with_warnings(grammar)
    if refused:
        reason = _first_line(messages[0])
        if constraint.kind == "regex":  # a place in the grammar that the library has made of it
            reason = _PLACE.sub("", reason)
        if "coerce_one_of" in reason:
            reason = "the branches of a oneOf overlap; write anyOf"
        raise UserError(f"the {constraint.kind} constraint is refused: {reason}")
    return str(grammar)


def _check_finite(schema: Any) -> None:
    """Reject a JSON schema that no finite value satisfies, because it requires itself.

    Which schemas have a finite value is a least fixed point over the references: at first only those without references
    are known to, then also those whose required parts are known to, until nothing changes.

    Raises:
        UserError: If the root schema has no finite value.
    """
    known: set[str] = set()

    def is_finite(part: Any) -> bool:
        if not isinstance(part, dict):
            return True
        reference = part.get("$ref")
        if isinstance(reference, str) and reference.startswith("#") and reference not in known:
            referenced.add(reference)
            return False
        properties = part.get("properties")
        required = part.get("required")
        if isinstance(properties, dict) and isinstance(required, list):
            named = [properties.get(name) for name in required if isinstance(name, str)]
            if not all(map(is_finite, named)):
                return False
        minimum = part.get("minItems", 0)
        if isinstance(minimum, int) and minimum > 0:
            first = part.get("prefixItems")
            items = [*(first if isinstance(first, list) else ()), part.get("items")]
            if not all(map(is_finite, items[:minimum])):
                return False
        if not all(is_finite(one) for one in _listed(part, "allOf")):
            return False
        return all(any(map(is_finite, _listed(part, name))) for name in ("anyOf", "oneOf") if _listed(part, name))

    while True:
        referenced: set[str] = set()
        if is_finite(schema):
            return
        # A referenced part may contain further references, so they are collected until there are no more.
        seen: set[str] = set()
        found: set[str] = set()
        while referenced - seen:
            reference = (referenced - seen).pop()
            seen.add(reference)
            if is_finite(_at(schema, reference)):
                found.add(reference)
        if not found:
            cycle = ", ".join(sorted(seen))
            raise UserError(f"no finite value follows the JSON schema: {cycle} requires itself; make a part optional")
        known |= found


def _listed(schema: dict[str, Any], name: str) -> list[Any]:
    value = schema.get(name)
    return value if isinstance(value, list) else []


def _at(schema: Any, reference: str) -> Any:
    """Return the part of a schema that a reference such as `#/$defs/Node` points to; None if it does not exist."""
    for key in reference.removeprefix("#").split("/")[1:]:
        key = unquote(key).replace("~1", "/").replace("~0", "~")
        if isinstance(schema, list) and key.isdigit() and int(key) < len(schema):
            schema = schema[int(key)]
        elif isinstance(schema, dict):
            schema = schema.get(key)
        else:
            return None
    return schema


def _guidance_tokenizer(tokenizer: Tokenizer, vocab_size: int, stop_ids: tuple[int, ...]) -> Any:
    """Return the library's tokenizer, built once because this takes a second for a large vocabulary."""
    from llguidance import LLTokenizer

    ends = (*tokenizer.stop_ids, *sorted(set(stop_ids) - set(tokenizer.stop_ids)))
    with _LOCK:
        known = _TOKENIZERS.setdefault(tokenizer, {})
        if ends not in known:
            text = tokenizer.folder_files()["tokenizer.json"].decode()
            known[ends] = LLTokenizer(text, n_vocab=max(vocab_size, tokenizer.vocab_size), eos_token=list(ends))
        return known[ends]


def _check_multiples(text: str) -> None:
    """Reject a schema (as JSON text) or a grammar with schemas in it, if its `multipleOf` would take too long.

    Raises:
        UserError: Their least common multiple is too large, or one is not a positive number.
    """
    plain = _ESCAPE.sub(lambda found: chr(int(found[1], 16)), text)
    together = 1
    for written in set(_MULTIPLE.findall(plain)):
        try:
            number = Decimal(written)
        except InvalidOperation:
            continue  # no number: a property's own name, or refused by the library
        if not number.is_finite() or len(number.as_tuple().digits) > MAX_DIGITS:
            raise UserError(f"multipleOf has more than {MAX_DIGITS} digits; ask for a simpler number")
        digits = "".join(map(str, number.normalize().as_tuple().digits))
        together = math.lcm(together, max(1, int(digits)))
        if together > MAX_MULTIPLE:
            raise UserError(
                f"multipleOf {written}: the least common multiple of all of a form is {together}, at most "
                f"{MAX_MULTIPLE} is allowed; leave one out"
            )


def _first_line(text: str) -> str:
    """Return the most informative line of a message: for a parse error the last one, else the first."""
    lines = [line.strip() for line in text.strip().splitlines()] or ["no reason given"]
    reason = next((line.removeprefix("error: ") for line in lines if line.startswith("error: ")), None)
    return lines[0] if reason is None else f"{lines[0].rstrip(':')}: {reason}"
