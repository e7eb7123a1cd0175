"""The measure `Harness`, which runs lm-eval tasks by name, with one result per task."""

import importlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, get_args

from lit_gpt.checks import check_at_least, check_one_of
from lit_gpt.errors import UserError
from lit_gpt.evaluation.likelihood import Opening
from lit_gpt.evaluation.measure import Measure
from lit_gpt.evaluation.progress import Progress, no_progress
from lit_gpt.evaluation.result import Result
from lit_gpt.evaluation.subject import Subject
from lit_gpt.extras import need


class Harness(Measure):
    """Benchmarks of lm-eval (Gao et al., https://github.com/EleutherAI/lm-evaluation-harness).

    Args:
        tasks: Tasks, groups or tags of lm-eval, patterns such as `blimp_*`, or names of files in `data`.
        data: Task name → local file of its questions: hellaswag (jsonl), truthfulqa_mc1, truthfulqa_mc2 and truthfulqa
            (mc_task.json), gsm8k (jsonl), crows_pairs (csv), bbq (jsonl); any other name is multiple choice (csv,
            jsonl, ... with question, choices and answer).
        fewshot_data: Task name → file of few-shot examples, for tasks with a file; without one, they are sampled from
            the other questions.
        include_path: Folders with custom task files. They may refer to Python code, which is run.
        num_fewshot: Number of examples before each question; null: the task's own.
        limit: Number of questions per task, in order; null: all.
        apply_chat_template: Whether to send questions as a user's turn; null or false: as plain text.
        fewshot_as_multiturn: Whether, with a chat template, each example is a separate turn.
        max_gen_toks: Maximum length of a generated answer in tokens; null: the task's setting (256 if it has none).
        opening: Tokens that open a text: `trained`: those of training; `hf`: those of lm-eval's own `hf` model; `auto`:
            `hf` for published models, `trained` for our own.
        max_batch_tokens: Maximum number of tokens per forward pass for likelihoods; null: chosen by device.

    Raises:
        UserError: No tasks are named.
    """

    def __init__(
        self,
        tasks: Sequence[str],
        data: Mapping[str, str] | None = None,
        fewshot_data: Mapping[str, str] | None = None,
        include_path: str | Sequence[str] | None = None,
        num_fewshot: int | None = None,
        limit: int | None = None,
        apply_chat_template: bool = False,
        fewshot_as_multiturn: bool = True,
        max_gen_toks: int | None = None,
        opening: Opening = "auto",
        max_batch_tokens: int | None = None,
    ) -> None:
        self.tasks = [tasks] if isinstance(tasks, str) else list(tasks)
        if not self.tasks:
            raise UserError("no tasks are named; name some, such as hellaswag")
        check_at_least("num_fewshot", num_fewshot, 0)
        check_at_least("limit", limit, 1, "null for all")
        check_at_least("max_gen_toks", max_gen_toks, 1)
        check_at_least("max_batch_tokens", max_batch_tokens, 1)
        check_one_of("opening", opening, get_args(Opening))
        self.data, self.fewshot_data, self.include_path = dict(data or {}), dict(fewshot_data or {}), include_path
        self.num_fewshot, self.limit, self.max_gen_toks = num_fewshot, limit, max_gen_toks
        self.apply_chat_template, self.fewshot_as_multiturn = bool(apply_chat_template), fewshot_as_multiturn
        self.opening, self.max_batch_tokens = opening, max_batch_tokens

    def run(self, subject: Subject, progress: Progress = no_progress) -> list[Result]:
        """Run all tasks together, so that their requests share batches.

        Args:
            subject: The model.
            progress: Called with the number of requests of one kind (likelihood, generation) done.

        Returns:
            One result for each task, then one for each group.

        Raises:
            UserError: As for `find_tasks`, or if the model has no chat template, or too short a context for an answer.
        """
        lm_eval = need("lm_eval", "eval", "measuring by lm-eval's tasks")
        from lm_eval.evaluator import evaluate

        from lit_gpt.evaluation.harness.find import SEED, find_tasks
        from lit_gpt.evaluation.harness.model import HarnessModel
        from lit_gpt.evaluation.harness.scores import group_results, task_result

        model = HarnessModel(subject, self.opening, self.apply_chat_template, self.max_batch_tokens, progress)
        with _quiet():
            found = find_tasks(self.tasks, self.include_path, self.data, self.fewshot_data)
            for task in found.tasks.values():
                self._set_options(task, SEED)
            for name, task in found.tasks.items():
                model.check_answer_length(task, name)
            output: Any = evaluate(
                model,
                task_dict={"tasks": found.tasks, "groups": found.groups},
                limit=self.limit,
                bootstrap_iters=0,
                apply_chat_template=self.apply_chat_template,
                fewshot_as_multiturn=self.fewshot_as_multiturn,
            )
        settings = {
            "harness": f"lm-eval {lm_eval.__version__}",
            "opening": "chat template" if self.apply_chat_template else model.opening,
            "limit": self.limit,
            "seed": SEED,
        }
        results = [
            task_result(name, task, output, settings | self._files(name), subject.seed)
            for name, task in found.tasks.items()
        ]
        return results + group_results(found.groups, output, results, settings, subject.seed)

    def _set_options(self, task: Any, seed: int) -> None:
        """Set the options of a task as lm-eval's entry point does; a task with 0 examples keeps this setting."""
        if self.max_gen_toks is not None and task.OUTPUT_TYPE == "generate_until":
            task.set_config(key="generation_kwargs", value={"max_gen_toks": self.max_gen_toks}, update=True)
        own = task.get_config("num_fewshot")
        if own is None or (self.num_fewshot is not None and own != 0):
            task.set_config(key="num_fewshot", value=0 if self.num_fewshot is None else self.num_fewshot)
        task.set_fewshot_seed(seed=seed)

    def _files(self, name: str) -> dict[str, str]:
        from lit_gpt.data.records import FileRecords
        from lit_gpt.hashing import FileHashes

        given = {"file": self.data.get(name), "fewshot_file": self.fewshot_data.get(name)}
        files = {key: FileRecords(file) for key, file in given.items() if file is not None}
        return {key: f"{rows.title} ({rows.fingerprint(FileHashes())[:16]})" for key, rows in files.items()}


