"""Read local files of well-known benchmarks into the columns that the task files expect.

Each function here is named as `custom_dataset` in a task file of `tasks/` and returns lm-eval's dataset: a split `test`
of the questions and, if there is a second file, a split `fewshot` of examples to show. A row that does not fit the
format is an error that names file and row. Task files refer to columns rather than templates where possible, because
lm-eval compiles a template again for every question.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from lit_gpt.data.records import BadInput, FileRecords
from lit_gpt.errors import UserError

Row = Mapping[str, Any]
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


class UnfitRowError(UserError):
    """A row lacks something that the format requires; the message says what, without the row's position."""


def hellaswag(file: str, fewshot_file: str | None = None, **_: Any) -> Any:
    """Read HellaSwag's jsonl (Zellers et al. 2019): `ctx` or its parts (`ctx_a`, ...), `endings`, `label`."""
    return file_docs(_hellaswag, file, fewshot_file)


def truthfulqa(file: str, fewshot_file: str | None = None, **_: Any) -> Any:
    """Read TruthfulQA's `mc_task.json` (Lin et al. 2022): `question`, `mc1_targets`, `mc2_targets` {answer: 1 or 0}."""
    return file_docs(_truthfulqa, file, fewshot_file)


def mc2_scores(doc: Mapping[str, Any], results: Sequence[tuple[float, bool]]) -> dict[str, float]:
    """Return the true answers' share of the probability of all answers, as lm-eval but without underflow."""
    logprobs = np.array([logprob for logprob, _ in results])
    shares = np.exp(logprobs - logprobs.max())
    return {"acc": float(shares[np.array(doc["mc2_labels"]) == 1].sum() / shares.sum())}


def gsm8k(file: str, fewshot_file: str | None = None, **_: Any) -> Any:
    """Read GSM8K's jsonl (Cobbe et al. 2021): `question`, and `answer` that ends with `#### 42`."""
    return file_docs(_gsm8k, file, fewshot_file)


def multiple_choice(file: str, fewshot_file: str | None = None, **_: Any) -> Any:
    """Read any multiple-choice questions: csv, tsv, jsonl, json or parquet.

    `question`; the choices as a list in `choices`, or in columns `A`, `B`, `C`, ... or `choice_1`, `choice_2`, ...;
    `answer`: letter, text, or index from 0 of the correct choice (`label` is accepted, too).
    """
    return file_docs(_multiple_choice, file, fewshot_file)


def given_docs(docs: list[dict[str, Any]], **_: Any) -> Any:
    """Return lm-eval's dataset of documents that a measure has already read (`find.task_on_docs`)."""
    import datasets

    return datasets.DatasetDict({"test": datasets.Dataset.from_list(docs)})


def file_docs(read: Callable[[Row], dict[str, Any]], file: str, fewshot_file: str | None) -> Any:
    """Return lm-eval's dataset of a file, with a split `test` and, from a second file, a split `fewshot`.

    Args:
        read: Converts a row to a document; raises `UnfitRowError` if it cannot.
        file: File of the questions.
        fewshot_file: File of few-shot examples.
    """
    import datasets

    splits = {"test": file} | ({"fewshot": fewshot_file} if fewshot_file else {})
    return datasets.DatasetDict(
        {split: datasets.Dataset.from_list(_rows(read, path)) for split, path in splits.items()}
    )


def _rows(read: Callable[[Row], dict[str, Any]], file: str) -> list[dict[str, Any]]:
    source = FileRecords(file)
    rows = []
    for row in source.records(BadInput("error")):
        try:
            rows.append(read(row.values) | {"where": row.where})
        except UnfitRowError as problem:
            raise UserError(f"{row.where}: {problem}; its fields are {', '.join(map(repr, row.values))}") from problem
    if not rows:
        raise UserError(f"{file} contains no rows; name a file that is not empty")
    return rows


