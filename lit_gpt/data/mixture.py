"""Determine, for sample p of a mixture, its corpus and the number of earlier samples from that corpus.

It has three stages:

1. The user's settings (`MixtureCorpus`, `MixtureChange`: weights, temperature, a schedule in steps) become `Phase`s:
   weights that apply from a given sample on (`first_weights`, `plan_phases`).
2. Phases and epoch caps are split into `Segment`s with constant weights (`MixtureSampler`). The sample at which a
   corpus reaches its cap is found by bisection; from there on the others share its weight.
3. Within a segment, the corpus of a sample is a pure function of the sample index.

Choosing a corpus at random for each sample would leave the proportions to chance, and finding its next window would
need a counter per corpus. Here both are computed. The corpora are the leaves of a binary tree; a node whose left
subtree has the share λ of its weight sends round(λ q) of its first q samples to the left (a line rasterized on a grid,
Bresenham 1965). So sample q goes left if round(λ (q + 1)) > round(λ q), and its index within that subtree is round(λ
q); recurse into the subtree. After any number of samples, the count of each of K corpora matches its weight to within
half a sample per level of the tree (there are ⌈log₂ K⌉); nothing is stored, and samples can be looked up in any order.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from lit_gpt.checks import check_above, check_one_of
from lit_gpt.errors import UserError

WeightsMode = Literal["tokens", "temperature", "explicit"]
_RAMP_STEPS = 32  # gradual changes are approximated by this many piecewise-constant steps
_BITS = np.uint64(32)  # shares are fractions of 2³²: integers, exact on every machine
_ONE = 1 << 32
_HALF = np.uint64(1 << 31)


# ------------------------------------------------------------------ user settings and their phases


@dataclass(frozen=True)
class MixtureCorpus:
    """One corpus of a mixture.

    Args:
        path: The `out` folder of a `prepare` recipe, or a folder of token shards.
        weight: Share of the training tokens, relative to the other corpora's weights.
        max_epochs: Maximum number of times that each of its tokens is used; then the other corpora share its weight.
            Null: no cap.
        name: Name in logs and in the schedule; null takes the folder's name.
    """

    path: str
    weight: float | None = None
    max_epochs: float | None = None
    name: str | None = None


@dataclass(frozen=True)
class MixtureChange:
    """Change of the weights at some step.

    Args:
        at: Time of the change: a fraction of the run between 0 and 1 (a float, such as 0.8), or an optimizer step (an
            int).
        weights: New weights by corpus name; a corpus that is not listed gets weight 0.
        over: Duration of a linear interpolation to the new weights (in up to 32 increments) instead of an immediate
            switch; a fraction of the run or a number of steps. It must end before the run does.
    """

    at: int | float
    weights: dict[str, float]
    over: int | float = 0


@dataclass(frozen=True)
class Phase:
    """Weights from a given sample on.

    Attributes:
        start: First sample of the phase.
        weights: Weight of each corpus, at least 0; only their proportions matter.
    """

    start: int
    weights: tuple[float, ...]


def first_weights(
    mode: WeightsMode, names: Sequence[str], tokens: Sequence[int], weights: Sequence[float | None], temperature: float
) -> tuple[float, ...]:
    """Return the share of each corpus; the shares add up to 1.

    Args:
        mode: `tokens`: proportional to size. `explicit`: as given in `weights`. `temperature`: proportional to tokens
            ** (1 / temperature) (Arivazhagan et al. 2019, arXiv:1907.05019); 1 equals `tokens`, large values sample all
            corpora equally.
        names: Names of the corpora.
        tokens: Training tokens of each corpus.
        weights: Weights given by the user.
        temperature: Values above 1 give small corpora more than their proportional share.

    Raises:
        UserError: for weights that are missing, superfluous or invalid.
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
                "remove the weights of the corpora"
            )
        check_above("temperature", temperature, 0, "1 is proportional to size, larger values are more even")
        exponent = 1.0 if mode == "tokens" else 1.0 / temperature
        shares = [(count / sum(tokens)) ** exponent for count in tokens]
    if any(not 0 <= share < float("inf") for share in shares) or sum(shares) <= 0:
        written = ", ".join(f"{name} {share:g}" for name, share in zip(names, shares, strict=True))
        raise UserError(f"weights of the mixture: {written}; all must be at least 0 and one above 0")
    return tuple(share / sum(shares) for share in shares)


