"""Decoding one prompt, or several of equal length, with a key/value cache.

The prompt is read once (prefill); then each step feeds the model the one token it has just drawn. When the model's
block_size is full, the last half of it is read again as a fresh context and decoding goes on: text may become as
long as one likes, and a token always sees at least the block_size // 2 tokens before it.

B batch, T tokens of the prompt, N new tokens, V vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_gpt.errors import UserError
from lit_gpt.generation.sampling import check_sampling, sample
from lit_gpt.models import GPT, KVCache


def generate(
    model: GPT,
    input_ids: Tensor,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    stop_tokens: Sequence[int] = (),
    seed: int | None = None,
) -> Tensor:
    """The prompt and what follows it, (B, T + N) int64; arguments and errors are those of `stream`."""
    new = stream(model, input_ids, max_new_tokens, temperature, top_k, top_p, stop_tokens, seed)
    return torch.cat([input_ids, *(tokens[:, None] for tokens in new)], dim=1)


def stream(
    model: GPT,
    input_ids: Tensor,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    stop_tokens: Sequence[int] = (),
    seed: int | None = None,
    first_allowed: Tensor | None = None,
) -> Iterator[Tensor]:
    """Yield each step's tokens as soon as they are drawn.

    The model is in eval mode until the iterator ends or is closed, then in the mode it had.

    Args:
        model: On the device of `input_ids`.
        input_ids: (B, T) int64, at least one token and at most block_size.
        max_new_tokens: Steps at most.
        temperature: Divides the logits; 0 takes the likeliest token.
        top_k: Keep this many of the likeliest tokens.
        top_p: Keep the likeliest tokens up to this much probability.
        stop_tokens: A row ends with the first of them it draws (which is yielded); all rows ended ends the stream.
        seed: Of the draws; the same seed gives the same text. None = another each time.
        first_allowed: (V,) bool, the tokens that may come first; None = all.

    Yields:
        (B,) int64; a row that has ended repeats its stop token.

    Raises:
        UserError: At the call: a prompt that is empty, too long or has an unknown token, a setting out of bounds.
    """
    check_sampling(temperature, top_k, top_p)
    _check_prompt(model, input_ids, max_new_tokens)
    generator = torch.Generator(input_ids.device)
    if seed is None:
        generator.seed()
    else:
        generator.manual_seed(seed)

    allowed = first_allowed

    def draw(logits: Tensor) -> Tensor:
        nonlocal allowed
        if allowed is not None:
            logits, allowed = logits.masked_fill(~allowed, float("-inf")), None
        return sample(logits, temperature, top_k, top_p, generator)

    return _decode(model, input_ids, max_new_tokens, draw, stop_tokens)


def _decode(
    model: GPT,
    input_ids: Tensor,
    max_new_tokens: int,
    draw: Callable[[Tensor], Tensor],
    stop_tokens: Sequence[int],
) -> Iterator[Tensor]:
    block_size, was_training = model.config.block_size, model.training
    stops = torch.tensor(list(stop_tokens), dtype=torch.int64, device=input_ids.device)
    text, unread = input_ids, input_ids
    last = input_ids[:, -1]
    ended = torch.zeros_like(last, dtype=torch.bool)
    cache = KVCache(min(block_size, input_ids.shape[1] + max_new_tokens))
    model.eval()
    try:
        for _ in range(max_new_tokens):
            if cache.length + unread.shape[1] > block_size:
                cache, unread = KVCache(block_size), text[:, -max(1, block_size // 2) :]
            last = torch.where(ended, last, draw(_last_logits(model, unread, cache)))
            unread = last[:, None]
            text = torch.cat((text, unread), dim=1)
            yield last
            if stop_tokens:
                ended |= torch.isin(last, stops)
                if bool(ended.all()):
                    return
    finally:
        model.train(was_training)


@torch.no_grad()
def _last_logits(model: GPT, input_ids: Tensor, cache: KVCache) -> Tensor:
    """Logits (B, V) of the token after the last: the head runs on one position, not on the whole prompt."""
    return model(input_ids, cache=cache, head_fn=lambda hidden, weight, bias: F.linear(hidden[:, -1], weight, bias))


def _check_prompt(model: GPT, input_ids: Tensor, max_new_tokens: int) -> None:
    block_size, vocab_size = model.config.block_size, model.config.vocab_size
    if input_ids.dim() != 2 or input_ids.shape[1] == 0:
        raise UserError("the prompt has no tokens; begin with some text or with the separator token")
    if input_ids.shape[1] > block_size:
        raise UserError(f"the prompt has {input_ids.shape[1]} tokens, more than the model's block_size {block_size}")
    if max_new_tokens < 1:
        raise UserError(f"max_new_tokens is {max_new_tokens}, it must be at least 1")
    largest = int(input_ids.max())
    if largest >= vocab_size:
        raise UserError(f"token {largest} is outside the model's vocabulary of {vocab_size}; use its own tokenizer")
