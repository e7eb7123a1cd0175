"""The measure: tasks by name, one result for each."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

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
        data: Task → a file of its questions, for those that come from disk: hellaswag (jsonl), truthfulqa_mc1 and
            truthfulqa_mc2 (mc_task.json), gsm8k (jsonl); any other name is multiple choice (csv, jsonl, ... with
            question, choices and answer).
        fewshot_data: Task → a file of examples to show before a question, for tasks that have a file; without, they are
            drawn from the other questions.
        include_path: Folders with task files of your own. They may name Python code, which is run.
        num_fewshot: Examples before each question; null: as each task says.
        limit: The first so many questions of each task; null: all.
        apply_chat_template: Put questions as a user's turn. null or false: as plain text.
        fewshot_as_multiturn: Under a chat template, examples are turns of their own.
        max_gen_toks: New tokens of a written answer; null: as each task says (256 where it says nothing).
        opening: What opens a text: `trained`: what the model was trained with; `hf`: what lm-eval's own `hf` model
            puts there; `auto`: the second for published models, the first for our own.
        max_batch_tokens: Tokens of one forward, for likelihoods; null: what suits the device.
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
        for name, value, least in (
            ("num_fewshot", num_fewshot, 0),
            ("limit", limit, 1),
            ("max_gen_toks", max_gen_toks, 1),
            ("max_batch_tokens", max_batch_tokens, 1),
        ):
            if value is not None and value < least:
                raise UserError(f"{name} is {value}, it must be at least {least}")
        if opening not in ("auto", "trained", "hf"):
            raise UserError(f"opening is {opening!r}, it must be auto, trained or hf")
        self.data, self.fewshot_data, self.include_path = dict(data or {}), dict(fewshot_data or {}), include_path
        self.num_fewshot, self.limit, self.max_gen_toks = num_fewshot, limit, max_gen_toks
        self.apply_chat_template, self.fewshot_as_multiturn = bool(apply_chat_template), fewshot_as_multiturn
        self.opening, self.max_batch_tokens = opening, max_batch_tokens

    def run(self, subject: Subject, progress: Progress = no_progress) -> list[Result]:
        """Ask all tasks together: requests of all of them share batches.

        Args:
            subject: The model.
            progress: Told how many requests of a kind are done.

        Returns:
            One result for each task, then one for each group.

        Raises:
            UserError: As `find_tasks`, or the model has no chat template, or too short a context for an answer.
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
            said: Any = evaluate(
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
            task_result(name, task, said, settings | self._files(name), subject.seed)
            for name, task in found.tasks.items()
        ]
        return results + group_results(found.groups, said, results, settings, subject.seed)

    def _set_options(self, task: Any, seed: int) -> None:
        """As lm-eval's own entry does: a task that says 0 examples keeps it."""
        if self.max_gen_toks is not None and task.OUTPUT_TYPE == "generate_until":
            task.set_config(key="generation_kwargs", value={"max_gen_toks": self.max_gen_toks}, update=True)
        said = task.get_config("num_fewshot")
        if said is None or (self.num_fewshot is not None and said != 0):
            task.set_config(key="num_fewshot", value=self.num_fewshot or 0)
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
    """Run one of our task files on documents that are already read.

    Args:
        subject: The model; texts are opened as in training.
        task: A file of `tasks/`, without its ending.
        docs: One for each question, with the columns that the file names.
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
    from lm_eval.api import task

    logger = logging.getLogger("lm_eval")
    level, bar = logger.level, task.tqdm
    logger.setLevel(logging.ERROR)
    task.tqdm = lambda items, **_: items
    try:
        yield
    finally:
        logger.setLevel(level)
        task.tqdm = bar
