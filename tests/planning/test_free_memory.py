"""Free memory: what the system has available, and what control groups leave of their limits."""

import psutil
import pytest

from lit_gpt.planning import free_memory as module
from lit_gpt.planning.free_memory import free_memory

V2, V1 = "sys/fs/cgroup", "sys/fs/cgroup/memory"


def control_groups(root, lines, files):
    for name, content in {"proc/self/cgroup": lines, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n")
    return module._control_group_free(root)


CASES = {
    "no limit": ("0::/a", {f"{V2}/a/memory.max": "max", f"{V2}/a/memory.current": 5, f"{V2}/a/memory.stat": ""}, None),
    "a limit; files can be dropped": (
        "0::/a",
        {f"{V2}/a/memory.max": 100, f"{V2}/a/memory.current": 70, f"{V2}/a/memory.stat": "anon 40\ninactive_file 20"},
        50,
    ),
    "the parent's is lower": (
        "0::/a/b",
        {
            f"{V2}/a/memory.max": 100,
            f"{V2}/a/memory.current": 90,
            f"{V2}/a/memory.stat": "",
            f"{V2}/a/b/memory.max": 80,
            f"{V2}/a/b/memory.current": 10,
            f"{V2}/a/b/memory.stat": "",
        },
        10,
    ),
    "a container sees its own as the outermost": (
        "0::/docker/1",
        {f"{V2}/memory.max": 100, f"{V2}/memory.current": 120, f"{V2}/memory.stat": ""},
        0,
    ),
    "version 1": (
        "5:cpu,memory:/a\n4:pids:/a",
        {
            f"{V1}/a/memory.limit_in_bytes": 100,
            f"{V1}/a/memory.usage_in_bytes": 30,
            f"{V1}/a/memory.stat": "total_inactive_file 5",
        },
        75,
    ),
    "version 1 without a limit": (
        "5:memory:/",
        {f"{V1}/memory.limit_in_bytes": 2**63 - 4096, f"{V1}/memory.usage_in_bytes": 3, f"{V1}/memory.stat": ""},
        None,
    ),
}


@pytest.mark.parametrize(("lines", "files", "expected"), CASES.values(), ids=CASES)
def test_control_groups(tmp_path, lines, files, expected):
    assert control_groups(tmp_path, lines, files) == expected


def test_a_system_without_them(tmp_path):
    assert module._control_group_free(tmp_path) is None


def test_the_lower_of_both_counts(monkeypatch):
    available = psutil.virtual_memory()._replace(available=1000)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: available)
    for limit, expected in ((None, 1000), (2000, 1000), (10, 10)):
        monkeypatch.setattr(module, "_control_group_free", lambda root, limit=limit: limit)
        assert free_memory() == free_memory("mps") == expected
