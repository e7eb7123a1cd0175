"""Choices between kernels, made by measurement once per machine and kept on disk.

Two kernels of the same product differ in the last bits of their sums, and two measurements may choose differently. So
a choice is written to a file the first time it is made, and every later run on the machine computes with the same
kernels. The file is JSON that can be read, edited and deleted: `kernels.json` in the cache folder, or the file named by
the environment variable LIT_GPT_KERNELS. Choices belong to a processor, a number of threads and a version of torch;
another machine that shares the folder makes its own.
"""

import json
import math
import os
import platform
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from lit_gpt.atomic import atomic_file
from lit_gpt.cache_dir import find_cache_dir
from lit_gpt.checks import local_path
from lit_gpt.compiled import load_compiled
from lit_gpt.errors import UserError

MARGIN = 0.05
"""The first option is chosen unless another one takes at least this share less time: less is noise."""

Option = TypeVar("Option")


def choices_file() -> Path:
    """Return the file in which choices are kept."""
    own = os.environ.get("LIT_GPT_KERNELS")
    return local_path("LIT_GPT_KERNELS", own) if own else find_cache_dir() / "kernels.json"


def choose(
    question: str,
    options: Mapping[str, Option],
    measure: Callable[[Option], float],
    passes: int = 1,
    must_keep: bool = False,
) -> Option:
    """Return the option that was chosen on this machine before, or else the fastest one.

    Args:
        question: What is chosen: the product and its size.
        options: At least one, by name, the preferred one first.
        measure: Returns the time that an option takes.
        passes: Number of times that the options are measured in turn; the shortest time counts.
        must_keep: Return the first option if the choice cannot be kept, so that it is the same in every run.
    """
    if len(options) == 1:
        return next(iter(options.values()))
    path, machine = choices_file(), this_machine()
    question = f"{question}: {' | '.join(options)}"  # one choice for each set of options
    kept = _restored.get(question) or _read(path).get(machine, {}).get(question)
    if kept is not None and kept in options:
        _used[question] = kept
        return options[kept]
    with torch.inference_mode(False), torch.no_grad():
        times = dict.fromkeys(options, math.inf)
        for _ in range(passes):
            times = {name: min(times[name], measure(option)) for name, option in options.items()}
    first, best = next(iter(options)), min(times, key=times.__getitem__)
    chosen = best if times[best] < (1 - MARGIN) * times[first] else first
    chosen = _keep(path, machine, question, chosen, options)
    _used[question] = first if must_keep and path in _unwritable else chosen
    return options[_used[question]]


def best_time(runs: Sequence[Callable[[Tensor], Tensor]], x: Tensor, rounds: int = 5) -> float:
    """Return the seconds that a call of all functions takes: the shortest of `rounds`, after one as a warm-up."""
    # With one thread, its own time: other processes on the machine do not count. Threads that wait for each other do.
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    best = math.inf
    for _ in range(rounds + 1):
        start = clock()
        for run in runs:
            run(x)
        best = min(best, clock() - start)
    return best


_used: dict[str, str] = {}
"""Choices of this process."""


def used_kernels(kind: str) -> str | None:
    """Return for the user which options this process uses for questions that begin with `kind`; None: it has none."""
    counts = Counter(name for question, name in _used.items() if question.startswith(kind))
    if not counts:
        return None
    return ", ".join(f"{name} for {count}" for name, count in counts.most_common()) + f" ({where_kept()})"


_restored: dict[str, str] = {}
"""Choices of a run that is resumed: they hold although the file on this machine may have been lost since."""


def own_choices() -> dict[str, dict[str, str]]:
    """Return the choices of this process, by machine, so that a run resumed from a checkpoint computes the same way."""
    return {this_machine(): _restored | _used}


def restore_choices(choices: Mapping[str, Mapping[str, str]]) -> None:
    """Use the choices that `own_choices` returned, if it was on such a machine."""
    own = choices.get(this_machine(), {})
    _restored.update(own)
    _used.update(own)  # before they are needed again, another checkpoint may be saved
    for function in _remembering:
        function.cache_clear()


def can_keep_choices() -> bool:
    """Return whether choices can be kept on this machine, for what must be computed the same way in each process."""
    folder = choices_file().parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)


def remembered(choice: Callable[..., Option]) -> Any:
    """Return a function that chooses, as one that reads no file for arguments that it has seen."""
    _remembering.append(cache(choice))
    return _remembering[-1]


_remembering: list[Any] = []


def compile_kernels(source: Path) -> Any:
    """Return a C file's kernels, with the processor's instructions and OpenMP; None if they cannot be compiled here."""
    flags = ("-march=native", "-fno-math-errno", "-fno-trapping-math")
    # With OpenMP, in torch's own library where it brings one: two would compete. Else for one thread.
    bundled = [str(path) for path in sorted((Path(torch.__file__).parent / "lib").glob("libgomp*.so*"))]
    options = [(*flags, "-fopenmp", "-lm", *bundled), (*flags, "-Wno-unknown-pragmas", "-lm")]
    return load_compiled(source, this_machine(), options)


@cache
def this_machine() -> str:
    """Return what identifies the processor and its software: its model, threads, and the version of torch."""
    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
        fields = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        parts = [fields.get(name) for name in ("model name", "cpu family", "model", "stepping")]
        model = " ".join(part for part in parts if part) or model
    except OSError:  # not Linux
        pass
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{model}, {capability}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def _read(path: Path) -> dict[str, dict[str, str]]:
    """Return the choices in a file by machine and question; {} if there are none or the file is damaged."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    valid = isinstance(found, dict) and all(isinstance(choices, dict) for choices in found.values())
    return found if valid else {}


def _keep(path: Path, machine: str, question: str, chosen: str, options: Mapping[str, Option]) -> str:
    """Write a choice unless another process was faster; return the one that holds."""
    found = _read(path)
    own = found.setdefault(machine, {})
    if own.get(question) in options:
        return own[question]
    own[question] = chosen
    try:
        with atomic_file(path) as temporary:
            temporary.write_text(json.dumps(found, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    except (OSError, UserError):  # a folder that cannot be written: it is measured again next time, which is said
        _unwritable.add(path)
    return chosen


_unwritable: set[Path] = set()


def where_kept() -> str:
    """Return for the user where choices are kept, or that they cannot be."""
    path = choices_file()
    return f"not kept, since {path} cannot be written" if path in _unwritable else f"kept in {path}"
