"""Schedules against values worked out by hand."""

import math

import pytest
import torch

from lit_gpt.errors import UserError
from lit_gpt.optim import WSD, Constant, Cosine, InverseSquareRoot, Linear, ScheduledLR, check_learning_rates


@pytest.mark.parametrize(
    ("schedule", "now", "expected"),
    [
        (Constant(), 0, 1.0),
        (Constant(warmup_steps=4), 0, 0.25),  # the first step already moves
        (Constant(warmup_steps=4), 3, 1.0),
        (Linear(warmup_steps=10, final=0.0), 10, 1.0),
        (Linear(warmup_steps=10, final=0.0), 55, 0.5),
        (Linear(warmup_steps=10, final=0.2), 100, 0.2),
        (Cosine(final=0.0), 50, 0.5),
        (Cosine(final=0.1), 100, 0.1),
        (Cosine(final=0.0), 25, 0.5 * (1 + math.cos(math.pi / 4))),
        (WSD(decay_fraction=0.2), 79, 1.0),
        (WSD(decay_fraction=0.2), 90, 0.5),
        (WSD(decay_fraction=0.2, final=0.1), 100, 0.1),
        (InverseSquareRoot(warmup_steps=16, final=0.0), 16, 1.0),
        (InverseSquareRoot(warmup_steps=16, final=0.0), 64, 0.5),
        (InverseSquareRoot(warmup_steps=16, final=0.6), 64, 0.6),
        (Linear(warmup_tokens=10, final=0.0), 55, 0.5),
    ],
)
def test_factor(schedule, now, expected):
    assert schedule.factor(now, 100) == pytest.approx(expected)


@pytest.mark.parametrize("schedule", [Linear(warmup_steps=5), Cosine(warmup_steps=5), WSD(warmup_steps=5)])
def test_no_step_of_a_run_trains_at_zero(schedule):
    assert all(schedule.factor(step, 50) > 0 for step in range(50))


def test_past_the_end_it_stays():
    assert Cosine(final=0.1).factor(1000, 100) == pytest.approx(0.1)


def test_a_decay_without_an_end_is_an_error():
    with pytest.raises(UserError, match="max_steps"):
        Cosine().factor(0, None)
    assert Constant().factor(0, None) == 1.0


@pytest.mark.parametrize(
    "arguments", [{"warmup_steps": -1}, {"warmup_steps": 1, "warmup_tokens": 1}, {"final": 1.5}, {"final": -0.1}]
)
def test_bad_values_are_refused(arguments):
    with pytest.raises(UserError):
        Cosine(**arguments)


def test_learning_rate_zero_everywhere_is_refused():
    parameters = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    with pytest.raises(UserError, match="learning rate is 0"):
        check_learning_rates(torch.optim.SGD([{"params": [p]} for p in parameters], lr=0.0))
    check_learning_rates(torch.optim.SGD([{"params": parameters[:1]}, {"params": parameters[1:], "lr": 0.0}], lr=0.1))


def test_the_configured_rate_wins_over_a_saved_one():
    def make(lr):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)
        return optimizer, ScheduledLR(optimizer, lambda step: Linear(final=0.0).factor(step, 10))

    first, schedule = make(1.0)
    for _ in range(5):
        first.step()
        schedule.step()
    second, resumed = make(2.0)
    second.load_state_dict(first.state_dict())
    resumed.load_state_dict(schedule.state_dict())
    assert second.param_groups[0]["lr"] == pytest.approx(1.0)  # half of 2.0
    second.step()
    resumed.step()
    assert second.param_groups[0]["lr"] == pytest.approx(0.8)
