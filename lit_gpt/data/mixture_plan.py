"""From what a user writes about a mixture (weights, temperature, caps, a schedule in steps) to phases in samples."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from lit_gpt.data.mixture import Phase
from lit_gpt.errors import UserError

WeightsMode = Literal["tokens", "temperature", "explicit"]
_STAIRS = 32


@dataclass(frozen=True)
class MixtureCorpus:
    """One corpus of a mixture.

    Args:
        path: The `out` folder of a `prepare` recipe, or a folder of token shards.
        weight: Share of the training tokens, in proportion to the other corpora's weights.
        max_epochs: Draw each of its tokens at most so often; then the other corpora share its weight. Null: no cap.
        name: What logs and the schedule call it; the folder's name if null.
    """

    path: str
    weight: float | None = None
    max_epochs: float | None = None
    name: str | None = None


@dataclass(frozen=True)
class MixtureChange:
    """New weights from some step on.

    Args:
        at: When: a share of the run between 0 and 1 (a float, such as 0.8), or an optimizer step (an int).
        weights: Weights by name from then on; a corpus that is not named gets none.
        over: Change over so long instead of at once, in a straight line of 32 stairs; a share or a number of steps.
            The change is over before the run is.
    """

    at: int | float
    weights: dict[str, float]
    over: int | float = 0


def first_weights(
    mode: WeightsMode, names: Sequence[str], tokens: Sequence[int], weights: Sequence[float | None], temperature: float
) -> tuple[float, ...]:
    """Returns the share of each corpus, adding up to 1.

    Args:
        mode: `tokens`: as large as the corpora are. `explicit`: as `weights` say. `temperature`: in proportion to
            tokens ** (1 / temperature) (Arivazhagan et al. 2019, arXiv:1907.05019): 1 is `tokens`, large values
            draw all corpora alike.
        names: Names of the corpora.
        tokens: Their training tokens.
        weights: Their weights as written.
        temperature: At least 1 gives small corpora more than their size.

    Raises:
        UserError: for weights that are missing, superfluous or cannot be used.
    """
    given = [name for name, weight in zip(names, weights, strict=True) if weight is not None]
    if mode == "explicit":
        missing = [name for name in names if name not in given]
        if missing:
            raise UserError(f"the corpus {missing[0]} has no weight; give it one, or set weights: tokens")
        shares = [float(weight) for weight in weights if weight is not None]
    else:
        if given:
            raise UserError(
                f"the corpus {given[0]} has a weight, and weights: {mode} would ignore it; set weights: explicit, or "
                "leave the corpora's weights out"
            )
        if not temperature > 0:
            raise UserError(f"temperature is {temperature}; it must be above 0 (1: by tokens; larger: more even)")
        exponent = 1.0 if mode == "tokens" else 1.0 / temperature
        shares = [(count / sum(tokens)) ** exponent for count in tokens]
    if any(not 0 <= share < float("inf") for share in shares) or sum(shares) <= 0:
        written = ", ".join(f"{name} {share:g}" for name, share in zip(names, shares, strict=True))
        raise UserError(f"weights of the mixture: {written}; each must be at least 0, and one above it")
    return tuple(share / sum(shares) for share in shares)


def plan_phases(
    first: tuple[float, ...],
    names: Sequence[str],
    changes: Sequence[MixtureChange],
    total_steps: int | None,
    global_batch_size: int,
) -> list[Phase]:
    """Returns the phases of a run in samples.

    Args:
        first: Weights from the start.
        names: Names of the corpora.
        changes: The schedule.
        total_steps: Optimizer steps of the run, of which shares are taken; None where that is not known.
        global_batch_size: Samples of a step.

    Raises:
        UserError: for unknown names, changes out of order or not over when the run ends, and shares of a run without
            an end.
    """
    phases = [Phase(0, first)]
    for change in changes:
        start = _steps("at", change.at, total_steps)
        over = _length(change, start, total_steps)
        before, after = phases[-1].weights, _named(change.weights, names)
        if start * global_batch_size <= phases[-1].start and start:
            raise UserError(
                f"the mixture's schedule changes at step {start}, when the change before it is not over; let `at` "
                "rise from entry to entry"
            )
        if start == 0:
            raise UserError(
                f"at is {change.at}: weights from the first step on are the corpora's own; give a later one"
            )
        stairs = max(1, min(_STAIRS, over))
        for stair in range(1, stairs + 1):
            # The last stair has the new weights; on the way each stair has those of its middle.
            share = 1.0 if stair == stairs else (stair - 0.5) / stairs
            weights = tuple((1 - share) * old + share * new for old, new in zip(before, after, strict=True))
            step = start + over * (stair - 1) // stairs
            phases.append(Phase(step * global_batch_size, weights))
    return phases


def _steps(name: str, value: int | float, total_steps: int | None) -> int:
    """Returns optimizer steps from a share of the run (a float up to 1) or a number of steps."""
    if not (value >= 0 and (isinstance(value, int) or value <= 1 or value.is_integer())):
        raise UserError(f"{name} is {value}; write a share of the run between 0 and 1, or a whole number of steps")
    if isinstance(value, float) and value <= 1:
        if total_steps is None:
            raise UserError(
                f"{name} {value} of the mixture's schedule is a share of a run whose length is not known; set "
                "trainer.max_steps, or data.init_args.total_steps, or write a number of steps"
            )
        value = round(value * total_steps)
    if name == "at" and total_steps is not None and value >= total_steps:
        raise UserError(f"at is step {int(value)}, and the run ends after {total_steps} steps; choose an earlier one")
    return int(value)


def _length(change: MixtureChange, start: int, total_steps: int | None) -> int:
    """Returns the optimizer steps that a change takes, which end with the run at the latest."""
    over = _steps("over", change.over, total_steps)
    if total_steps is None or start + over <= total_steps:
        return over
    shares = all(isinstance(value, float) and value <= 1 for value in (change.at, change.over))
    if shares and round((change.at + change.over) * total_steps) <= total_steps:
        return total_steps - start  # such as 0.3 and 0.7 of 5 steps, both rounded up
    raise UserError(
        f"the mixture's schedule changes from step {start} over {over} steps, and the run ends after {total_steps} "
        "steps, before the new weights hold; choose an earlier `at`, or a shorter `over`"
    )


def _named(weights: Mapping[str, float], names: Sequence[str]) -> tuple[float, ...]:
    for name in weights:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            hint = f"; did you mean {near[0]}?" if near else f"; they are {', '.join(names)}"
            raise UserError(f"the mixture's schedule names a corpus {name!r} that there is not{hint}")
    total = sum(weights.values())
    if any(not 0 <= weight < float("inf") for weight in weights.values()) or total <= 0:
        raise UserError(f"weights {dict(weights)} in the mixture's schedule: each must be at least 0, and one above it")
    return tuple(weights.get(name, 0.0) / total for name in names)
