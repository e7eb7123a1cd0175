"""HumanEval: functions generated from their signature and docstring, and run against their tests.

Stages: the tasks (task_id, prompt, test, entry_point) → n completions of each prompt, cut where the function ends
→ program = prompt + completion + tests + the call of `check` → each runs in the sandbox → pass@k.
"""

import math
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from lit_gpt.data.records import HubDataset, OnBadInput
from lit_gpt.errors import UserError
from lit_gpt.evaluation.code.sandbox import Limits, Outcome, Sandbox, check_isolation
from lit_gpt.evaluation.intervals import mean_score
from lit_gpt.evaluation.measure import Measure
from lit_gpt.evaluation.progress import Progress, no_progress
from lit_gpt.evaluation.result import Chart, Example, Result
from lit_gpt.evaluation.safety.rows import RowSet
from lit_gpt.evaluation.subject import Subject, answer_length_notes, check_answer_length, draw_seed
from lit_gpt.generation.request import SamplingParams
from lit_gpt.generation.text import opened


def pass_at_k(samples: int, passed: int, k: int) -> float:
    """Return the unbiased estimate of pass@k: the probability that at least one of k programs is right.

    1 - C(n - c, k) / C(n, k): the share of all choices of k among the n programs that contain one of the c correct ones
    (Chen et al. 2021, arXiv:2107.03374, equation 1). The plug-in estimate 1 - (1 - c/n)^k is too low.

    Args:
        samples: n, number of programs generated for the task.
        passed: c, number of them that pass its tests.
        k: Number of attempts.

    Raises:
        UserError: If k is above n.

    Example:
        >>> pass_at_k(10, 3, 1)
        0.3
    """
    if not 1 <= k <= samples:
        raise UserError(f"pass@{k} needs at least {k} samples per task, and there are {samples}; raise samples")
    if not 0 <= passed <= samples:
        raise ValueError(f"{passed} of {samples} programs passed")
    return (math.comb(samples, k) - math.comb(samples - passed, k)) / math.comb(samples, k)


STOPS = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")
"""Strings that end a top-level function (Chen et al. 2021, section 3.2)."""
DEFINITION = (
    "The model completes a function from its signature and docstring; the function passes if it meets the task's "
    "tests. pass@k is the probability that at least one of k such functions passes, estimated without bias from "
    "{samples} of each task. A function that fails, does not end in {seconds:g} seconds, exceeds its memory, processes "
    "or files, or uses the network has not passed."
)
MAX_EXAMPLES = 6
SHOWN_CHARACTERS = 2000


@dataclass(frozen=True)
class Task:
    """One function to write.

    Attributes:
        name: Id of the task.
        prompt: Imports, signature and docstring.
        test: Source that defines `check(candidate)`.
        entry_point: The function's name.
    """

    name: str
    prompt: str
    test: str
    entry_point: str

    def program(self, continuation: str) -> str:
        """Return the program that defines the function and runs its tests."""
        return f"{self.prompt}{continuation}\n{self.test}\ncheck({self.entry_point})\n"


@dataclass(frozen=True)
class _Written:
    task: Task
    text: str
    outcome: Outcome


