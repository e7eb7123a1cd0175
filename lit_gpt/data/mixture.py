"""Which corpus sample p of a mixture comes from, and the how-manieth of that corpus it is: a pure function.

Drawing a corpus at random for each sample leaves the proportions to luck and needs a counter for each corpus to find
its next window. Here both are computed. A binary tree has the corpora as leaves; a node whose left side has the
share λ of its weight sends its first q samples round(λ q) times to the left (a line drawn on a grid, Bresenham 1965).
So sample q goes left if round(λ (q + 1)) > round(λ q), and it is number round(λ q) there: the same question again, one
level down. After any number of samples each of K corpora has been drawn as often as its weight says, to within half
a sample a level of the tree (⌈log₂ K⌉ of them); nothing is stored, and any sample can be asked for.

Weights that change, and epoch caps, cut the samples into segments, each with its own tree and the number of draws
before it. A cap is met where a corpus has been drawn that often, which is found by bisection; from there on the others
share its weight.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lit_gpt.errors import UserError

_BITS = np.uint64(32)
_ONE = 1 << 32
_HALF = np.uint64(1 << 31)


@dataclass(frozen=True)
class _Node:
    """A fork: `left` gets the share `numerator` / 2³² of its samples. Leaves are the numbers of corpora."""

    numerator: int
    left: "_Node | int"
    right: "_Node | int"


def _tree(corpora: Sequence[int], weights: Sequence[float]) -> _Node | int:
    """Returns a balanced tree over corpora (their weights are above 0)."""
    if len(corpora) == 1:
        return corpora[0]
    middle = (len(corpora) + 1) // 2
    left, right = corpora[:middle], corpora[middle:]
    share = sum(weights[c] for c in left) / sum(weights[c] for c in corpora)
    numerator = min(max(round(share * _ONE), 1), _ONE - 1)
    return _Node(numerator, _tree(left, weights), _tree(right, weights))


def _taken(numerator: int, count: np.ndarray) -> np.ndarray:
    """Returns how many of the first `count` samples go left: (n,) uint64, exact below 2⁶³ samples."""
    high, low = count >> _BITS, count & np.uint64(_ONE - 1)
    return np.uint64(numerator) * high + ((np.uint64(numerator) * low + _HALF) >> _BITS)


def _route(node: _Node | int, numbers: np.ndarray, corpus: np.ndarray, index: np.ndarray, where: np.ndarray) -> None:
    """Fills in the corpus and the index of the samples `numbers`, which stand at the places `where`."""
    if isinstance(node, int):
        corpus[where], index[where] = node, numbers.astype(np.int64)
        return
    before = _taken(node.numerator, numbers)
    goes_left = _taken(node.numerator, numbers + np.uint64(1)) > before
    _route(node.left, before[goes_left], corpus, index, where[goes_left])
    _route(node.right, (numbers - before)[~goes_left], corpus, index, where[~goes_left])


def _counts(node: _Node | int, count: int, counts: list[int]) -> None:
    """Adds how often each corpus is drawn in the first `count` samples below `node`."""
    if isinstance(node, int):
        counts[node] += count
        return
    left = int(_taken(node.numerator, np.array([count], dtype=np.uint64))[0])
    _counts(node.left, left, counts)
    _counts(node.right, count - left, counts)


@dataclass(frozen=True)
class Phase:
    """Weights from one sample on.

    Attributes:
        start: First sample of the phase.
        weights: Of each corpus, at least 0; what counts is their proportion.
    """

    start: int
    weights: tuple[float, ...]


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
    """Maps a sample's number to its corpus and to the number of the draw from that corpus.

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
        """Returns corpus and draw of each sample.

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
        """Returns how often each corpus is drawn in the first `num_samples` samples."""
        segment = next(s for s in reversed(self.segments) if s.start <= num_samples)
        counts = list(segment.drawn)
        _counts(segment.tree, num_samples - segment.start, counts)
        return counts

    def wanted(self, num_samples: int) -> list[float]:
        """Returns the draws that the weights ask for in the first `num_samples` samples, fractions included."""
        totals = [0.0] * self.num_corpora
        ends = [segment.start for segment in self.segments[1:]] + [num_samples]
        for segment, end in zip(self.segments, ends, strict=True):
            length = max(0, min(end, num_samples) - segment.start)
            totals = [total + weight * length for total, weight in zip(totals, segment.weights, strict=True)]
        return totals

    def past(self, num_samples: int) -> list[list[float]]:
        """Returns what the order of the first `num_samples` samples depends on: [start, weights...] of each segment."""
        return [[float(s.start), *s.weights] for s in self.segments if s.start < num_samples]


def check_phases(phases: Sequence[Phase], num_corpora: int) -> None:
    """Refuses weights that cannot be used.

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
    """Returns the samples until a corpus has no draws left, at most `length`; None: for ever."""
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
