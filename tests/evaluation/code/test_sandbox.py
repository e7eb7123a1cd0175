"""Programs in their jail: a harmless one first, then hostile ones, each contained and counted as a failure.

Where this machine gives no isolation (no Linux, or no namespaces), the refusal is what is tested.
"""

import itertools
import os
import signal
import subprocess
import threading
from fractions import Fraction

import pytest

from lit_gpt.errors import UserError
from lit_gpt.evaluation.code import pass_at_k
from lit_gpt.evaluation.code import sandbox as sandbox_module
from lit_gpt.evaluation.code.sandbox import JailError, Limits, Outcome, Sandbox, check_isolation

LIMITS = Limits(seconds=1.0, memory_mb=256)


@pytest.fixture(scope="module")
def sandbox():
    """Nothing hostile runs before a harmless program has shown that the isolation holds."""
    try:
        check_isolation(LIMITS)
    except UserError as error:
        if "cannot be isolated" not in str(error) or "one that tried" in str(error):
            raise
        pytest.skip(f"no isolation here: {error}")
    return Sandbox(LIMITS)


@pytest.mark.parametrize("n", [1, 2, 5, 7])
def test_pass_at_k_is_the_share_of_all_choices(n):
    for c, k in itertools.product(range(n + 1), range(1, n + 1)):
        choices = list(itertools.combinations([True] * c + [False] * (n - c), k))
        assert pass_at_k(n, c, k) == pytest.approx(float(Fraction(sum(map(any, choices)), len(choices))), abs=1e-15)


def test_pass_at_k_refuses_more_than_there_are():
    with pytest.raises(UserError, match="pass@10 needs at least 10 samples per task, and there are 5"):
        pass_at_k(5, 1, 10)


def test_a_harmless_program_passes_in_an_empty_place(sandbox):
    program = """
import math, os, tempfile
assert os.listdir(".") == [] and os.getcwd() == "/tmp"
with open("note.txt", "w") as file:
    file.write("mine")
assert open("/tmp/note.txt").read() == "mine"
assert sorted(os.environ) == ["HOME", "LANG", "PATH", "TMPDIR"] or "LC_CTYPE" in os.environ
assert os.read(0, 10) == b""
print("grüße", math.pi)
"""
    assert sandbox.run(program) == Outcome("passed", "grüße 3.141592653589793\n")
    assert sandbox.run(program).passed  # what the first wrote is gone