def _hellaswag(row: Row) -> dict[str, Any]:
    if "activity_label" in row:
        context = f"{_text(row, 'activity_label')}: {_text(row, 'ctx_a')} {_text(row, 'ctx_b', True).capitalize()}"
    else:
        context = _text(row, "ctx")
    choices = [_without_brackets(ending) for ending in _texts(row, "endings")]
    return {"query": _without_brackets(context), "choices": choices, "gold": _number(row, "label", len(choices))}


def _without_brackets(text: str) -> str:
    """Remove the brackets left over from WikiHow, as in lm-eval's task."""
    return re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". ")).replace("  ", " ")


def _truthfulqa(row: Row) -> dict[str, Any]:
    result: dict[str, Any] = {"question": _text(row, "question")}
    for name in ("mc1", "mc2"):
        value = row.get(f"{name}_targets")
        if not isinstance(value, Mapping) or not value:
            raise UnfitRowError(f"no '{name}_targets' that is an object of answers")
        if isinstance(value.get("choices"), Sequence) and isinstance(value.get("labels"), Sequence):
            value = dict(zip(value["choices"], value["labels"], strict=True))  # as on the hub
        if set(value.values()) != {0, 1}:
            raise UnfitRowError(f"'{name}_targets' needs answers labeled 1 and answers labeled 0")
        result |= {f"{name}_choices": list(value), f"{name}_labels": list(value.values())}
    labels = result["mc1_labels"]
    if sum(labels) != 1:
        raise UnfitRowError(f"'mc1_targets' has {sum(labels)} answers labeled 1; it must have exactly one")
    return result | {"gold": labels.index(1)}


def _gsm8k(row: Row) -> dict[str, Any]:
    answer = _text(row, "answer")
    if "####" not in answer:
        raise UnfitRowError("the field 'answer' does not end with '#### ' and a number")
    return {"question": _text(row, "question"), "answer": answer}


def _multiple_choice(row: Row) -> dict[str, Any]:
    choices = _choices(row)
    name = "answer" if "answer" in row else "label"
    answer = row.get(name)
    if isinstance(answer, str):
        text = answer.strip()
        if text in choices:
            return {"question": _text(row, "question"), "choices": choices, "gold": choices.index(text)}
        if len(text) == 1 and text.upper() in LETTERS[: len(choices)]:
            return {"question": _text(row, "question"), "choices": choices, "gold": LETTERS.index(text.upper())}
    return {"question": _text(row, "question"), "choices": choices, "gold": _number(row, name, len(choices))}


def _choices(row: Row) -> list[str]:
    if "choices" in row:
        return _texts(row, "choices")
    for names in (LETTERS, [f"choice_{number}" for number in range(1, 27)]):
        present = [name for name in names if row.get(name) not in (None, "")]
        if len(present) >= 2:
            return [str(row[name]).strip() for name in present]
    raise UnfitRowError(
        "no choices: neither a list 'choices', nor columns 'A', 'B', ..., nor 'choice_1', 'choice_2', ..."
    )


def _text(row: Row, name: str, may_be_empty: bool = False) -> str:
    value = row.get(name)
    if not isinstance(value, str) or not (may_be_empty or value.strip()):
        raise UnfitRowError(f"no {name!r} with text")
    return value


def _texts(row: Row, name: str) -> list[str]:
    value = row.get(name)
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) < 2:
        raise UnfitRowError(f"no {name!r} that is a list of two or more texts")
    if not all(isinstance(text, str) and text.strip() for text in value):
        raise UnfitRowError(f"{name!r} has an entry that is empty or not text")
    return [text.strip() for text in value]


def _number(row: Row, name: str, count: int) -> int:
    try:
        number = int(str(row.get(name)).strip())
    except ValueError:
        number = -1
    if not 0 <= number < count:
        raise UnfitRowError(f"{name!r} is {row.get(name)!r}, which is not one of the {count} choices, counted from 0")
    return number
