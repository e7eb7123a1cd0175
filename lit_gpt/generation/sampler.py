"""Sampling of the next token of every request in a batch, each with its own settings, in few tensor operations.

A token is sampled by inverting the cumulative distribution at one uniform number, which is a function of the request's
seed and the token's position (`uniform`): a request's text depends neither on the other requests in the batch nor on
the device, and no state is stored between samples, so a request may be moved, batched or replayed. Top-p and top-k need
the most likely tokens in order; of a large vocabulary only the `NARROW` most likely ones are sorted, unless the
nucleus of some request extends beyond them.

B rows, V vocabulary, K candidates.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lit_gpt.generation.request import Request, SampledToken, SamplingParams

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15


def uniform(seed: int, position: int, stream: int = 0) -> float:
    """Return a number in [0, 1) with 53 random bits.

    A counter-based generator (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") with the mixing
    function of SplitMix64 (Steele et al. 2014).

    Args:
        seed: Seed of the request.
        position: Index of the new token in the request, from 0.
        stream: Distinguishes several numbers for one position.
    """
    state = _mix(_mix(seed + _GOLDEN) + (position << 3) + stream)
    return (_mix(state + _GOLDEN) >> 11) * 2.0**-53


def _mix(x: int) -> int:
    x = (x & _MASK) * 0xBF58476D1CE4E5B9 & _MASK
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & _MASK
    x = (x ^ x >> 27) * 0x94D049BB133111EB & _MASK
    return x ^ x >> 31


NARROW = 256
"""Number of tokens of a large vocabulary that are sorted for top-k and top-p."""
COLD = 1e-3
"""Below this temperature the largest logit is subtracted first, so that no quotient overflows."""
COLDEST = 1e-30
"""Minimum temperature: lower values are 0 in float32, and the most likely token already has nearly all probability."""


@torch.no_grad()
def sample_tokens(logits: Tensor, requests: Sequence[Request]) -> list[SampledToken]:
    """Sample one token per request.

    Args:
        logits: (B, V), any float dtype.
        requests: The B requests.
    """
    raw = logits.float()
    changed = adjusted(raw, requests)
    tokens: list[int] = []
    if all(request.params.temperature == 0 for request in requests):
        tokens = changed.argmax(dim=-1).tolist()
    elif len(requests) == 1 or len({_kind(request.params) for request in requests}) == 1:
        tokens = sample_rows(changed, requests).tolist()
    else:
        tokens = [0] * len(requests)
        kinds: dict[str, list[int]] = {}
        for row, request in enumerate(requests):
            kinds.setdefault(_kind(request.params), []).append(row)
        for kind, rows in kinds.items():
            some = changed[rows]
            sampled = some.argmax(-1) if kind == "greedy" else sample_rows(some, [requests[row] for row in rows])
            for row, token in zip(rows, sampled.tolist(), strict=True):
                tokens[row] = token
    if all(request.params.logprobs is None for request in requests):
        return [SampledToken(token) for token in tokens]
    return with_logprobs(raw, tokens, requests)


def adjusted(logits: Tensor, requests: Sequence[Request]) -> Tensor:
    """Return logits (B, V) float32 after penalties, biases and constraints; the same tensor if there are none."""
    changed: Tensor | None = None
    for row, request in enumerate(requests):
        if request.params.has_penalties or request.matcher is not None:
            changed = logits.clone() if changed is None else changed
            one = request.penalized(changed[row]) if request.params.has_penalties else changed[row]
            try:
                changed[row] = one if request.matcher is None else request.matcher.mask(one)
            except Exception as error:  # ends only this request; the others are sampled as usual
                request.fault = error
    return logits if changed is None else changed


def sample_rows(logits: Tensor, requests: Sequence[Request]) -> Tensor:
    """Sample from rows of one kind: (B, V) float32 → (B,) int64."""
    values, ids = candidates(logits, [request.params for request in requests])
    numbers = [uniform(request.seed, request.num_new) for request in requests]
    chosen = invert(values.softmax(dim=-1), numbers)
    return chosen if ids is None else ids.gather(1, chosen[:, None])[:, 0]


def invert(probabilities: Tensor, numbers: Sequence[float]) -> Tensor:
    """Return the first token whose cumulative probability exceeds a number: (B, K) and B numbers in [0, 1) → (B,)."""
    wide = torch.float32 if probabilities.device.type == "mps" else torch.float64
    cumulative = probabilities.cumsum(dim=-1, dtype=wide)
    total = cumulative[:, -1:]
    wanted = torch.tensor(numbers, dtype=wide, device=probabilities.device)[:, None] * total
    wanted = torch.minimum(wanted, torch.nextafter(total, torch.zeros_like(total)))  # never a token with probability 0
    found = torch.searchsorted(cumulative, wanted, right=True)[:, 0]
    return found.clamp_(max=probabilities.shape[-1] - 1)  # for NaN: any token instead of a crash


def candidates(logits: Tensor, params: Sequence[SamplingParams]) -> tuple[Tensor, Tensor | None]:
    """Return the logits after temperature, top-k, top-p and min-p.

    Args:
        logits: (B, V) float32.
        params: Settings of each row, all with a temperature above 0, all of one kind.

    Returns:
        (B, K) logits, -inf for excluded tokens, and (B, K) token ids; None = K is V, in order.
    """
    device = logits.device
    temperatures = [one.temperature for one in params]
    if any(temperature != 1 for temperature in temperatures):
        if min(temperatures) < COLD:
            # Shift the largest logit to 0, so that dividing by a tiny number does not make it infinite.
            logits = logits - logits.amax(dim=-1, keepdim=True)
            temperatures = [max(temperature, COLDEST) for temperature in temperatures]
        logits = logits / torch.tensor(temperatures, dtype=torch.float32, device=device)[:, None]
    ids: Tensor | None = None
    if _kind(params[0]) == "narrow":
        logits, ids = _likeliest(logits, params)
    min_ps = [one.min_p or 0.0 for one in params]
    if any(min_ps):
        shares = torch.tensor(min_ps, dtype=torch.float32, device=device)[:, None]
        least = shares.log() + logits.max(dim=-1, keepdim=True).values
        logits = logits.masked_fill(logits < least, -math.inf)
    return logits, ids


def _likeliest(logits: Tensor, params: Sequence[SamplingParams]) -> tuple[Tensor, Tensor]:
    """Apply top-k, then top-p to the rest; return logits and ids (B, K) in descending order."""
    V, device = logits.shape[-1], logits.device
    top_ks = torch.tensor([min(one.top_k or V, V) for one in params], device=device)[:, None]
    shares = [1.0 if one.top_p is None else one.top_p for one in params]
    top_ps = torch.tensor(shares, dtype=torch.float32, device=device)[:, None]
    size = max(min(one.top_k or NARROW, V) for one in params)
    while True:
        size = min(size, V)
        values, ids = logits.topk(size, dim=-1)
        values = values.masked_fill(torch.arange(size, device=device) >= top_ks, -math.inf)
        # The sum runs over all tokens that top-k keeps; if these are more than were sorted, over the vocabulary.
        beyond = top_ks > size
        total = torch.where(beyond, logits.logsumexp(-1, keepdim=True), values.logsumexp(-1, keepdim=True))
        probabilities = (values - total).exp()
        cumulative = probabilities.cumsum(dim=-1)
        if size == V or not bool((beyond & (cumulative[:, -1:] < top_ps)).any()):
            break
        size = V
    before = cumulative - probabilities  # of all more likely tokens
    outside = before >= top_ps
    outside[:, 0] = False
    return values.masked_fill(outside & (top_ps < 1), -math.inf), ids


def probabilities(logits: Tensor, params: Sequence[SamplingParams]) -> Tensor:
    """Return the sampling distribution, (B, V) float32; at temperature 0 one token has probability 1."""
    rows = []
    for row, one in zip(logits.float(), params, strict=True):
        if one.temperature == 0:
            rows.append(torch.zeros_like(row).index_fill(0, row.argmax(), 1.0))
            continue
        values, ids = candidates(row[None], [one])
        shares = values.softmax(dim=-1)[0]
        rows.append(shares if ids is None else torch.zeros_like(row).index_copy(0, ids[0], shares))
    return torch.stack(rows)


def with_logprobs(logits: Tensor, tokens: Sequence[int], requests: Sequence[Request]) -> list[SampledToken]:
    """Return tokens with the model's own log-probabilities, if requested."""
    normalized = logits.log_softmax(dim=-1)
    chosen = normalized.gather(1, torch.tensor(tokens, device=logits.device)[:, None])[:, 0].tolist()
    count = min(max(request.params.logprobs or 0 for request in requests), logits.shape[-1])
    best = normalized.topk(count, dim=-1) if count else None
    values = best.values.tolist() if best is not None else []
    ids = best.indices.tolist() if best is not None else []
    sampled = []
    for row, (token, request) in enumerate(zip(tokens, requests, strict=True)):
        asked = request.params.logprobs
        if asked is None:
            sampled.append(SampledToken(token))
            continue
        tops = tuple(zip(ids[row][:asked], values[row][:asked], strict=True)) if asked else ()
        sampled.append(SampledToken(token, chosen[row], tops))
    return sampled


def _kind(params: SamplingParams) -> str:
    if params.temperature == 0:
        return "greedy"
    return "plain" if params.top_k is None and (params.top_p is None or params.top_p >= 1) else "narrow"
