"""Published benchmarks run as lm-eval tasks on rows read by this package; shared by CrowS-Pairs, BBQ and TruthfulQA.

Stages: rows of a file, a dataset or an embedded set → one document per row, with the columns that the task file
(`harness/tasks/*.yaml`) names → lm-eval queries the model and scores each document → the measure adds intervals,
clusters, breakdowns and charts.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lit_gpt.data.records import BadInput, Record
from lit_gpt.errors import UserError
from lit_gpt.evaluation.harness.measure import ask_docs
from lit_gpt.evaluation.progress import Progress, no_progress
from lit_gpt.evaluation.safety.rows import RowSet
from lit_gpt.evaluation.subject import Subject
from lit_gpt.generation.text import opened

Doc = dict[str, Any]
"""A document of an lm-eval task. `where` is its item id; questions also have `query` and `choices`."""


@dataclass(frozen=True)
class ReadDocs:
    """Documents read by a measure.

    Attributes:
        docs: Documents in the order of the rows.
        settings: What is needed to read the same rows again.
        notes: Notes on excluded rows.
    """

    docs: list[Doc]
    settings: dict[str, Any]
    notes: tuple[str, ...]


def read_docs(items: RowSet, required: Sequence[str], to_doc: Callable[[Record], Doc]) -> ReadDocs:
    """Read rows as documents.

    items: Source of the rows.
        items: Where the rows come from.
        required: Fields that must hold text.
        to_doc: Converts a row; raises a `UserError` if it does not fit.

    Raises:
        UserError: If a row does not fit (with `on_bad_input: error`), or none does.
    """
    read = items.read(required)
    bad_input = BadInput(items.on_bad_input)
    docs = []
    for row in read.rows:
        try:
            docs.append(to_doc(row) | {"where": row.where})
        except UserError as error:
            bad_input.reject(row.where, str(error))
    if not docs:
        raise UserError(f"{read.settings['items']} contains no usable question: {bad_input.named[0]}")
    skipped = (f"{bad_input.num_skipped} questions were left out: {bad_input.named[0]}.",) if bad_input.named else ()
    return ReadDocs(docs, read.settings, (*read.notes, *skipped))


def ask(
    subject: Subject, task: str, docs: Sequence[Doc], progress: Progress = no_progress
) -> dict[str, Mapping[str, Any]]:
    """Run one of our lm-eval tasks on documents.

    Each text starts as in training, for published models, too.

    Returns:
        Item id → lm-eval's sample of the document: its metrics by name, and `resps`, one list for each choice with one
        (log-likelihood in nats, is greedy) in it.
    """
    return {sample["doc"]["where"]: sample for sample in ask_docs(subject, task, docs, progress)}


def answers_fit(subject: Subject, docs: Sequence[Doc]) -> list[bool]:
    """Return, for each question, whether all of its answers are shorter than the model's context.

    Raises:
        UserError: If that holds for no question.
    """
    longest = [f" {max(doc['choices'], key=len)}" for doc in docs]
    fits = [len(ids) < subject.block_size for ids in subject.tokenizer.encode_batch(longest)]
    if not any(fits):
        raise UserError(
            f"no question has answers shorter than the context of {subject.name}, {subject.block_size} tokens; use a "
            "model with a longer context"
        )
    return fits


def longest_texts(subject: Subject, docs: Sequence[Doc]) -> list[int]:
    """Return the number of tokens of each question with its longest answer, including the opening tokens."""
    texts = [f"{doc['query']} {max(doc['choices'], key=len)}" for doc in docs]
    return [len(opened(subject.tokenizer, ids.tolist())) for ids in subject.tokenizer.encode_batch(texts)]


def length_notes(subject: Subject, docs: Sequence[Doc], num_left_out: int = 0) -> tuple[str, ...]:
    """Return the notes on questions that are too long for the model.

    Args:
        subject: The model.
        docs: Questions that were asked.
        num_left_out: Number of questions that were not asked because an answer is longer than the context.
    """
    notes = []
    if num_left_out:
        notes.append(f"{num_left_out} questions have answers longer than the model's context and were left out.")
    cut = sum(length > subject.block_size + 1 for length in longest_texts(subject, docs))
    if cut:
        notes.append(
            f"{cut} of {len(docs)} questions are longer than the model's context of {subject.block_size} tokens: "
            "their beginning was cut off."
        )
    return tuple(notes)
