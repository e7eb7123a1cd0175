"""Memory that a process may still take: of the machine, of its control group (a container's limit), or of a GPU."""

from pathlib import Path

import psutil
import torch

_NO_LIMIT = 1 << 60
"""Control groups of version 1 state a number near 2**63 where there is no limit."""


def free_memory(device: torch.device | str = "cpu") -> int:
    """Return the bytes that may still be allocated on a device, by this process.

    On a CPU (and on MPS, which shares its memory) this is what the system calls available, and less where a control
    group limits the process, as in a container. On CUDA, memory that torch has reserved and not used counts as free.
    """
    device = torch.device(device)
    if device.type == "cuda":
        reserved = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + reserved
    limit = _control_group_free(Path("/"))
    available: int = psutil.virtual_memory().available
    return available if limit is None else min(available, limit)


def _control_group_free(root: Path) -> int | None:
    """Return what this process's control groups leave of their limits in bytes; None = none has one.

    Args:
        root: The root of the file system, or a copy of it for a test.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:  # not Linux
        return None
    free: list[int] = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            base, most, current, cache = root / "sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"
        elif "memory" in controllers.split(","):
            base, cache = root / "sys/fs/cgroup/memory", "total_inactive_file"
            most, current = "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        group = base / path.lstrip("/")
        while True:  # a limit of a group applies to those in it; in a container, only the outermost may be visible
            free += _left(group / most, group / current, group / "memory.stat", cache)
            if group == base:
                break
            group = group.parent
    return min(free, default=None)


def _left(most: Path, current: Path, statistics: Path, cache: str) -> list[int]:
    """Return what a control group leaves, [] if it has no limit. Pages of files that can be dropped are not in use."""
    try:
        limit, used = most.read_text().strip(), int(current.read_text())
        fields = dict(line.split() for line in statistics.read_text().splitlines() if line.strip())
        if limit == "max" or int(limit) >= _NO_LIMIT:
            return []
        return [max(0, int(limit) - used + int(fields.get(cache, 0)))]
    except (OSError, ValueError):
        return []