def ask_docs(
    subject: Subject, task: str, docs: Sequence[Mapping[str, Any]], progress: Progress = no_progress
) -> list[Mapping[str, Any]]:
    """Run a task file of this package on documents that are already read.

    Args:
        subject: The model; texts are opened as in training.
        task: File name in `tasks/`, without its suffix.
        docs: One document per question, with the columns that the file names.
        progress: Called with the number of requests done.

    Returns:
        lm-eval's sample of each document, in order: the document, the metrics, and the responses.
    """
    need("lm_eval", "eval", f"{task}, which runs as a task of lm-eval,")
    from lm_eval.evaluator import evaluate

    from lit_gpt.evaluation.harness.find import task_on_docs
    from lit_gpt.evaluation.harness.model import HarnessModel

    model = HarnessModel(subject, "trained", progress=progress)
    with _quiet():
        loaded = task_on_docs(task, docs)
        found: Any = evaluate(model, task_dict={"tasks": {task: loaded}, "groups": {}}, bootstrap_iters=0)
    return sorted(found["samples"][task], key=lambda sample: sample["doc_id"])


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence lm-eval: its warnings, which explain its own defaults task by task, and its progress bars."""
    task: Any = importlib.import_module("lm_eval.api.task")
    logger = logging.getLogger("lm_eval")
    level, bar = logger.level, task.tqdm
    logger.setLevel(logging.ERROR)
    task.tqdm = lambda items, **_: items
    try:
        yield
    finally:
        logger.setLevel(level)
        task.tqdm = bar
