"""Text in, text out: a prompt is encoded as the start of a document and continued piece by piece."""

from collections.abc import Iterable, Iterator

import torch

from lit_gpt.data.tokenizers import Tokenizer
from lit_gpt.generation.generate import stream
from lit_gpt.models import GPT

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


def stream_text(
    model: GPT,
    tokenizer: Tokenizer,
    prompt: str = "",
    max_new_tokens: int = 200,
    temperature: float = 0.8,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | None = None,
) -> Iterator[str]:
    """Yield the continuation of a prompt as it is drawn, until the end-of-text token.

    Args:
        model: on the device where it shall run.
        tokenizer: the model's own.
        prompt: text to go on from; it stands at the start of a document, as in training.
        max_new_tokens: tokens at most.
        temperature: divides the logits; 0 takes the likeliest token.
        top_k: keep this many of the likeliest tokens.
        top_p: keep the likeliest tokens up to this much probability.
        seed: of the draws; None: another each time.

    Raises:
        UserError: at the call, for a prompt that is too long or a setting out of bounds.
    """
    ids = tokenizer.encode(prompt).tolist()
    device = next(model.parameters()).device
    healed, first_allowed = "", None
    if ids and tokenizer.decode(ids[-1:]).isspace():
        # Token healing: in training a word's token carries the space before it, so a space of its own at the end of
        # a prompt is a rare thing to go on from. It is taken back, and the first token must begin with it.
        healed = tokenizer.decode(ids[-1:])
        first_allowed = torch.zeros(model.config.vocab_size, dtype=torch.bool, device=device)
        first_allowed[tokenizer.beginning_with(ids.pop())] = True
    tokens = stream(
        model,
        torch.tensor([[tokenizer.separator_id, *ids]], device=device),
        max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        stop_tokens=[tokenizer.separator_id],
        seed=seed,
        first_allowed=first_allowed,
    )
    return _without(healed, decode_stream(tokenizer, (int(token) for token in tokens), ids))


def _without(beginning: str, pieces: Iterable[str]) -> Iterator[str]:
    """Leave out a beginning that is already printed."""
    for piece in pieces:
        common = min(len(beginning), len(piece))
        beginning, piece = beginning[common:], piece[common:]
        if piece:
            yield piece


def decode_stream(tokenizer: Tokenizer, tokens: Iterable[int], context: list[int]) -> Iterator[str]:
    """Decode tokens as they come, never half a character.

    A token may hold a part of a UTF-8 character, and some decoders treat the first token of a text differently: each
    new piece is what a token adds to the text of the tokens just before it, held back while it ends in the middle of
    a character.

    Args:
        tokenizer: whose ids they are.
        tokens: ids, ended by the end-of-text token or by their own end.
        context: ids before the first of them.

    Yields:
        Pieces of text that together are the text of all tokens.
    """
    before, pending = context[-8:], list[int]()
    for token in tokens:
        if token == tokenizer.separator_id:
            break
        pending.append(token)
        piece = _added(tokenizer, before, pending)
        if piece and not piece.endswith(REPLACEMENT):
            yield piece
            before, pending = (before + pending)[-8:], []
    if pending:
        yield _added(tokenizer, before, pending)


def _added(tokenizer: Tokenizer, before: list[int], new: list[int]) -> str:
    return tokenizer.decode(before + new)[len(tokenizer.decode(before)) :]
