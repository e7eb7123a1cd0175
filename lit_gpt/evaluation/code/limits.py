"""What one program may use, and what became of it."""

import builtins
import math
import re
from dataclasses import dataclass, fields
from typing import Literal

from lit_gpt.errors import UserError

Ending = Literal["passed", "failed", "timeout", "output"]
"""Reached its end; ended before it; was ended by the clock; wrote more than it may."""
_LAST_ERROR = re.compile(r"(?:\A|\n)(\w+)(?::[^\n]*)?\s*\Z")
_EXCEPTIONS = {
    name for name, value in vars(builtins).items() if isinstance(value, type) and issubclass(value, BaseException)
}


@dataclass(frozen=True)
class Limits:
    """Bounds of one program.

    All together it may take `processes` · `memory_mb` + `disk_mb`.

    Attributes:
        seconds: From its first line to its last. Chen et al. 2021 allow 3.
        memory_mb: Address space of one process.
        processes: Processes and threads that live at the same time, the program's own included.
        open_files: Of one process.
        disk_mb: Of all files in its `/tmp`, which is memory.
        disk_files: Their number.
        output_kb: That it may write to standard output and standard error.

    Raises:
        UserError: A bound that is not positive, or memory that Python cannot start in.
    """

    seconds: float = 3.0
    memory_mb: int = 512
    processes: int = 4
    open_files: int = 32
    disk_mb: int = 16
    disk_files: int = 256
    output_kb: int = 64

    def __post_init__(self) -> None:
        least = {"seconds": 0.01, "memory_mb": 64, "open_files": 8}
        for field in fields(self):
            value, low = getattr(self, field.name), least.get(field.name, 1)
            if not (math.isfinite(value) and value >= low):
                raise UserError(f"limits.{field.name} is {value}, it must be a finite number of at least {low}")

    def resources(self) -> dict[str, int]:
        """As setrlimit(2) takes them."""
        return {
            "RLIMIT_AS": self.memory_mb << 20,
            "RLIMIT_CPU": math.ceil(self.seconds) + 1,
            "RLIMIT_NPROC": self.processes + 2,  # the two that build the jail
            "RLIMIT_NOFILE": self.open_files,
            "RLIMIT_FSIZE": self.disk_mb << 20,
            "RLIMIT_CORE": 0,
            "RLIMIT_MEMLOCK": 0,
            "RLIMIT_MSGQUEUE": 0,
        }


@dataclass(frozen=True)
class Outcome:
    """What became of one program.

    Attributes:
        ending: How it ended.
        output: What it wrote, cut at the limit; text of a program that nobody trusts.
    """

    ending: Ending
    output: str = ""

    @property
    def passed(self) -> bool:
        """Whether it reached its end, which is that of its tests."""
        return self.ending == "passed"

    @property
    def reason(self) -> str:
        """For a table: `passed`, `timeout`, `output`, the name of one of Python's own exceptions, or `ended early`."""
        if self.ending != "failed":
            return self.ending
        last = _LAST_ERROR.search(self.output)
        return last[1] if last is not None and last[1] in _EXCEPTIONS else "ended early"
