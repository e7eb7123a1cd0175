import math

import pytest
import torch

from lit_gpt.errors import UserError
from lit_gpt.generation import keep_top_k, keep_top_p, sample

# Probabilities 0.5, 0.25, 0.15, 0.1, out of order.
LOGITS = torch.tensor([[0.15, 0.5, 0.1, 0.25]]).log()


def kept(logits):
    return (logits > -math.inf)[0].tolist()


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
    assert kept(keep_top_k(LOGITS, k)) == expected


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
    filtered = keep_top_p(LOGITS, p)
    assert kept(filtered) == expected
    assert torch.equal(filtered[filtered > -math.inf], LOGITS[filtered > -math.inf])


def test_rows_are_filtered_each_for_itself():
    logits = torch.cat([LOGITS, LOGITS.flip(1)])
    for filtered in (keep_top_k(logits, 2), keep_top_p(logits, 0.6)):
        assert torch.equal(filtered[0], filtered[1].flip(0))


def frequencies(**settings):
    generator = torch.Generator().manual_seed(0)
    draws = sample(LOGITS.expand(20_000, 4), generator=generator, **settings)
    return draws.bincount(minlength=4) / 20_000


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
    assert sample(LOGITS, temperature=0).tolist() == [1]


def test_seeded():
    draws = [sample(LOGITS.expand(50, 4), generator=torch.Generator().manual_seed(s)).tolist() for s in (1, 1, 2)]
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
        sample(LOGITS, **settings)
