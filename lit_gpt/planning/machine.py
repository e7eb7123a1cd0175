"""A report on this machine's hardware and software, printed by `python -m lit_gpt doctor`."""

import importlib.metadata
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from lit_gpt.extras import installed_version, remedy, versions
from lit_gpt.pages.text import human_bytes
from lit_gpt.planning.free_memory import free_memory
from lit_gpt.planning.hardware import cpu_peak_flops, fast_precision, gpu_peak_flops


@dataclass(frozen=True)
class Fact:
    """One line of the report.

    Attributes:
        name: Name of the device, resource or extra.
        value: What was found.
        remedy: How to fix a problem; "" if there is none.
    """

    name: str
    value: str
    remedy: str = ""


def describe_machine(folder: Path) -> list[Fact]:
    """Return the facts about this machine.

    Args:
        folder: Output folder for runs; free disk space is reported for its disk.
    """
    return [*_devices(), *_memory(folder), *_extras()]


def _devices() -> list[Fact]:
    cores = psutil.cpu_count(logical=False) or psutil.cpu_count() or 1
    capability = torch.backends.cpu.get_cpu_capability()
    facts = [Fact("CPU", f"{cores} cores, {torch.get_num_threads()} threads in use, {capability}")]
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        peak = gpu_peak_flops(properties.name)
        speed = "unknown peak: MFU is not logged" if peak is None else f"{peak / 1e12:g} TFLOP/s in bf16"
        facts.append(Fact(f"GPU {index}", f"{properties.name}, {human_bytes(properties.total_memory)}, {speed}"))
    if torch.cuda.is_available():
        precision = fast_precision("cuda")
        faster = " (auto), or 16-mixed" if precision == "32-true" else " (auto)"
        facts.append(Fact("fast precision", f"trainer.precision: {precision}{faster}"))
    elif torch.backends.mps.is_available():
        facts.append(Fact("GPU", "Apple (mps)"))
    else:
        plain, half = (cpu_peak_flops(dtype=dtype) / 1e9 for dtype in (torch.float32, torch.bfloat16))
        best = fast_precision("cpu")
        value = f"trainer.precision: {best} (auto; matrix products: float32 {plain:.0f}, bfloat16 {half:.0f} GFLOP/s)"
        facts += [Fact("GPU", "none found; everything runs on the CPU"), Fact("fast precision", value)]
    return facts


def _memory(folder: Path) -> list[Fact]:
    existing = folder.absolute()
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    remedy_of_disk = "free some space, or set trainer.default_root_dir to a larger disk" if free < 2e9 else ""
    return [
        Fact("memory", f"{human_bytes(free_memory())} free of {human_bytes(psutil.virtual_memory().total)}"),
        Fact("disk", f"{human_bytes(free)} free in {existing}", remedy_of_disk),
    ]


def _extras() -> list[Fact]:
    """Return one fact per extra of the package, with the distributions that are missing."""
    metadata = importlib.metadata.metadata("lit_gpt")
    required = metadata.get_all("Requires-Dist") or []
    facts = []
    for extra in metadata.get_all("Provides-Extra") or []:
        names = [_requirement(line) for line in required if re.search(rf"extra == ['\"]{extra}['\"]", line)]
        missing = [name for name in names if name != "lit_gpt" and installed_version(name) is None]
        value = f"missing: {', '.join(missing)}" if missing else "installed"
        facts.append(Fact(f"extra {extra}", value, remedy(extra) if missing else ""))
    return facts


def _requirement(line: str) -> str:
    name = re.match(r"[\w.-]+", line)
    assert name is not None
    return re.sub(r"[-_.]+", "_", name[0]).lower()


def report(folder: Path) -> str:
    """Return the report as text, one fact per line."""
    facts = [Fact("versions", versions()), Fact("interpreter", sys.executable), *describe_machine(folder)]
    width = max(len(fact.name) for fact in facts)
    return "\n".join(
        f"{fact.name:{width}}  {fact.value}" + (f"\n{'':{width}}  -> {fact.remedy}" if fact.remedy else "")
        for fact in facts
    )
