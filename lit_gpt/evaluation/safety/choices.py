"""Questions with given answers, put to a model by what it finds probable."""

from collections.abc import Sequence
from dataclasses import dataclass

from lit_gpt.errors import UserError
from lit_gpt.evaluation.progress import Progress, no_progress
from lit_gpt.evaluation.subject import Subject
from lit_gpt.generation.text import opened


@dataclass(frozen=True)
class Choices:
    """A question as the model reads it, and its answers with the space before each."""

    context: str
    answers: Sequence[str]


def choice_logprobs(
    subject: Subject, questions: Sequence[Choices], progress: Progress = no_progress
) -> list[list[float]]:
    """Log-probabilities of the answers of each question, in nats; sums over an answer's tokens, as in lm-eval."""
    pairs = [(question.context, answer) for question in questions for answer in question.answers]
    values = iter(subject.likelihoods.of_texts(pairs, progress))
    return [[next(values).logprob for _ in question.answers] for question in questions]


def answers_fit(subject: Subject, questions: Sequence[Choices]) -> list[bool]:
    """Whether each question's answers are all shorter than the model's context.

    Raises:
        UserError: It is so of no question.
    """
    longest = [max(question.answers, key=len) for question in questions]
    fits = [len(ids) < subject.block_size for ids in subject.tokenizer.encode_batch(longest)]
    if not any(fits):
        raise UserError(
            f"no question has answers shorter than the context of {subject.name}, {subject.block_size} tokens; use a "
            "model with a longer context"
        )
    return fits


def longest_texts(subject: Subject, questions: Sequence[Choices]) -> list[int]:
    """Tokens of each question with its longest answer and what opens a text."""
    texts = [question.context + max(question.answers, key=len) for question in questions]
    return [len(opened(subject.tokenizer, ids.tolist())) for ids in subject.tokenizer.encode_batch(texts)]


def cut_note(subject: Subject, questions: Sequence[Choices], num_left_out: int = 0) -> tuple[str, ...]:
    """What to say in the report of questions that are too long.

    Args:
        subject: The model.
        questions: That were asked.
        num_left_out: That were not, since an answer is longer than the context.
    """
    cut = sum(length > subject.block_size + 1 for length in longest_texts(subject, questions))
    notes = []
    if num_left_out:
        notes.append(f"{num_left_out} questions have answers longer than the model's context and were left out.")
    if not cut:
        return tuple(notes)
    return (
        *notes,
        f"{cut} of {len(questions)} questions are longer than the model's context of {subject.block_size} tokens: "
        "their beginning was cut off.",
    )
