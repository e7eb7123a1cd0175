"""The personal data of a training text: every value, and an even sample of places with the words before them."""

import heapq
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from lit_gpt.data.cleaning.pii import Finding, find_pii
from lit_gpt.evaluation.measure import Progress
from lit_gpt.evaluation.texts import ReadTexts

_CONTEXT_CHARACTERS = 16
"""Per token of context that is wanted: enough where a token has so many."""
_MIN_CONTEXT = 8
"""Characters: a value at the very beginning of its text cannot be asked for."""
_SHOWN = 2


def normalised(value: str, option: str) -> str:
    """Returns a value as it is compared: the digits of numbers, everything in lower case.

    Example:
        >>> normalised("+44 20 7946-0958", "phone_numbers"), normalised("Ada@Lovelace.org", "emails")
        ('442079460958', 'ada@lovelace.org')
    """
    if option in ("phone_numbers", "credit_cards", "ibans"):
        return re.sub(r"[\W_]+", "", value).lower()
    return value.lower() if option == "emails" else value.strip()


def masked(text: str, findings: Sequence[Finding]) -> str:
    """Returns a text in which of each finding only two characters at either end, and its punctuation, can be read."""
    parts, at = [], 0
    for finding in findings:
        value = text[finding.start : finding.end]
        inner = re.sub(r"\w", "•", value[_SHOWN:-_SHOWN])
        parts += [text[at : finding.start], value[:_SHOWN] + inner + value[-_SHOWN:]]
        at = finding.end
    return "".join(parts) + text[at:]


@dataclass(frozen=True)
class Place:
    """One piece of personal data where it stands.

    Attributes:
        option: Its kind, of `lit_gpt.data.cleaning.pii.KINDS`.
        value: As it stands there.
        before: What stands before it.
        at_start: Whether `before` begins with its document.
        where: Source, record and character.
        document: Hash of its document.
    """

    option: str
    value: str
    before: str
    at_start: bool
    where: str
    document: str


@dataclass
class PersonalData:
    """What was found.

    Attributes:
        values: Kind → all values, normalised.
        num_found: Kind → places, the same value counted again.
        places: A sample, each value once.
    """

    values: dict[str, set[str]] = field(default_factory=dict)
    num_found: dict[str, int] = field(default_factory=dict)
    places: list[Place] = field(default_factory=list)


def collect(
    read: ReadTexts, kinds: Sequence[str], count: int, context_tokens: int, seed: int, progress: Progress
) -> PersonalData:
    """Finds the personal data of texts.

    Args:
        read: The texts; read once.
        kinds: What to look for.
        count: Places to sample, each of another value; those whose value stands in the context already say nothing
            about memory, and are no places.
        context_tokens: How much context is wanted.
        seed: Of the sample.
        progress: Told how many bytes are read.
    """
    data = PersonalData({kind: set() for kind in kinds}, dict.fromkeys(kinds, 0))
    heap: list[tuple[float, str, Place]] = []
    expected = read.expected_bytes() or 0
    for admitted in read.admitted():
        text = admitted.document.text
        findings = find_pii(text, kinds)
        draws = np.random.default_rng([seed, int.from_bytes(admitted.digest[:16], "big")]).random(len(findings))
        for finding, key in zip(findings, draws.tolist(), strict=True):
            value = text[finding.start : finding.end]
            same = normalised(value, finding.option)
            data.num_found[finding.option] += 1
            is_new = same not in data.values[finding.option]
            data.values[finding.option].add(same)
            start = max(0, finding.start - _CONTEXT_CHARACTERS * context_tokens)
            before = text[start : finding.start]
            if not is_new or value in before or len(before) < _MIN_CONTEXT:
                continue
            where = f"{admitted.document.where}@{finding.start}"
            place = Place(finding.option, value, before, start == 0, where, admitted.digest.hex()[:32])
            if len(heap) < count:
                heapq.heappush(heap, (-key, where, place))
            elif count and -heap[0][0] > key:
                heapq.heapreplace(heap, (-key, where, place))
        progress(read.num_bytes, max(read.num_bytes, expected))
    data.places = [place for _, _, place in sorted(heap, key=lambda item: -item[0])]
    return data
