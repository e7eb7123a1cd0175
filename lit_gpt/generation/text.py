"""Text in, text out: a prompt is encoded as the start of a document and continued piece by piece."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import torch

from lit_gpt.data.tokenizers import Tokenizer
from lit_gpt.errors import UserError
from lit_gpt.generation.detokenizer import Detokenizer
from lit_gpt.generation.engine import Engine
from lit_gpt.generation.generate import stream
from lit_gpt.generation.params import Completion, SamplingParams, TokenEvent
from lit_gpt.generation.request import AllowedFirst, Matcher
from lit_gpt.models import GPT


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
        torch.tensor([opened(tokenizer, ids)], device=device),
        max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        stop_tokens=tokenizer.stop_ids,
        seed=seed,
        first_allowed=first_allowed,
    )
    return _without(healed, decode_stream(tokenizer, (int(token) for token in tokens), ids))


def stream_with(engine: Engine, prompt: str, params: SamplingParams, request_id: str = "text") -> Iterator[str]:
    """Yield the continuation of a prompt, which stands at the start of a document, as an engine writes it.

    Args:
        engine: With nothing else to do.
        prompt: Text to go on from.
        params: How to draw and where to end.
        request_id: Name of the request meanwhile.

    Raises:
        UserError: For a prompt that is too long.
    """
    ids, healed, matcher = _opening(engine, prompt, params)
    engine.add(ids, params, request_id, matcher)
    return _without(healed, _pieces(engine, request_id))


def complete_texts(engine: Engine, prompts: Sequence[str], params: Sequence[SamplingParams]) -> Iterator[Completion]:
    """Continue many prompts, batched; each stands at the start of a document.

    Args:
        engine: With nothing else to do.
        prompts: Texts to go on from.
        params: Of each.

    Yields:
        In the order of the prompts, as soon as those before are there.

    Raises:
        UserError: For a prompt that is too long; says which. Then nothing has run.
    """
    openings: list[tuple[list[int], str, Matcher | None]] = []
    for number, (prompt, one) in enumerate(zip(prompts, params, strict=True)):
        start, space, first = _opening(engine, prompt, one)
        try:
            form = engine.check(start, one)
            openings.append((start, space, form if first is None else first))
        except UserError as error:
            raise UserError(f"prompt {number + 1}: {error}") from error
    for number, ((ids, _, matcher), one) in enumerate(zip(openings, params, strict=True)):
        engine.add(ids, one, str(number), matcher)
    events: dict[str, list[TokenEvent]] = {str(number): [] for number in range(len(prompts))}
    done: dict[str, Completion] = {}
    for number, (ids, healed, _) in enumerate(openings):
        name = str(number)
        while name not in done:
            for event in engine.step():
                events[event.request_id].append(event)
                if event.finish_reason is not None:
                    with_logprobs = params[int(event.request_id)].logprobs is not None
                    done[event.request_id] = Completion.of([], events.pop(event.request_id), with_logprobs)
        whole = done.pop(name)
        yield replace(whole, prompt_ids=ids, text="".join(_without(healed, [whole.text])))


def opened(tokenizer: Tokenizer, ids: list[int]) -> list[int]:
    """A text as the model reads it: with the tokens that open a text; never empty."""
    return [*tokenizer.opening_ids, *ids] or [tokenizer.separator_id]


def _opening(engine: Engine, prompt: str, params: SamplingParams) -> tuple[list[int], str, AllowedFirst | None]:
    """Ids of a document that begins so; a space at its end that the first token has to begin with."""
    tokenizer = engine.tokenizer
    ids = tokenizer.encode(prompt).tolist()
    if not ids or params.constraint is not None or not tokenizer.decode(ids[-1:]).isspace():
        return opened(tokenizer, ids), "", None
    allowed = torch.zeros(engine.config.vocab_size, dtype=torch.bool, device=engine.device)
    healed = tokenizer.decode(ids[-1:])
    allowed[tokenizer.beginning_with(ids.pop())] = True
    return opened(tokenizer, ids), healed, AllowedFirst(allowed)


def _pieces(engine: Engine, request_id: str) -> Iterator[str]:
    try:
        while True:
            for event in engine.step():
                if event.request_id == request_id:
                    if event.error is not None:
                        raise RuntimeError(event.error)
                    if event.text:
                        yield event.text
                    if event.finish_reason is not None:
                        return
    finally:
        engine.cancel(request_id)
        if engine.has_work:
            engine.step()


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
    detokenizer = Detokenizer(tokenizer, context)
    for token in tokens:
        if token in tokenizer.stop_ids:
            break
        piece = detokenizer.add(token)
        if piece:
            yield piece
    rest = detokenizer.flush()
    if rest:
        yield rest
