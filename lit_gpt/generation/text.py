"""Text generation from text prompts: a prompt is encoded as the start of a document and continued.

A prompt that is already a list of token ids, such as a rendered conversation, is taken as it is.

Token healing: in training a word's token includes the space before it, so a separate space token at the end of a prompt
is a rare context to continue from. It is removed, and the first new token must begin with it (`_open_prompt`).
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from lit_gpt.data.tokenizers import Tokenizer
from lit_gpt.errors import UserError
from lit_gpt.generation.engine import Engine
from lit_gpt.generation.request import AllowedFirst, Completion, Matcher, SamplingParams, TokenEvent
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
    """Yield the continuation of a prompt as it is generated, until the end-of-text token.

    Args:
        model: Model, on the device where it runs.
        tokenizer: The model's tokenizer.
        prompt: Text to continue, taken as the start of a document, as in training.
        max_new_tokens: Maximum number of new tokens.
        temperature: Divides the logits; 0 = greedy decoding.
        top_k: Sample only from this many most likely tokens.
        top_p: Sample only from the most likely tokens up to this cumulative probability.
        seed: Seed of the sampling; None = a different one each time.

    Raises:
        UserError: At the call, if the prompt is too long or a setting is out of bounds.
    """
    params = SamplingParams(max_new_tokens, temperature, top_k, top_p, seed=seed)
    was_training = model.training
    engine = Engine(model, tokenizer, max_batch_size=1, re_prefill_when_full=True, prepare=False)
    pieces = stream_with(engine, prompt, params)

    def run() -> Iterator[str]:
        try:
            yield from pieces
        finally:
            engine.forget()
            model.train(was_training)

    return run()


Prompt = str | Sequence[int]
"""The text that a document begins with, or token ids."""


def stream_with(engine: Engine, prompt: Prompt, params: SamplingParams, request_id: str = "text") -> Iterator[str]:
    """Yield the continuation of a prompt, taken as the start of a document, piece by piece as it is generated.

    Args:
        engine: Engine without other requests.
        prompt: Text or token ids to continue.
        params: Sampling settings and stop conditions.
        request_id: Name of the request in the engine.

    Raises:
        UserError: If the prompt is too long.
    """
    ids, healed, matcher = _open_prompt(engine, prompt, params)
    engine.add(ids, params, request_id, matcher)
    return _without(healed, _pieces(engine, request_id))


def complete_texts(engine: Engine, prompts: Sequence[Prompt], params: Sequence[SamplingParams]) -> Iterator[Completion]:
    """Continue many prompts in batches; each is taken as the start of a document.

    Args:
        engine: Engine without other requests.
        prompts: Texts or token ids to continue.
        params: Sampling settings of each prompt.

    Yields:
        Completions in the order of the prompts, each as soon as all earlier ones are finished.

    Raises:
        UserError: If a prompt is too long (the message has its number); no prompt has been run then.
    """
    openings: list[tuple[list[int], str, Matcher | None]] = []
    for number, (prompt, one) in enumerate(zip(prompts, params, strict=True)):
        start, space, first = _open_prompt(engine, prompt, one)
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
    """Return a text's token ids with the tokens that start a document; never empty."""
    return [*tokenizer.opening_ids, *ids] or [tokenizer.separator_id]


def _open_prompt(engine: Engine, prompt: Prompt, params: SamplingParams) -> tuple[list[int], str, AllowedFirst | None]:
    """Return the prompt's token ids, the trailing space that was removed, and the matcher that restores it."""
    if not isinstance(prompt, str):
        return list(prompt), "", None
    tokenizer = engine.tokenizer
    assert tokenizer is not None, "text prompts need a tokenizer"
    ids = tokenizer.encode(prompt).tolist()
    if params.constraint is not None:
        return opened(tokenizer, ids), "", None
    ids, healed, matcher = heal(tokenizer, ids)
    return opened(tokenizer, ids), healed, matcher


def heal(tokenizer: Tokenizer, ids: list[int]) -> tuple[list[int], str, AllowedFirst | None]:
    """Remove a space at the end of a prompt, if it is a separate token.

    Args:
        tokenizer: The model's tokenizer.
        ids: Token ids of the prompt.

    Returns:
        The ids without the space, its text, and a matcher that makes the first new token begin with it; None if there
        is no such space.
    """
    healed = tokenizer.decode(ids[-1:])
    if not ids or not healed.isspace():
        return ids, "", None
    return ids[:-1], healed, AllowedFirst(tokenizer.beginning_with(ids[-1]))


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
    """Yield the pieces without a beginning that has already been printed."""
    for piece in pieces:
        common = min(len(beginning), len(piece))
        beginning, piece = beginning[common:], piece[common:]
        if piece:
            yield piece
