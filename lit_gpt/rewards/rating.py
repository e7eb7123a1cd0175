"""Weighted sums of rewards over many samples, and the handling of rewards that fail."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from lit_gpt.data.records import BadInput, OnBadInput
from lit_gpt.errors import UserError
from lit_gpt.rewards.sample import Reward, RewardFunction, Sample, reward_name


class Rated(NamedTuple):
    """Rewards of samples.

    Attributes:
        totals: Weighted sum for each sample; None if one of its rewards could not be used.
        by_name: Unweighted values of each reward.
    """

    totals: list[float | None]
    by_name: dict[str, list[float | None]]


class Rewards:
    """A weighted sum of reward functions.

    Args:
        functions: Reward functions.
        weights: One weight per reward; None: all 1.
        on_bad_input: What to do if a reward raises or does not return a finite number: `error` names the row and stops,
            `skip` leaves the sample out, counts it and names it.

    Raises:
        UserError: if there are no rewards, or the weights do not fit.
    """

    def __init__(
        self,
        functions: Sequence[Reward | RewardFunction],
        weights: Sequence[float] | None = None,
        on_bad_input: OnBadInput = "error",
    ) -> None:
        if not functions:
            raise UserError("rewards is empty; name at least one, such as lit_gpt.rewards.ExactAnswer")
        self.functions = list(functions)
        self.weights = [1.0] * len(functions) if weights is None else [float(weight) for weight in weights]
        if len(self.weights) != len(self.functions) or not all(map(math.isfinite, self.weights)):
            raise UserError(
                f"reward_weights is {self.weights} for {len(self.functions)} rewards; give one finite number per reward"
            )
        names = [reward_name(function) for function in self.functions]
        self.names = [name if names.count(name) == 1 else f"{name}_{position}" for position, name in enumerate(names)]
        self.bad_input = BadInput(on_bad_input)
        self._checkers = {
            name: function
            for name, function in zip(self.names, self.functions, strict=True)
            if isinstance(function, Reward) and type(function).check_row is not Reward.check_row
        }

    @property
    def check_rows(self) -> bool:
        """Whether any of the rewards can check a row in advance."""
        return bool(self._checkers)

    def problem_of(self, row: dict[str, Any]) -> str | None:
        """Return why answers to a row's prompt cannot be rated, or None if no problem is known."""
        for name, reward in self._checkers.items():
            try:
                reward.check_row(row)
            except UserError as error:
                return f"the reward {name} cannot be used: {error}"
        return None

    def __call__(self, samples: Sequence[Sample]) -> Rated:
        """Rate samples.

        Raises:
            UserError: if a reward fails and `on_bad_input` is `error`.
        """
        by_name = {
            name: self._rate(function, name, samples) for name, function in zip(self.names, self.functions, strict=True)
        }
        totals: list[float | None] = []
        for values in zip(*by_name.values(), strict=True):
            parts = [w * v for w, v in zip(self.weights, values, strict=True) if v is not None]
            totals.append(math.fsum(parts) if len(parts) == len(values) else None)
        return Rated(totals, by_name)

    def _rate(self, function: Reward | RewardFunction, name: str, samples: Sequence[Sample]) -> list[float | None]:
        if isinstance(function, Reward):
            try:
                values = list(function.rate(samples))
            except Exception:  # one of the samples fails: rate them one by one below, to name it
                pass
            else:
                if len(values) != len(samples):
                    raise UserError(
                        f"the reward {name} returned {len(values)} values for {len(samples)} answers; its rate() must "
                        "return one for each, in order"
                    )
                return [self._checked(value, name, sample) for value, sample in zip(values, samples, strict=True)]
        results: list[float | None] = []
        for sample in samples:
            try:
                value = function(sample)
            except Exception as error:
                problem = str(error) if isinstance(error, UserError) else f"it raised {type(error).__name__}: {error}"
                self._reject(name, sample, problem, error)
                results.append(None)
            else:
                results.append(self._checked(value, name, sample))
        return results

    def _checked(self, value: object, name: str, sample: Sample) -> float | None:
        try:
            number = float(value)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            self._reject(name, sample, f"it returned {value!r}, which is not a number")
            return None
        if not math.isfinite(number):
            self._reject(name, sample, f"it returned {number}")
            return None
        return number

    def _reject(self, name: str, sample: Sample, problem: str, cause: Exception | None = None) -> None:
        text = sample.completion if len(sample.completion) <= 80 else f"{sample.completion[:77]}..."
        try:
            self.bad_input.reject(sample.where, f"the reward {name} cannot be used for {text!r}: {problem}")
        except UserError as error:
            raise error from cause
