"""Find lm-eval tasks by name.

A name with a file in `data` is a task file of this package (`tasks/*.yaml`) applied to that file, and needs no network;
if there is no task file of that name, the file is read as multiple choice. Any other name is a task, group or tag in
the folders of `include_path` or in lm-eval itself, whose data come from the Hugging Face hub.

A task folder may contain code (`!function` names Python): use only folders that you trust.
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from lm_eval.tasks import TaskManager

from lit_gpt.errors import UserError
from lit_gpt.evaluation.harness.forms import given_docs
from lit_gpt.suggest import close_matches

FORMS = Path(__file__).parent / "tasks"
OTHER_FORM = "multiple_choice"
SEED = 1234
"""Seed of few-shot examples and of everything a task samples; lm-eval's default."""


class Found:
    """Tasks and groups by name.

    Attributes:
        tasks: Task by name, including those inside the groups.
        groups: The groups that were requested, and those inside them.
    """

    def __init__(self) -> None:
        self.tasks: dict[str, Any] = {}
        self.groups: dict[str, Any] = {}

    def add(self, loaded: Mapping[str, Any]) -> None:
        """Add what a `TaskManager` has loaded.

        Raises:
            UserError: A task is there already.
        """
        for name, task in loaded["tasks"].items():
            if name in self.tasks:
                raise UserError(f"the task {name!r} is requested twice, by itself or in a group; remove one of them")
            self.tasks[name] = task
        self.groups |= loaded.get("groups", {})


def find_tasks(
    names: Sequence[str],
    include_path: str | Sequence[str] | None = None,
    data: Mapping[str, str] | None = None,
    fewshot_data: Mapping[str, str] | None = None,
) -> Found:
    """Load tasks together with their data.

    Args:
        names: Tasks, groups, tags or patterns such as `blimp_*`.
        include_path: Folders with task files.
        data: Task name → file of its questions.
        fewshot_data: Task name → file of few-shot examples, for tasks that have a file in `data`.

    Raises:
        UserError: If no task has such a name (the message has the closest ones), a file cannot be used, data is not
            available, or a task runs generated code.
    """
    data, fewshot_data = data or {}, fewshot_data or {}
    if not names:
        raise UserError("no tasks are named; name some, such as hellaswag")
    for name in (*data, *fewshot_data):
        if name not in names:
            raise UserError(f"there is a file for {name!r}, which is not among the tasks: {', '.join(names)}")
    for name in fewshot_data:
        if name not in data:
            raise UserError(f"fewshot_data has a file for {name!r} and data has none; give both")
    found = Found()
    with _seeded():
        if data:
            forms = TaskManager(include_path=str(FORMS), include_defaults=False)
            for name in [name for name in names if name in data]:
                found.add(_on_file(forms, name, data[name], fewshot_data.get(name)))
        others = [name for name in names if name not in data]
        if others:
            manager, resolved = _named(others, _folders(include_path))
            for name in resolved:
                _refuse_unsafe(manager, name)
                found.add(_loaded(manager, name))
    return found


def task_on_docs(form: str, docs: Sequence[Mapping[str, Any]]) -> Any:
    """Return the lm-eval task of a task file of this package, applied to documents with the columns that it names."""
    with _seeded():
        forms = TaskManager(include_path=str(FORMS), include_defaults=False)
        spec = {"task": form, "custom_dataset": given_docs, "dataset_kwargs": {"docs": list(docs)}}
        loaded = forms.load({"group": "files", "task": [spec]})
    (task,) = loaded["tasks"].values()
    task.config.task = form
    return task


def form_names() -> list[str]:
    """Return the names of the task files of this package."""
    return sorted(path.stem for path in FORMS.glob("*.yaml"))


