"""Pairs of texts as pairs of token sequences, cut as lm-eval cuts them.

Tokens of two texts are not the tokens of the two together: a word's token carries the space before it. So spaces at
the end of a context move to the front of its continuation, context and continuation are encoded as one, and the
continuation is what comes after as many tokens as the context alone has.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from lit_gpt.data.tokenizers import Tokenizer
from lit_gpt.generation.text import opened

AT_ONCE = 1024
"""Whole texts whose tokens are in memory."""


class TextPairs:
    """Encodes contexts and continuations.

    Args:
        tokenizer: The model's own.
        opening_ids: What each text begins with; None = what texts began with in training.
        parse_special: Whether a special token spelled out in a text becomes that token, as chat templates need it.
    """

    def __init__(
        self, tokenizer: Tokenizer, opening_ids: Sequence[int] | None = None, parse_special: bool = False
    ) -> None:
        self.tokenizer, self.parse_special = tokenizer, parse_special
        self.opening_ids = list(tokenizer.opening_ids if opening_ids is None else opening_ids)

    def encode(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[list[int], list[int]]]:
        """Ids of contexts, with what opens a text, and of continuations.

        An empty context becomes what opens a text, or the separator. Where the last token of a context swallows the
        whole continuation, the continuation is encoded alone.
        """
        moved = [_with_spaces_moved(context, continuation) for context, continuation in pairs]
        contexts = list(dict.fromkeys(context for context, _ in moved))
        ids = dict(zip(contexts, self.encode_texts(contexts), strict=True))
        lengths = {context: len(found) for context, found in ids.items()}
        opened_ids = {context: self.open(found) for context, found in ids.items()}  # one list for all its continuations
        encoded = []
        for start in range(0, len(moved), AT_ONCE):
            some = moved[start : start + AT_ONCE]
            wholes = self.encode_texts([context + continuation for context, continuation in some])
            for (context, continuation), whole in zip(some, wholes, strict=True):
                after = whole[lengths[context] :]
                if not after and continuation:
                    after = self.encode_texts([continuation])[0]
                encoded.append((opened_ids[context], after))
        return encoded

    def encode_texts(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of texts as they stand, without what opens them."""
        if self.parse_special:
            return [encoding.ids for encoding in self._parsing.encode_batch_fast(list(texts), add_special_tokens=False)]
        return [ids.tolist() for ids in self.tokenizer.encode_batch(texts)]

    def open(self, ids: list[int]) -> list[int]:
        """A text as the model reads it; one that a chat template has opened already stays as it is."""
        if self.opening_ids and self.parse_special and ids[: len(self.opening_ids)] == self.opening_ids:
            return ids
        return [*self.opening_ids, *ids] or opened(self.tokenizer, [])

    @cached_property
    def _parsing(self) -> Any:
        """A copy that recognises special tokens; ours for training data does not."""
        import tokenizers

        backend = tokenizers.Tokenizer.from_str(self.tokenizer.backend.to_str())
        backend.encode_special_tokens = False
        return backend


def _with_spaces_moved(context: str, continuation: str) -> tuple[str, str]:
    bare = context.rstrip()
    return bare, context[len(bare) :] + continuation