def plan_phases(
    first: tuple[float, ...],
    names: Sequence[str],
    changes: Sequence[MixtureChange],
    total_steps: int | None,
    global_batch_size: int,
) -> list[Phase]:
    """Return the phases of a run in samples.

    Args:
        first: Weights from the start.
        names: Names of the corpora.
        changes: The schedule.
        total_steps: Optimizer steps of the run, to which fractions refer; None if unknown.
        global_batch_size: Samples per step.

    Raises:
        UserError: for unknown names, changes that are out of order or not complete by the end of the run, and fractions
            of a run of unknown length.
    """
    phases = [Phase(0, first)]
    for change in changes:
        start = _steps("at", change.at, total_steps)
        over = _length(change, start, total_steps)
        before, after = phases[-1].weights, _named(change.weights, names)
        if start * global_batch_size <= phases[-1].start and start:
            raise UserError(
                f"the mixture's schedule changes at step {start}, before the previous change is complete; let `at` "
                "increase from entry to entry"
            )
        if start == 0:
            raise UserError(
                f"at is {change.at}: weights from the first step on are the corpora's own; give a later one"
            )
        stairs = max(1, min(_RAMP_STEPS, over))
        for stair in range(1, stairs + 1):
            # The last increment has the new weights; each one before has those at its midpoint.
            share = 1.0 if stair == stairs else (stair - 0.5) / stairs
            weights = tuple((1 - share) * old + share * new for old, new in zip(before, after, strict=True))
            step = start + over * (stair - 1) // stairs
            phases.append(Phase(step * global_batch_size, weights))
    return phases


def _steps(name: str, value: int | float, total_steps: int | None) -> int:
    """Convert a fraction of the run (a float up to 1) or a number of steps to optimizer steps."""
    if not (value >= 0 and (isinstance(value, int) or value <= 1 or value.is_integer())):
        raise UserError(f"{name} is {value}; write a fraction of the run between 0 and 1, or a whole number of steps")
    if isinstance(value, float) and value <= 1:
        if total_steps is None:
            raise UserError(
                f"{name} {value} of the mixture's schedule is a fraction of a run whose length is not known; set "
                "trainer.max_steps, or data.init_args.total_steps, or write a number of steps"
            )
        value = round(value * total_steps)
    if name == "at" and total_steps is not None and value >= total_steps:
        raise UserError(f"at is step {int(value)}, and the run ends after {total_steps} steps; choose an earlier one")
    return int(value)


def _length(change: MixtureChange, start: int, total_steps: int | None) -> int:
    """Return the number of optimizer steps that a change takes; it ends with the run at the latest."""
    over = _steps("over", change.over, total_steps)
    if total_steps is None or start + over <= total_steps:
        return over
    shares = all(isinstance(value, float) and value <= 1 for value in (change.at, change.over))
    if shares and round((change.at + change.over) * total_steps) <= total_steps:
        return total_steps - start  # e.g. 0.3 and 0.7 of 5 steps, both rounded up
    raise UserError(
        f"the mixture's schedule changes from step {start} over {over} steps, and the run ends after {total_steps} "
        "steps, before the new weights take effect; choose an earlier `at`, or a shorter `over`"
    )


def _named(weights: Mapping[str, float], names: Sequence[str]) -> tuple[float, ...]:
    """Return the weights of a change in the order of `names`, normalized to sum to 1."""
    for name in weights:
        check_one_of("a corpus in the mixture's schedule", name, names)
    total = sum(weights.values())
    if any(not 0 <= weight < float("inf") for weight in weights.values()) or total <= 0:
        raise UserError(f"weights {dict(weights)} in the mixture's schedule: all must be at least 0 and one above 0")
    return tuple(weights.get(name, 0.0) / total for name in names)