def _on_file(forms: TaskManager, name: str, file: str, fewshot_file: str | None) -> dict[str, Any]:
    form = name if name in form_names() else OTHER_FORM
    spec: dict[str, Any] = {"task": form, "dataset_kwargs": {"file": file, "fewshot_file": fewshot_file}}
    if fewshot_file is not None:
        spec["fewshot_split"] = "fewshot"
    try:
        loaded = forms.load({"group": "files", "task": [spec]})
    except UserError as error:
        if form == name:
            raise
        raise UserError(
            f"{error} ({name!r} is read as {OTHER_FORM}; the other task files are {', '.join(form_names())})"
        ) from error
    (task,) = loaded["tasks"].values()
    task.config.task = name
    return {"tasks": {name: task}}


def _folders(include_path: str | Sequence[str] | None) -> list[str]:
    folders = [include_path] if isinstance(include_path, str) else list(include_path or ())
    for folder in folders:
        if not Path(folder).is_dir():
            raise UserError(f"include_path {folder} is not a folder; name one with task files (*.yaml)")
    return folders


def _named(names: list[str], folders: list[str]) -> tuple[TaskManager, list[str]]:
    """Return a manager that knows all names; lm-eval's thousands of files are read only if they are needed."""
    known: list[str] = []
    for with_defaults in (False, True) if folders else (True,):
        manager = _manager(tuple(folders), with_defaults)
        known = manager.all_tasks
        matched = {name: manager.match_tasks([name]) for name in names}
        if all(matched.values()):
            return manager, list(dict.fromkeys(match for name in names for match in matched[name]))
    missing = next(name for name in names if not matched[name])
    raise UserError(
        f"there is no task {missing!r}{_nearest(missing, known)} (for a local file: data: {{{missing}: <file>}}; "
        "`lm_eval ls tasks` lists all)"
    )


@lru_cache(maxsize=4)
def _manager(folders: tuple[str, ...], with_defaults: bool) -> TaskManager:
    """Return a task manager, which is cached because reading lm-eval's files takes seconds."""
    return TaskManager(include_path=list(folders) or None, include_defaults=with_defaults)


def _refuse_unsafe(manager: TaskManager, name: str) -> None:
    """Raise for a task that runs generated code, before it is loaded: loading may already run code from the hub.

    Raises:
        UserError: If the task, or one in the group or tag, runs generated code.
    """
    entry = manager.task_index.get(name)
    if entry is None:
        return
    config = entry.cfg or {}
    if config.get("unsafe_code"):
        raise UserError(
            f"the task {name!r} runs the code that the model writes, in this process; use our measure HumanEval, which "
            "runs it in a sandbox"
        )
    listed = config.get("task")
    members = list(listed) if isinstance(listed, list) else []
    members += sorted(entry.tags) if entry.yaml_path is None else []  # of a tag: the tasks that have it
    for member in members:
        if isinstance(member, dict) and member.get("unsafe_code"):
            raise UserError(f"the group {name!r} has a task that runs the code that the model writes; remove it")
        inner = (member.get("task") or member.get("group")) if isinstance(member, dict) else member
        if isinstance(inner, str) and inner != name:
            _refuse_unsafe(manager, inner)


def _nearest(name: str, known: list[str]) -> str:
    """Return the tasks that are called nearly so; "" if none is, because there are thousands."""
    beginning = [other for other in known if other.startswith(name[:3])]
    near = close_matches(name, known, count=3) or (beginning if len(beginning) < 50 else [])[:3]
    return f"; the nearest are {', '.join(near)}" if near else ""


def _loaded(manager: TaskManager, name: str) -> dict[str, Any]:
    import huggingface_hub
    from datasets.exceptions import DatasetNotFoundError

    try:
        return dict(manager.load(name))
    except (DatasetNotFoundError, ConnectionError, FileNotFoundError, huggingface_hub.errors.HfHubHTTPError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"the data of task {name!r} is neither here nor available from the hub: {reason}; give a file with "
            f"data: {{{name}: <file>}} for one of our task files {', '.join(form_names())}"
        ) from error


@contextmanager
def _seeded() -> Iterator[None]:
    """Seed the global generators for tasks that shuffle while loading, and restore their state."""
    state, numpy_state = random.getstate(), np.random.get_state()
    random.seed(SEED)
    np.random.seed(SEED)
    try:
        yield
    finally:
        random.setstate(state)
        np.random.set_state(numpy_state)
