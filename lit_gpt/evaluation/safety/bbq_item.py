"""One row in the form of BBQ: what is told and asked, and which answer is right, unknown, or the biased one."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lit_gpt.data.rows import Row
from lit_gpt.errors import UserError

UNKNOWN = (
    "Unknown",
    "Cannot answer",
    "Can't be determined",
    "Cannot be determined",
    "Can't answer",
    "Not known",
    "Not enough info",
    "Not enough information",
    "Not answerable",
    "Undetermined",
)
ANSWERS = ("ans0", "ans1", "ans2")
_SPELLINGS = {
    "M-": "M_", "F-": "F_", "lowSES-": "lowSES_", "highSES-": "highSES_",
    "lowSES": "low SES", "highSES": "high SES", "nonObese": "non Obese", "nonDisabled": "non Disabled",
    "nonTrans": "non Trans",
}  # fmt: skip
"""In the published files groups are spelt otherwise in `answer_info` than in `stereotyped_groups`."""


@dataclass(frozen=True)
class BBQItem:
    """One question.

    Attributes:
        item: Its id.
        template: What it was made from, with others.
        context: What is told.
        question: What is asked.
        named: The two answers that name somebody.
        unknown: The answer that says it cannot be known, in this row's wording.
        right: Which answer is right: 0 or 1 of `named`, 2 for unknown.
        biased: Which of `named` a biased model gives; None where the row does not say.
        ambiguous: Whether too little is told.
    """

    item: str
    template: str
    context: str
    question: str
    named: tuple[str, str]
    unknown: str
    right: int
    biased: int | None
    ambiguous: bool


def bbq_item(row: Row) -> BBQItem:
    """Read a row.

    Raises:
        UserError: A value is none of those that the form has.
    """
    values = row.values
    polarity, condition = values["question_polarity"], values["context_condition"]
    if polarity not in ("neg", "nonneg") or condition not in ("ambig", "disambig"):
        raise UserError(
            f"question_polarity is {polarity!r} (neg or nonneg) and context_condition {condition!r} (ambig or disambig)"
        )
    label, answers = values.get("label"), [values[name] for name in ANSWERS]
    label = int(label) if isinstance(label, str) and label in ("0", "1", "2") else label
    if label not in (0, 1, 2):
        raise UserError(f"label is {label!r}; it must be 0, 1 or 2")
    info = values.get("answer_info")
    groups = [_groups(info, name) for name in ANSWERS]
    unknown = next((n for n, answer in enumerate(answers) if groups[n][-1] == "unknown" or answer in UNKNOWN), None)
    if unknown is None:
        raise UserError("none of its three answers says that it cannot be known")
    named = [number for number in range(3) if number != unknown]
    metadata = values.get("additional_metadata")
    stereotyped = metadata.get("stereotyped_groups") if isinstance(metadata, Mapping) else None
    targets = {str(group).lower() for group in stereotyped or ()}
    is_target = [bool(targets & set(groups[number])) for number in named]
    biased = None
    if is_target[0] != is_target[1]:
        biased = is_target.index(polarity == "neg")
    return BBQItem(
        item=row.where,
        template=f"{values.get('category', '')} {values.get('question_index', row.record)}",
        context=values["context"],
        question=values["question"],
        named=(answers[named[0]], answers[named[1]]),
        unknown=answers[unknown],
        right=2 if label == unknown else named.index(label),
        biased=biased,
        ambiguous=condition == "ambig",
    )


def _groups(info: Any, name: str) -> list[str]:
    """The groups that an answer names, in lower case; several for "F-Black"."""
    said = info.get(name) if isinstance(info, Mapping) else None
    text = "_".join(map(str, said)) if isinstance(said, list | tuple) else str(said or "")
    for spelling, ours in _SPELLINGS.items():
        text = text.replace(spelling, ours)
    text = text.replace("woman", "F_woman") if "woman" in text else text.replace("man", "M_man")
    return text.replace("girl", "F_girl").replace("boy", "M_boy").lower().split("_")
