"""Draws against the distribution written out by hand: chi-square tests, and each setting alone."""

import math

import pytest
import torch
from chi_square import p_value
from small_chats import small_tokenizer

from lit_gpt.generation import SamplingParams
from lit_gpt.generation.request import Request
from lit_gpt.generation.sampler import adjusted, candidates, invert, probabilities, sample_tokens

V, DRAWS = 12, 4000


def expected(logits: list[float], params: SamplingParams) -> list[float]:
    """The distribution, step by step in plain Python: temperature, top-k, top-p, min-p."""
    scaled = [value / params.temperature for value in logits]
    weights = {token: math.exp(value - max(scaled)) for token, value in enumerate(scaled)}
    if params.top_k is not None:
        weights = dict(sorted(weights.items(), key=lambda item: -item[1])[: params.top_k])
    if params.top_p is not None:
        total, before, kept = sum(weights.values()), 0.0, {}
        for token, weight in sorted(weights.items(), key=lambda item: -item[1]):
            if before >= params.top_p:
                break
            kept[token], before = weight, before + weight / total
        weights = kept
    if params.min_p is not None:
        weights = {token: weight for token, weight in weights.items() if weight >= params.min_p * max(weights.values())}
    total = sum(weights.values())
    return [weights.get(token, 0.0) / total for token in range(len(logits))]


def request(params, prompt=(1,), matcher=None):
    return Request("x", list(prompt), params, small_tokenizer(), matcher)


SETTINGS = [
    {},
    {"temperature": 0.6},
    {"temperature": 1.7, "top_k": 5},
    {"top_p": 0.8},
    {"temperature": 0.8, "top_k": 8, "top_p": 0.9},
    {"min_p": 0.2},
    {"temperature": 1.3, "top_k": 9, "top_p": 0.95, "min_p": 0.1},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_frequencies_pass_a_chi_square_test(settings):
    logits = torch.randn(V, generator=torch.Generator().manual_seed(0)) * 1.5
    params = SamplingParams(**settings, seed=11)
    one = request(params)
    counts = [0] * V
    for position in range(DRAWS):
        one.num_new = position
        counts[sample_tokens(logits[None], [one])[0].token] += 1
    wanted = expected(logits.tolist(), params)
    assert p_value(counts, [share * DRAWS for share in wanted]) > 1e-3


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("size", [12, 300, 1000])
def test_the_distribution_is_the_one_by_hand(settings, size):
    logits = torch.randn(3, size, generator=torch.Generator().manual_seed(1)) * (2 if size == 12 else 0.3)
    params = SamplingParams(**settings)
    found = probabilities(logits, [params] * 3)
    for row, mine in zip(logits, found, strict=True):
        torch.testing.assert_close(mine, torch.tensor(expected(row.tolist(), params)), rtol=1e-4, atol=1e-6)


def test_a_wide_nucleus_in_a_large_vocabulary_is_whole():
    flat = torch.zeros(1, 5000)
    values, ids = candidates(flat, [SamplingParams(top_p=0.5)])
    assert (values > -math.inf).sum() in range(2499, 2502)
    assert ids is not None


def test_mixed_settings_in_one_batch_are_each_their_own():
    logits = torch.randn(6, 50, generator=torch.Generator().manual_seed(2))
    each = [
        SamplingParams(temperature=0),
        SamplingParams(seed=1),
        SamplingParams(top_k=3, seed=2),
        SamplingParams(top_p=0.5, temperature=0.7, seed=3),
        SamplingParams(min_p=0.3, seed=4),
        SamplingParams(temperature=0, logprobs=2),
    ]
    together = sample_tokens(logits, [request(params) for params in each])
    alone = [sample_tokens(logits[row : row + 1], [request(params)])[0] for row, params in enumerate(each)]
    assert [drawn.token for drawn in together] == [drawn.token for drawn in alone]
    assert together[5].logprob == pytest.approx(alone[5].logprob)
    assert together[0].token == logits[0].argmax()
    assert together[0].logprob is None


def test_inverting_never_finds_a_token_of_no_probability():
    shares = torch.tensor([[0.0, 0.3, 0.0, 0.7, 0.0]])
    assert invert(shares, [0.0]).item() == 1
    assert invert(shares, [1 - 2**-53]).item() == 3
    assert invert(shares, [0.2999]).item() == 1
    assert invert(shares, [0.3001]).item() == 3
    invert(torch.full((1, 5), math.nan), [0.5])  # no crash


def test_penalties_by_hand():
    logits = torch.tensor([[2.0, -1.0, 0.5, 3.0] + [0.0] * 296])
    one = request(
        SamplingParams(
            repetition_penalty=2.0, presence_penalty=0.25, frequency_penalty=0.5, logit_bias={3: -10.0, 2: 1.0}
        ),
        prompt=(0, 1),
    )
    one.ids += [2, 2]
    found = adjusted(logits, [one])[0]
    # 0 and 1 are in the prompt, 2 was written twice, 3 is biased.
    assert found[:4].tolist() == pytest.approx([1.0, -2.0, 0.25 - 0.25 - 2 * 0.5 + 1.0, -7.0])
    assert adjusted(logits, [request(SamplingParams())]) is logits


def test_penalties_agree_with_transformers():
    from transformers import RepetitionPenaltyLogitsProcessor

    logits = torch.randn(1, 300)
    ids = torch.tensor([[4, 9, 9, 200]])
    theirs = RepetitionPenaltyLogitsProcessor(1.3)(ids, logits.clone())
    ours = adjusted(logits, [request(SamplingParams(repetition_penalty=1.3), ids[0].tolist())])
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    ("settings", "warper"),
    [({"top_p": 0.7}, "TopPLogitsWarper"), ({"min_p": 0.2}, "MinPLogitsWarper"), ({"top_k": 7}, "TopKLogitsWarper")],
)
def test_filters_agree_with_transformers(settings, warper):
    import transformers

    logits = torch.randn(4, 40, generator=torch.Generator().manual_seed(3)) * 2
    theirs = getattr(transformers, warper)(*settings.values())(None, logits.clone()).softmax(-1)
    torch.testing.assert_close(probabilities(logits, [SamplingParams(**settings)] * 4), theirs)
