"""Which corpus sample p of a mixture comes from, and how many samples of that corpus came before it.

In stages:

1. What the user writes (`MixtureCorpus`, `MixtureChange`: weights, temperature, a schedule in steps) becomes `Phase`s:
   weights that hold from one sample on (`first_weights`, `plan_phases`).
2. Phases and epoch caps are cut into `Segment`s with one set of weights each (`MixtureSampler`). A cap is reached where
   a corpus has been drawn that often, which is found by bisection; from there on the others share its weight.
3. Within a segment, the corpus of a sample is a pure function of the sample's number.

Drawing a corpus at random for each sample would leave the proportions to luck, and would need a counter for each corpus
to find its next window. Here both are computed. A binary tree has the corpora as leaves; a node whose left side has the
share λ of its weight sends round(λ q) of its first q samples to the left (a line drawn on a grid, Bresenham 1965). So
sample q goes left if round(λ (q + 1)) > round(λ q), and it is number round(λ q) there: the same question again, one
level down. After any number of samples each of K corpora has been drawn as often as its weight says, to within half a
sample per level of the tree (⌈log₂ K⌉ of them); nothing is stored, and any sample can be asked for.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from lit_gpt.checks import check_above, check_one_of
from lit_gpt.errors import UserError

WeightsMode = Literal["tokens", "temperature", "explicit"]
_STAIRS = 32  # a slow change of the weights is a staircase: weights are constant within a segment
_BITS = np.uint64(32)  # shares are fractions of 2³²: integers, exact on every machine
_ONE = 1 << 32
_HALF = np.uint64(1 << 31)


# ------------------------------------------------------------------ what a user writes, and its phases


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


@dataclass(frozen=True)
class Phase:
    """Weights from one sample on.

    Attributes:
        start: First sample of the phase.
        weights: Of each corpus, at least 0; what counts is their proportion.
    """

    start: int
    weights: tuple[float, ...]


def first_weights(
    mode: WeightsMode, names: Sequence[str], tokens: Sequence[int], weights: Sequence[float | None], temperature: float
) -> tuple[float, ...]:
    """Return the share of each corpus, adding up to 1.

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
        check_above("temperature", temperature, 0, "1 is by size, larger values are more even")
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
    """Return the phases of a run in samples.

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
    """Return optimizer steps from a share of the run (a float up to 1) or a number of steps."""
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
    """Return the optimizer steps that a change takes, which end with the run at the latest."""
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
    """Return the weights of a change in the order of `names`, adding up to 1."""
    for name in weights:
        check_one_of("a corpus in the mixture's schedule", name, names)
    total = sum(weights.values())
    if any(not 0 <= weight < float("inf") for weight in weights.values()) or total <= 0:
        raise UserError(f"weights {dict(weights)} in the mixture's schedule: each must be at least 0, and one above it")
    return tuple(weights.get(name, 0.0) / total for name in names)


# ------------------------------------------------------------------ which corpus a sample is from


@dataclass(frozen=True)
class _Node:
    """A fork: `left` gets the share `numerator` / 2³² of its samples. Leaves are the numbers of corpora."""

    numerator: int
    left: "_Node | int"
    right: "_Node | int"


def _tree(corpora: Sequence[int], weights: Sequence[float]) -> _Node | int:
    """Return a balanced tree over corpora (their weights are above 0)."""
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
    """Fill in the corpus and the index of the samples `numbers`, at the positions `where`."""
    if isinstance(node, int):
        corpus[where], index[where] = node, numbers.astype(np.int64)
        return
    before = _taken(node.numerator, numbers)
    goes_left = _taken(node.numerator, numbers + np.uint64(1)) > before
    _route(node.left, before[goes_left], corpus, index, where[goes_left])
    _route(node.right, (numbers - before)[~goes_left], corpus, index, where[~goes_left])


def _counts(node: _Node | int, count: int, counts: list[int]) -> None:
    """Add how often each corpus is drawn in the first `count` samples below `node`."""
    if isinstance(node, int):
        counts[node] += count
        return
    left = int(_taken(node.numerator, np.array([count], dtype=np.uint64))[0])
    _counts(node.left, left, counts)
    _counts(node.right, count - left, counts)


@dataclass(frozen=True)
class Segment:
    """A stretch of samples with one set of weights.

    Attributes:
        start: Its first sample.
        weights: Shares of the corpora, adding up to 1; 0 for those whose cap is reached.
        drawn: How often each corpus was drawn before it.
        tree: Says which corpus a sample is from.
    """

    start: int
    weights: tuple[float, ...]
    drawn: tuple[int, ...]
    tree: _Node | int


class MixtureSampler:
    """Map a sample's number to its corpus and to the number of the draw from that corpus.

    Args:
        phases: Weights and the samples from which they hold, the first from 0 on, in order.
        caps: Draws that each corpus allows; None without end.

    Attributes:
        num_samples: Samples until every corpus that still has a weight is used up; None: without end.

    Raises:
        UserError: for weights that cannot be used.
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
                length = _until_a_cap(segment, left, None if end is None else end - position)
                if length is None:
                    return
                _counts(segment.tree, length, drawn)
                position += length

    def assign(self, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return corpus and draw of each sample.

        Args:
            samples: (n,) int64, at least 0 and below `num_samples`.

        Returns:
            (n,) int64 number of the corpus, and (n,) int64 how often that corpus was drawn before.
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
        """Return how often each corpus is drawn in the first `num_samples` samples."""
        segment = next(s for s in reversed(self.segments) if s.start <= num_samples)
        counts = list(segment.drawn)
        _counts(segment.tree, num_samples - segment.start, counts)
        return counts

    def wanted(self, num_samples: int) -> list[float]:
        """Return the draws that the weights ask for in the first `num_samples` samples, fractions included."""
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
    """Refuse weights that cannot be used.

    Raises:
        UserError: naming the weights or the sample.
    """
    assert phases, "a mixture needs at least one phase"
    assert phases[0].start == 0, "the first phase begins with the first sample"
    for number, phase in enumerate(phases):
        assert len(phase.weights) == num_corpora
        if any(not 0 <= weight < float("inf") for weight in phase.weights) or sum(phase.weights) <= 0:
            raise UserError(f"weights {list(phase.weights)} of the mixture: each must be at least 0, one above it")
        if number and phase.start <= phases[number - 1].start:
            raise UserError(
                f"the mixture's schedule changes at sample {phase.start}, which is not after the change before it; "
                "let `at` rise from entry to entry"
            )


def _until_a_cap(segment: Segment, left: Sequence[int | None], length: int | None) -> int | None:
    """Return the samples until a corpus has no draws left, at most `length`; None: forever."""
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
