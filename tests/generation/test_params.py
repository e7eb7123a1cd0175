import math

import pytest

from lit_gpt.errors import UserError
from lit_gpt.generation import Constraint, SamplingParams


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"max_new_tokens": -5}, "max_new_tokens is -5"),
        ({"temperature": -1}, "temperature is -1"),
        ({"top_p": 0}, "top_p is 0"),
        ({"top_p": 2}, "top_p is 2"),
        ({"top_k": 0}, "top_k is 0"),
        ({"min_p": 1.5}, "min_p is 1.5"),
        ({"repetition_penalty": 0}, "repetition_penalty is 0"),
        ({"presence_penalty": math.nan}, "presence_penalty is nan"),
        ({"frequency_penalty": math.inf}, "frequency_penalty is inf"),
        ({"logit_bias": {-1: 2.0}}, "logit_bias"),
        ({"logit_bias": {1: math.nan}}, "logit_bias"),
        ({"stop": "abc"}, "give a list"),
        ({"stop": ("",)}, "empty string"),
        ({"stop": ("x" * 10_000_000,)}, "10000000 characters, at most 1024"),
        ({"stop": tuple("abc" * 30)}, "90 strings, at most 64"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 1 << 63}, "seed is 9223372036854775808"),
        ({"logprobs": -1}, "logprobs is -1"),
        ({"logprobs": 51}, "logprobs is 51"),
    ],
)
def test_refused(settings, message):
    with pytest.raises(UserError, match=message):
        SamplingParams(**settings)


def test_lists_are_taken_for_tuples():
    assert SamplingParams(stop=["a"], stop_token_ids=[1]) == SamplingParams(stop=("a",), stop_token_ids=(1,))


@pytest.mark.parametrize(("kind", "source"), [("yaml", "x"), ("regex", ""), ("json_schema", "")])
def test_refused_constraints(kind, source):
    with pytest.raises(UserError, match="constraint"):
        Constraint(kind, source)
