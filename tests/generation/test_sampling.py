import math

import pytest
import torch

from lit_gpt.errors import UserError
from lit_gpt.generation import SamplingParams
from lit_gpt.generation.request import Request
from lit_gpt.generation.sampler import probabilities, sample_tokens

# Probabilities 0.5, 0.25, 0.15, 0.1, out of order.
LOGITS = torch.tensor([[0.15, 0.5, 0.1, 0.25]]).log()


def kept(logits=LOGITS, **settings):
    return (probabilities(logits, [SamplingParams(**settings)] * len(logits)) > 0)[0].tolist()


@pytest.mark.parametrize(
    ("k", "expected"),
    [
        (1, [False, True, False, False]),
        (3, [True, True, False, True]),
        (4, [True, True, True, True]),
        (99, [True, True, True, True]),
    ],
)
def test_top_k(k, expected):
    assert kept(top_k=k) == expected


@pytest.mark.parametrize(
    ("p", "expected"),
    [
        (0.01, [False, True, False, False]),  # the likeliest always stays
        (0.5, [False, True, False, False]),  # 0.5 alone reaches 0.5
        (0.51, [False, True, False, True]),
        (0.76, [True, True, False, True]),
        (0.95, [True, True, True, True]),
        (1.0, [True, True, True, True]),
    ],
)
def test_top_p(p, expected):
    assert kept(top_p=p) == expected
    shares = probabilities(LOGITS, [SamplingParams(top_p=p)])
    wanted = LOGITS.exp() * torch.tensor(expected)
    torch.testing.assert_close(shares, wanted / wanted.sum())


def test_rows_are_filtered_each_for_itself():
    logits = torch.cat([LOGITS, LOGITS.flip(1)])
    for settings in ({"top_k": 2}, {"top_p": 0.6}):
        shares = probabilities(logits, [SamplingParams(**settings)] * 2)
        assert torch.equal(shares[0], shares[1].flip(0))


def frequencies(**settings):
    draws = torch.tensor(drawn(20_000, 0, **settings))
    return draws.bincount(minlength=4) / 20_000


def drawn(count, seed, **settings):
    requests = [Request("x", [1], SamplingParams(seed=seed + row, **settings), None) for row in range(count)]
    return [one.token for one in sample_tokens(LOGITS.expand(count, 4), requests)]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [0.15, 0.5, 0.1, 0.25]),
        ({"temperature": 0.5}, [0.0652, 0.7246, 0.0290, 0.1812]),  # squares, normalised
        ({"top_k": 2}, [0, 2 / 3, 0, 1 / 3]),
        ({"top_p": 0.8}, [1 / 6, 5 / 9, 0, 5 / 18]),
        # Temperature first: of the squares, 0.72 alone reaches 0.7.
        ({"temperature": 0.5, "top_p": 0.7}, [0, 1, 0, 0]),
    ],
)
def test_draws_follow_the_distribution(settings, expected):
    torch.testing.assert_close(frequencies(**settings), torch.tensor(expected, dtype=torch.float32), rtol=0, atol=0.015)


def test_temperature_zero_is_greedy():
    assert drawn(1, 0, temperature=0) == [1]


def test_seeded():
    draws = [drawn(50, seed) for seed in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": -0.1}, "temperature is -0.1"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"temperature": math.inf}, "temperature is inf"),
        ({"top_k": 0}, "top_k is 0"),
        ({"top_p": 0.0}, "top_p is 0.0"),
        ({"top_p": 1.5}, "top_p is 1.5"),
    ],
)
def test_refused(settings, message):
    with pytest.raises(UserError, match=message):
        SamplingParams(**settings)