# ------------------------------------------------------------------ the corpus of a sample


@dataclass(frozen=True)
class _Node:
    """Internal tree node; `left` receives `numerator` / 2³² of its samples. Leaves are corpus indices."""

    numerator: int
    left: "_Node | int"
    right: "_Node | int"


def _tree(corpora: Sequence[int], weights: Sequence[float]) -> _Node | int:
    """Return a balanced tree over corpora, whose weights must be above 0."""
    if len(corpora) == 1:
        return corpora[0]
    middle = (len(corpora) + 1) // 2
    left, right = corpora[:middle], corpora[middle:]
    share = sum(weights[c] for c in left) / sum(weights[c] for c in corpora)
    numerator = min(max(round(share * _ONE), 1), _ONE - 1)
    return _Node(numerator, _tree(left, weights), _tree(right, weights))


def _taken(numerator: int, count: np.ndarray) -> np.ndarray:
    """Return how many of the first `count` samples go left: (n,) uint64, exact below 2⁶³ samples."""
    high, low = count >> _BITS, count & np.uint64(_ONE - 1)
    return np.uint64(numerator) * high + ((np.uint64(numerator) * low + _HALF) >> _BITS)


def _route(node: _Node | int, numbers: np.ndarray, corpus: np.ndarray, index: np.ndarray, where: np.ndarray) -> None:
    """Write the corpus and the index within it of the samples `numbers` to the positions `where`."""
    if isinstance(node, int):
        corpus[where], index[where] = node, numbers.astype(np.int64)
        return
    before = _taken(node.numerator, numbers)
    goes_left = _taken(node.numerator, numbers + np.uint64(1)) > before
    _route(node.left, before[goes_left], corpus, index, where[goes_left])
    _route(node.right, (numbers - before)[~goes_left], corpus, index, where[~goes_left])


def _counts(node: _Node | int, count: int, counts: list[int]) -> None:
    """Add the number of samples from each corpus among the first `count` samples below `node`."""
    if isinstance(node, int):
        counts[node] += count
        return
    left = int(_taken(node.numerator, np.array([count], dtype=np.uint64))[0])
    _counts(node.left, left, counts)
    _counts(node.right, count - left, counts)


@dataclass(frozen=True)
class Segment:
    """A range of samples with constant weights.

    Attributes:
        start: First sample of the segment.
        weights: Shares of the corpora, adding up to 1; 0 for corpora whose cap is reached.
        drawn: Number of samples from each corpus before the segment.
        tree: Tree that assigns samples to corpora.
    """

    start: int
    weights: tuple[float, ...]
    drawn: tuple[int, ...]
    tree: _Node | int