class HumanEval(Measure):
    """pass@k on HumanEval's tasks, or others in its format.

    Args:
        file: json, jsonl, csv or parquet, also as .gz: `task_id`, `prompt`, `test`, `entry_point`.
        hub: Alternative to `file`: a Hugging Face dataset such as {path: openai/openai_humaneval, split: test}.
        k: Values of k for which to report pass@k, at most `samples`.
        samples: Number of programs for each task.
        temperature: Sampling temperature; 0 decodes greedily (with samples: 1).
        top_p: Nucleus sampling: keep the most probable tokens up to this probability.
        max_new_tokens: Maximum length of each program.
        limit: Number of tasks to sample, the same for every model; null: all.
        limits: Resource limits of one program.
        columns: Mapping from the expected field name to the dataset's.
        on_bad_input: What to do with an unusable task: `error` stops, `skip` leaves it out and counts it.
        run_untrusted_code: Whether programs may be run at all; can only be set on the command line.

    Raises:
        UserError: If a number is out of bounds.
    """

    def __init__(
        self,
        file: str | None = None,
        hub: HubDataset | None = None,
        k: Sequence[int] = (1,),
        samples: int = 1,
        temperature: float = 0.2,
        top_p: float | None = 0.95,
        max_new_tokens: int = 512,
        limit: int | None = None,
        limits: Limits = Limits(),  # noqa: B008 (frozen)
        columns: dict[str, str] | None = None,
        on_bad_input: OnBadInput = "error",
        run_untrusted_code: bool = False,
    ) -> None:
        if file is None and hub is None:
            raise UserError(
                "HumanEval needs its tasks: file: HumanEval.jsonl.gz, or hub: {path: openai/openai_humaneval}"
            )
        if not k:
            raise UserError("k of HumanEval is empty; name one number or more, such as [1, 10]")
        for one in k:
            pass_at_k(samples, 0, one)
        if temperature == 0 and samples > 1:
            raise UserError(f"temperature 0 writes the same program {samples} times; raise it, or set samples: 1")
        self.rows = RowSet(file, hub, columns or {}, limit, on_bad_input)
        self.k = tuple(k)
        self.samples = samples
        self.params = SamplingParams(max_new_tokens, temperature, top_p=top_p, stop=STOPS)
        self.limits = limits
        self.run_untrusted_code = run_untrusted_code

    def run(self, subject: Subject, progress: Progress = no_progress) -> list[Result]:
        """Generate the programs and run them; see `Measure`.

        Raises:
            UserError: If running was not allowed, there is no isolation here, or the tasks cannot be read.
        """
        if not self.run_untrusted_code:
            raise UserError(
                "HumanEval runs programs that the model wrote, each in a sandbox; to allow it, add "
                "--run_untrusted_code true to the command line. ParsesAsPython runs nothing"
            )
        check_answer_length(self.params.max_new_tokens, subject.block_size, ())
        tried = check_isolation(self.limits)
        read = self.rows.read(("task_id", "prompt", "test", "entry_point"))
        tasks = [Task(*(row.values[f] for f in ("task_id", "prompt", "test", "entry_point"))) for row in read.rows]
        twice = next((name for name, number in Counter(task.name for task in tasks).items() if number > 1), None)
        if twice is not None:
            raise UserError(f"{read.settings['items']} has two tasks {twice!r}; give each a different task_id")
        lengths = [len(opened(subject.tokenizer, subject.tokenizer.encode(task.prompt).tolist())) for task in tasks]
        check_answer_length(self.params.max_new_tokens, subject.block_size, lengths)
        written, too_long = self._write(subject, tasks, lengths, progress)
        programs = [task.program(text) for task, text in written]
        total = len(programs)
        outcomes = Sandbox(self.limits).run_all(programs, lambda done, _: progress(total + done, 2 * total))
        results = [_Written(task, text, outcome) for (task, text), outcome in zip(written, outcomes, strict=True)]
        notes = [*read.notes, *answer_length_notes(self.params.max_new_tokens, subject.block_size, lengths)]
        if too_long:
            notes.append(
                f"{len(too_long)} tasks fill the context of {subject.block_size} tokens and count as not "
                f"solved: {', '.join(too_long[:5])}{', ...' if len(too_long) > 5 else ''}."
            )
        return [self._result(subject, tasks, results, read.settings | {"isolation": tried}, tuple(notes))]

    def _write(
        self, subject: Subject, tasks: Sequence[Task], lengths: Sequence[int], progress: Progress
    ) -> tuple[list[tuple[Task, str]], list[str]]:
        """Generate programs for all tasks that fit into the context; also return the names of the others."""
        jobs: list[tuple[Task, SamplingParams]] = []
        too_long = []
        for number, (task, length) in enumerate(zip(tasks, lengths, strict=True)):
            if length >= subject.block_size:
                too_long.append(task.name)
                continue
            # The seeds of a task depend only on its index, so that they do not change if other tasks do not fit.
            first = number * self.samples
            seeds = [draw_seed(subject.seed, first + sample) for sample in range(self.samples)]
            jobs += [(task, replace(self.params, seed=seed)) for seed in seeds]
        completions = subject.complete(
            [task.prompt for task, _ in jobs],
            [params for _, params in jobs],
            lambda done, total: progress(done, 2 * total),
        )
        return [(task, one.text) for (task, _), one in zip(jobs, completions, strict=True)], too_long

    def _result(
        self,
        subject: Subject,
        tasks: Sequence[Task],
        written: Sequence[_Written],
        settings: Mapping[str, Any],
        notes: tuple[str, ...],
    ) -> Result:
        passed = Counter(one.task.name for one in written if one.outcome.passed)
        names = [task.name for task in tasks]
        scores = tuple(
            mean_score(
                f"pass_at_{k}",
                [pass_at_k(self.samples, passed[name], k) for name in names],
                names,
                "share",
                better="higher",
                seed=subject.seed,
                bounds=(0.0, 1.0),
            )
            for k in self.k
        )
        reasons = Counter(one.outcome.reason for one in written).most_common()
        chart = Chart(
            "How the programs ended",
            "",
            "programs",
            [reason for reason, _ in reasons],
            {"programs": [float(number) for _, number in reasons]},
            "bar",
        )
        return Result(
            name="humaneval",
            title="HumanEval: functions that pass their tests",
            definition=DEFINITION.format(samples=self.samples, seconds=self.limits.seconds),
            source="Chen et al. 2021, Evaluating Large Language Models Trained on Code, arXiv:2107.03374",
            scores=scores,
            examples=_examples(written),
            charts=(chart,) if reasons else (),
            settings={
                **settings,
                "samples": self.samples,
                "temperature": self.params.temperature,
                "top_p": self.params.top_p,
                "max_new_tokens": self.params.max_new_tokens,
                "stop": list(STOPS),
                "limits": asdict(self.limits),
                "python": sys.version.split()[0],
            },
            notes=(*notes, "Programs can only use Python's standard library; one that imports more does not pass."),
        )


def _examples(written: Sequence[_Written]) -> tuple[Example, ...]:
    """Return one program for each way in which programs ended, the most frequent first."""
    order = [reason for reason, _ in Counter(one.outcome.reason for one in written).most_common(MAX_EXAMPLES)]
    first = {one.outcome.reason: one for one in reversed(written)}
    return tuple(
        Example(
            "passed" if reason == "passed" else f"did not pass: {reason}",
            {
                "prompt": first[reason].task.prompt,
                "function": first[reason].text[:SHOWN_CHARACTERS],
                "what it wrote": first[reason].outcome.output[-SHOWN_CHARACTERS:] or "(nothing)",
            },
            first[reason].task.name,
        )
        for reason in order
    )