HOSTILE = {
    "endless loop": ("while True: pass", "timeout"),
    "sleeper": ("import time; time.sleep(60)", "timeout"),
    "stops itself": ("import os, signal; os.kill(os.getpid(), signal.SIGSTOP)", "timeout"),
    "deaf to signals": ("import signal\nfor n in (1, 2, 15): signal.signal(n, signal.SIG_IGN)\nwhile True: pass", "timeout"),
    # Bounded: 200 at most, even if nothing held it.
    "200 forks": ("import os, time\nmade = 0\nfor _ in range(200):\n    try:\n        if os.fork() == 0: time.sleep(5); os._exit(0)\n        made += 1\n    except OSError: break\nassert made > 3, made", "AssertionError"),
    "200 threads": ("import threading, time\nfor _ in range(200): threading.Thread(target=time.sleep, args=(5,), daemon=True).start()", "RuntimeError"),
    "daemon": ("import os, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0: time.sleep(60)\nos._exit(0)", "ended early"),
    "memory": ("x = []\nwhile True: x.append(bytearray(1 << 20))", "MemoryError"),
    "shared memory": ("import os; os.memfd_create('x')", "PermissionError"),
    "disk": ("open('x', 'wb').write(bytes(100 << 20))", "OSError"),
    "many files": ("for n in range(100000): open(str(n), 'w').close()", "OSError"),
    "writes outside": (f"open({os.path.abspath(__file__)!r}, 'a')", "FileNotFoundError"),
    "writes into Python": ("import os\ntry: open(os.__file__, 'a')\nexcept OSError: 1 / 0", "ZeroDivisionError"),
    "makes a folder above": ("import os; os.mkdir('/mine')", "OSError"),
    "network": ("import socket; socket.create_connection(('127.0.0.1', 22), 1)", "OSError"),
    "signals its parent": ("import os, signal\nos.kill(os.getppid(), signal.SIGKILL)\nos.kill(1, signal.SIGINT)\nassert False", "AssertionError"),
    "signals everybody": ("import os, signal; os.kill(-1, signal.SIGKILL)", "ProcessLookupError"),
    "writes to its parent": ("import os\nfor fd in range(64):\n    try: os.write(fd, b'begun passed')\n    except OSError: pass", "ended early"),
    "guesses the word": ("import os; os.write(3, b'0' * 32); os._exit(0)", "ended early"),
    "huge output": ("while True: print('x' * 10000)", "output"),
    "huge report": ("import os\nwhile True: os.write(3, b'x' * 10000)", "output"),
    "leaves early": ("import sys; sys.exit(0)", "ended early"),
    "leaves earlier": ("import os; os._exit(0)", "ended early"),
    "a child passes": ("import os, time\nif os.fork() > 0:\n    time.sleep(0.2)\n    1 / 0", "ZeroDivisionError"),
    "crashes": ("import ctypes; ctypes.string_at(0)", "ended early"),
    "namespaces": ("import ctypes; assert ctypes.CDLL(None).unshare(0x10000000) == 0", "AssertionError"),
    "no Python": ("def f(:", "SyntaxError"),
    "no text": ("x = '\\0'\0", "SyntaxError"),
    "half a character": ("assert '\ud800' == 3", "AssertionError"),
    "says it passed": ("print('passed'); raise ValueError('MemoryError')", "ValueError"),
    "an error of its own": ("class AssertionErrors(Exception): pass\nraise AssertionErrors('x')", "ended early"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_programs_are_contained_and_have_failed(sandbox, name):
    program, reason = HOSTILE[name]
    outcome = sandbox.run(program)
    assert not outcome.passed
    assert outcome.reason == reason, outcome.output
    assert len(outcome.output.encode()) <= LIMITS.output_kb << 10


@pytest.mark.slow
def test_a_fork_bomb_is_contained(sandbox):
    bomb = "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass"
    assert sandbox.run(bomb).reason == "timeout"
    assert sandbox.run("pass").passed


def test_a_program_that_forks_is_judged_by_itself_alone(sandbox):
    assert sandbox.run("import os; os.fork()").passed


def test_nothing_of_a_program_lives_on(sandbox):
    mark = f"mark-{os.getpid()}"
    program = f"import os, time\nif os.fork() == 0:\n    os.execv('/bin/sh', ['/bin/sh', '-c', 'sleep 60 # {mark}'])\ntime.sleep(0.1)"
    assert sandbox.run(program).passed
    lines = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert mark not in lines


def test_failures_do_not_reach_the_others(sandbox):
    seen = []
    programs = ["assert True", HOSTILE["memory"][0], "import os; os.kill(0, 9)", "1/0", "x = 1"]
    outcomes = sandbox.run_all(programs, lambda done, total: seen.append((done, total)))
    assert [outcome.passed for outcome in outcomes] == [True, False, False, False, True]
    assert seen == [(done, 5) for done in range(6)]


def test_whoever_dies_takes_the_program_along(sandbox):
    """The evaluator is killed: so is what it has started."""
    evaluator = os.fork()
    if evaluator == 0:
        try:
            Sandbox(Limits(seconds=60)).run("import time; time.sleep(60)")
        finally:
            os._exit(0)

    def whole_jail():  # what sets it up, process 1, the program
        found = descendants(evaluator)
        return found if len(found) == 3 else None

    started = until(whole_jail)
    os.kill(evaluator, signal.SIGKILL)
    os.waitpid(evaluator, 0)
    until(lambda: not started & set(living()))


def living():
    """Processes that are no corpses → their parents."""
    found = {}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/stat") as file:
                state, parent = file.read().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        if state != "Z":
            found[pid] = parent
    return found


def descendants(pid):
    parents = living()
    found = {str(pid)}
    while more := {one for one, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {str(pid)}


def until(fulfilled):
    """Wait for something that another process brings about."""
    pause = threading.Event()
    for _ in range(1000):
        if found := fulfilled():
            return found
        pause.wait(0.01)
    raise AssertionError("it did not happen")


def test_the_check_sees_leaks(sandbox, monkeypatch):
    """Each hole that is made on purpose is found, and then nothing is run."""

    class Leaky(Sandbox):
        def __init__(self, limits, at_once=None):
            super().__init__(limits, at_once)
            for name, value in changed.items():
                self._spec["limits"][name] = value
            self._spec["folders"] += folders

    monkeypatch.setattr(sandbox_module, "Sandbox", Leaky)
    changed, folders = {"RLIMIT_NPROC": 40}, []
    with pytest.raises(UserError, match="one that tried starts more than its processes. Nothing was run"):
        check_isolation(LIMITS)
    changed, folders = {"RLIMIT_AS": 4 << 30}, []
    with pytest.raises(UserError, match="takes more than memory_mb"):
        check_isolation(LIMITS)
    changed, folders = {}, [os.path.realpath(os.environ.get("TMPDIR", "/tmp"))]
    if folders != ["/tmp"]:
        with pytest.raises(UserError, match="reads files of this machine"):
            check_isolation(LIMITS)


def test_where_there_is_no_isolation_nothing_is_run(monkeypatch):
    monkeypatch.setattr("lit_gpt.evaluation.code.sandbox.sys.platform", "darwin")
    with pytest.raises(UserError, match="cannot be isolated on darwin"):
        check_isolation(LIMITS)


def test_a_jail_that_cannot_be_built_is_told(sandbox):
    broken = Sandbox(LIMITS)
    broken._spec["folders"] = ["/nowhere"]
    with pytest.raises(JailError, match="FileNotFoundError"):
        broken.run("print('never')")
    broken._spec["python"] = "/usr/bin/true"
    with pytest.raises(JailError, match="could not be set up"):
        broken.run("print('never')")


@pytest.mark.parametrize(
    ("name", "value"), [("seconds", 0), ("memory_mb", 8), ("processes", 0), ("seconds", float("nan"))]
)
def test_limits_have_bounds(name, value):
    with pytest.raises(UserError, match=f"limits.{name} is {value}"):
        Limits(**{name: value})