class MixtureSampler:
    """Map a sample index to its corpus and to the sample's index within that corpus.

    Args:
        phases: Phases in order; the first one starts at sample 0.
        caps: Maximum number of samples from each corpus; None: unlimited.

    Attributes:
        num_samples: Number of samples until every corpus with a weight is exhausted; None: unlimited.

    Raises:
        UserError: for invalid weights.
    """

    def __init__(self, phases: Sequence[Phase], caps: Sequence[int | None]) -> None:
        check_phases(phases, len(caps))
        self.num_corpora = len(caps)
        self.num_samples: int | None = None
        self.segments: list[Segment] = []
        drawn = [0] * len(caps)
        for number, phase in enumerate(phases):
            position = phase.start
            end = phases[number + 1].start if number + 1 < len(phases) else None
            while end is None or position < end:
                left = [None if cap is None else cap - done for cap, done in zip(caps, drawn, strict=True)]
                active = [c for c in range(len(caps)) if phase.weights[c] > 0 and left[c] != 0]
                if not active:
                    self.num_samples = position
                    return
                total = sum(phase.weights[c] for c in active)
                shares = tuple(phase.weights[c] / total if c in active else 0.0 for c in range(len(caps)))
                segment = Segment(position, shares, tuple(drawn), _tree(active, shares))
                self.segments.append(segment)
                length = _samples_until_cap(segment, left, None if end is None else end - position)
                if length is None:
                    return
                _counts(segment.tree, length, drawn)
                position += length

    def assign(self, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the corpus and the index within it of each sample.

        Args:
            samples: (n,) int64, at least 0 and below `num_samples`.

        Returns:
            (n,) int64 corpus index, and (n,) int64 number of earlier samples from that corpus.
        """
        corpus = np.empty(len(samples), dtype=np.int64)
        index = np.empty(len(samples), dtype=np.int64)
        starts = np.array([segment.start for segment in self.segments])
        which = np.searchsorted(starts, samples, side="right") - 1
        for number in np.unique(which).tolist():
            segment = self.segments[number]
            where = np.flatnonzero(which == number)
            numbers = (np.asarray(samples)[where] - segment.start).astype(np.uint64)
            _route(segment.tree, numbers, corpus, index, where)
            index[where] += np.array(segment.drawn)[corpus[where]]
        return corpus, index

    def drawn(self, num_samples: int) -> list[int]:
        """Return the number of samples from each corpus among the first `num_samples`."""
        segment = next(s for s in reversed(self.segments) if s.start <= num_samples)
        counts = list(segment.drawn)
        _counts(segment.tree, num_samples - segment.start, counts)
        return counts

    def wanted(self, num_samples: int) -> list[float]:
        """Return the (fractional) number of samples per corpus that the weights request of the first `num_samples`."""
        totals = [0.0] * self.num_corpora
        ends = [segment.start for segment in self.segments[1:]] + [num_samples]
        for segment, end in zip(self.segments, ends, strict=True):
            length = max(0, min(end, num_samples) - segment.start)
            totals = [total + weight * length for total, weight in zip(totals, segment.weights, strict=True)]
        return totals

    def past(self, num_samples: int) -> list[list[float]]:
        """Return what the order of the first `num_samples` samples depends on: [start, weights...] of each segment."""
        return [[float(s.start), *s.weights] for s in self.segments if s.start < num_samples]


def check_phases(phases: Sequence[Phase], num_corpora: int) -> None:
    """Check the weights of the phases.

    Raises:
        UserError: naming the weights or the sample.
    """
    assert phases, "a mixture needs at least one phase"
    assert phases[0].start == 0, "the first phase must start at sample 0"
    for number, phase in enumerate(phases):
        assert len(phase.weights) == num_corpora
        if any(not 0 <= weight < float("inf") for weight in phase.weights) or sum(phase.weights) <= 0:
            raise UserError(f"weights {list(phase.weights)} of the mixture: all must be at least 0 and one above 0")
        if number and phase.start <= phases[number - 1].start:
            raise UserError(
                f"the mixture's schedule changes at sample {phase.start}, which is not after the previous change; "
                "let `at` increase from entry to entry"
            )


def _samples_until_cap(segment: Segment, left: Sequence[int | None], length: int | None) -> int | None:
    """Return the number of samples until a corpus reaches its cap, at most `length`; None: never."""
    for corpus, (weight, rest) in enumerate(zip(segment.weights, left, strict=True)):
        if rest is None or weight == 0:
            continue
        counts = [0] * len(left)
        if length is not None:
            _counts(segment.tree, length, counts)
            if counts[corpus] < rest:
                continue
        low, high = 0, length if length is not None else int((rest + 64) / weight * 1.001) + 64
        while low < high:
            middle = (low + high) // 2
            counts = [0] * len(left)
            _counts(segment.tree, middle, counts)
            low, high = (low, middle) if counts[corpus] >= rest else (middle + 1, high)
        length = low
    return length
