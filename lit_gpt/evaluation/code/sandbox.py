"""Run untrusted programs with resource limits in a sandbox, after checking that its isolation works on this machine.

Each program gets a separate jail (`jail.py`). It passes if it reaches its end: then the runner inside writes a secret
word to a pipe that was created for this run. Everything else is a failure: an exception, an explicit exit, a limit
reached, another word on the pipe; the behavior of forked children is ignored. The word prevents a program from passing
by accident or by guessing. A program that searches its interpreter for the word can still claim to have passed, but it
cannot harm the machine.

Before the first generated program runs, `check_isolation` runs a harmless program that attempts what a hostile one
would. If any attempt succeeds, it is reported and nothing else is run.

Why not bubblewrap: it cannot limit the number of files in a tmpfs, started as root it keeps root's user id outside, on
which RLIMIT_NPROC is not enforced, and started as another user it cannot reach a Python below /root. It would also need
the same system call filter as a compiled program.
"""

import builtins
import fcntl
import json
import math
import os
import platform
import random
import re
import secrets
import selectors
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from lit_gpt.checks import check_at_least
from lit_gpt.errors import UserError
from lit_gpt.evaluation.progress import Progress, no_progress

# System calls that a program does not need: access to memory that is not counted by limits, to other processes, to the
# kernel. Numbers from Linux's tables syscall_64.tbl (x86-64) and asm-generic/unistd.h (AArch64); calls from 424 on have
# the same number everywhere. The selection follows Docker's default profile, and adds what outlives or escapes rlimits:
# System V and anonymous shared memory.
_EVERYWHERE = {
    "io_uring_setup": 425, "open_tree": 428, "move_mount": 429, "fsopen": 430, "clone3": 435, "pidfd_getfd": 438,
    "process_madvise": 440, "mount_setattr": 442, "memfd_secret": 447,
}  # fmt: skip
_X86_64 = {
    "clone": 56, "shmget": 29, "shmat": 30, "semget": 64, "msgget": 68, "ptrace": 101, "personality": 135,
    "pivot_root": 155, "chroot": 161, "mount": 165, "umount2": 166, "swapon": 167, "reboot": 169,
    "init_module": 175, "delete_module": 176, "kexec_load": 246, "add_key": 248, "request_key": 249, "keyctl": 250,
    "unshare": 272, "perf_event_open": 298, "fanotify_init": 300, "name_to_handle_at": 303, "open_by_handle_at": 304,
    "setns": 308, "process_vm_readv": 310, "process_vm_writev": 311, "finit_module": 313, "memfd_create": 319,
    "bpf": 321, "userfaultfd": 323, "socket": 41,
}  # fmt: skip
_AARCH64 = {
    "clone": 220, "shmget": 194, "shmat": 196, "semget": 190, "msgget": 186, "ptrace": 117, "personality": 92,
    "pivot_root": 41, "chroot": 51, "mount": 40, "umount2": 39, "swapon": 224, "reboot": 142,
    "init_module": 105, "delete_module": 106, "kexec_load": 104, "add_key": 217, "request_key": 218, "keyctl": 219,
    "unshare": 97, "perf_event_open": 241, "fanotify_init": 262, "name_to_handle_at": 264, "open_by_handle_at": 265,
    "setns": 268, "process_vm_readv": 270, "process_vm_writev": 271, "finit_module": 273, "memfd_create": 279,
    "bpf": 280, "userfaultfd": 282, "socket": 198,
}  # fmt: skip

_CHECKED_BY_ARGUMENT = ("clone", "clone3", "socket")
"""Calls that are allowed or denied by their arguments."""


@dataclass(frozen=True)
class Processor:
    """The system call numbers of a processor architecture.

    Attributes:
        audit: The architecture's number in seccomp's data.
        calls: Name of a system call → its number.
    """

    audit: int
    calls: dict[str, int]

    def to_dict(self) -> dict[str, Any]:
        """Return the table for the filter of the jail."""
        denied = [number for name, number in self.calls.items() if name not in _CHECKED_BY_ARGUMENT]
        return {"arch": self.audit, "denied": denied, **{name: self.calls[name] for name in _CHECKED_BY_ARGUMENT}}


PROCESSORS = {
    "x86_64": Processor(0xC000003E, _X86_64 | _EVERYWHERE),
    "aarch64": Processor(0xC00000B7, _AARCH64 | _EVERYWHERE),
}


def this_processor() -> Processor | None:
    """Return the architecture of this machine; None if its system call numbers are not in the table."""
    return PROCESSORS.get(platform.machine())


Ending = Literal["passed", "failed", "timeout", "output"]
"""Reached its end; ended before it; stopped by the timeout; stopped because of too much output."""
_LAST_ERROR = re.compile(r"(?:\A|\n)(\w+)(?::[^\n]*)?\s*\Z")
_EXCEPTIONS = {
    name for name, value in vars(builtins).items() if isinstance(value, type) and issubclass(value, BaseException)
}


@dataclass(frozen=True)
class Limits:
    """Resource limits of one program.

    A program may use `processes` · `memory_mb` + `disk_mb` of memory in total.

    Attributes:
        seconds: Wall-clock time of the program. Chen et al. 2021 allow 3.
        memory_mb: Address space of one process.
        processes: Processes and threads alive at the same time, including the program's own.
        open_files: Open files of one process.
        disk_mb: Size of all files in its `/tmp`, which is in memory.
        disk_files: Number of files in its `/tmp`.
        output_kb: Output to standard output and standard error.

    Raises:
        UserError: If a limit is not positive, or too little memory for Python to start.
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
            check_at_least(f"limits.{field.name}", getattr(self, field.name), least.get(field.name, 1))

    def resources(self) -> dict[str, int]:
        """Return the limits for setrlimit(2)."""
        return {
            "RLIMIT_AS": self.memory_mb << 20,
            "RLIMIT_CPU": math.ceil(self.seconds) + 1,
            "RLIMIT_NPROC": self.processes + 2,  # plus the two processes that build the jail
            "RLIMIT_NOFILE": self.open_files,
            "RLIMIT_FSIZE": self.disk_mb << 20,
            "RLIMIT_CORE": 0,
            "RLIMIT_MEMLOCK": 0,
            "RLIMIT_MSGQUEUE": 0,
        }


@dataclass(frozen=True)
class Outcome:
    """Result of running one program.

    Attributes:
        ending: Reason why the program ended, such as a normal exit or a time limit.
        output: Output of the program, truncated at the limit; untrusted text.
    """

    ending: Ending
    output: str = ""

    @property
    def passed(self) -> bool:
        """Whether it reached its end, that is, passed its tests."""
        return self.ending == "passed"

    @property
    def reason(self) -> str:
        """`passed`, `timeout`, `output`, the name of a built-in exception, or `ended early`."""
        if self.ending != "failed":
            return self.ending
        last = _LAST_ERROR.search(self.output)
        return last[1] if last is not None and last[1] in _EXCEPTIONS else "ended early"


RUNNER = """
import os, sys
word, _, source = sys.stdin.buffer.read().partition(b"\\n")
empty = os.open(os.devnull, os.O_RDONLY)
os.dup2(empty, 0)
os.close(empty)
own = os.getpid()
os.write(3, b"begun ")
exec(compile(source, "program.py", "exec"), {"__name__": "__main__"})
sys.stdout.flush()
if os.getpid() == own:
    os.write(3, word)
os._exit(0)
"""
START_SECONDS = 30.0
"""Time to set up the jail; the program's own time starts after it."""
BEGUN, REFUSED = b"begun ", b"refused "
END_SECONDS = 10.0
"""Time for the kernel to terminate all processes of a jail."""
REPORT_BYTES = 4096
JAIL = Path(__file__).with_name("jail.py")
SYSTEM_FOLDERS = ("/usr", "/lib", "/lib32", "/lib64", "/bin", "/nix/store", "/etc/ld.so.cache")


class JailError(UserError):
    """A jail could not be set up; the message names the step and the reason."""


class Sandbox:
    """Runs programs in jails, several at a time.

    Args:
        limits: Limits of each program.
        at_once: Number of programs that run in parallel; None: the number of cores.

    Raises:
        UserError: If this is not Linux, or the architecture's system calls are not in the table.
    """

    def __init__(self, limits: Limits = Limits(), at_once: int | None = None) -> None:
        processor = this_processor() if sys.platform == "linux" else None
        if processor is None:
            raise UserError(
                f"programs cannot be isolated on {sys.platform} {os.uname().machine}: it needs Linux on x86-64 or "
                "AArch64; run this measure there, or remove it"
            )
        self.limits = limits
        self.at_once = at_once or len(os.sched_getaffinity(0))
        python = os.path.realpath(sys.executable)
        self._spec: dict[str, Any] = {
            "python": python,
            "runner": RUNNER,
            "folders": _folders(python),
            "system_calls": processor.to_dict(),
            "disk_bytes": limits.disk_mb << 20,
            "disk_files": limits.disk_files,
            "limits": limits.resources(),
        }

    @property
    def visible(self) -> set[str]:
        """Names in the root directory that a program sees, in addition to its `/tmp` and devices."""
        return {folder.split("/")[1] for folder in self._spec["folders"]}

    def run_all(self, programs: Sequence[str], progress: Progress = no_progress) -> list[Outcome]:
        """Run programs and return their outcomes, in order.

        Raises:
            JailError: If a jail could not be set up, twice.
        """
        outcomes = []
        progress(0, len(programs))
        with ThreadPoolExecutor(self.at_once) as pool:
            try:
                for outcome in pool.map(self._run_twice, programs):
                    outcomes.append(outcome)
                    progress(len(outcomes), len(programs))
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise
        return outcomes

    def _run_twice(self, program: str) -> Outcome:
        """Run a program, and retry once, because setting up a jail may fail while memory or processes are scarce."""
        try:
            return self.run(program)
        except JailError:
            return self.run(program)

    def run(self, program: str) -> Outcome:
        """Run one program until it ends or reaches a limit.

        Args:
            program: Python source, which is only ever interpreted inside the jail.

        Raises:
            JailError: If its jail could not be set up; the program was not run.
        """
        word = secrets.token_hex(16)
        # A sealed memory file: it has no path, and the program cannot change what it is read from.
        source = os.memfd_create("program", os.MFD_ALLOW_SEALING)
        report, written = os.pipe()
        try:
            os.write(source, f"{word}\n".encode() + program.encode("utf-8", "backslashreplace"))
            os.lseek(source, 0, os.SEEK_SET)
            seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
            fcntl.fcntl(source, fcntl.F_ADD_SEALS, seals)
            process = self._start(source, written)
        except BaseException:
            os.close(report)
            raise
        finally:
            os.close(source)
            os.close(written)
        try:
            return self._watch(process, report, word.encode())
        finally:
            os.close(report)
            _end(process)

    def _start(self, source: int, report: int) -> "subprocess.Popen[bytes]":
        """Start a jail, which gets the number of its report pipe."""
        spec = {**self._spec, "parent": os.getpid(), "user": random.SystemRandom().randrange(61184, 65000)}
        command = [self._spec["python"], "-I", "-S", "-B", str(JAIL), str(report), json.dumps(spec)]
        return subprocess.Popen(
            command,
            stdin=source,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=(report,),
            env={"LANG": "C.UTF-8"},
            cwd="/",
            start_new_session=True,
        )

    def _watch(self, process: "subprocess.Popen[bytes]", report: int, word: bytes) -> Outcome:
        """Read a jail's report and output until it ends or reaches a limit."""
        assert process.stdout is not None
        reported, output = b"", b""
        ending: Ending | None = None
        deadline = time.monotonic() + START_SECONDS
        begun = False
        most = self.limits.output_kb << 10
        with selectors.DefaultSelector() as selector:
            for file in (process.stdout.fileno(), report):
                os.set_blocking(file, False)
                selector.register(file, selectors.EVENT_READ)
            while selector.get_map() and ending is None:
                ready = selector.select(max(0.0, deadline - time.monotonic()))
                for key, _ in ready:
                    piece = os.read(key.fd, 1 << 16)
                    if not piece:
                        selector.unregister(key.fd)
                    elif key.fd == report:
                        reported = (reported + piece)[: REPORT_BYTES + 1]
                    else:
                        output = (output + piece)[: most + 1]
                if not begun and reported.startswith(BEGUN):
                    begun, deadline = True, time.monotonic() + self.limits.seconds
                if len(output) > most or len(reported) > REPORT_BYTES:
                    ending = "output"
                elif time.monotonic() > deadline:
                    ending = "timeout"
        if not begun:
            reason = reported.removeprefix(REFUSED).decode("utf-8", "replace")
            reason = reason or output[-500:].decode("utf-8", "replace")
            raise JailError(f"a jail for a program could not be set up: {reason.strip() or 'it reported nothing'}")
        passed = ending is None and reported == BEGUN + word
        return Outcome(ending or ("passed" if passed else "failed"), output[:most].decode("utf-8", "replace"))


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Terminate a jail and all of its processes."""
    assert process.stdout is not None
    process.stdout.close()
    process.terminate()
    try:
        process.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()  # the kernel kills its process 1, and with it all others
        process.wait()


def _folders(python: str) -> list[str]:
    """Return the folders that a program sees: the system libraries, and Python if it is elsewhere."""
    wanted = [*SYSTEM_FOLDERS, os.path.realpath(sys.base_prefix), python]
    folders: list[str] = []
    for path in wanted:
        if os.path.exists(path) and path != "/" and not any(Path(path).is_relative_to(folder) for folder in folders):
            folders.append(path)
    return folders


_PROBE = """
import ctypes, json, os, signal, socket, time

found = {}

def attempt(name, action):
    try:
        found[name] = bool(action())
    except (OSError, MemoryError, ValueError):
        found[name] = False

def fork_many():
    # Slightly more than the limit, and each waits for this one: a check of the limit, not a fork bomb.
    here, there = os.pipe()
    children = []
    try:
        for _ in range(PROCESSES + 8):
            child = os.fork()
            if child == 0:
                os.close(there)
                os.read(here, 1)
                os._exit(0)
            children.append(child)
    except OSError:
        pass
    os.close(there)
    for child in children:
        os.waitpid(child, 0)
    return len(children) > PROCESSES - 1

def connect(address):
    with socket.create_connection(address, 2):
        return True

def write_outside():
    with open("/probe", "w") as file:
        return file.write("x")

def too_large_file():
    with open("/tmp/large", "wb") as file:
        for _ in range(DISK_MB + 1):
            file.write(bytes(1 << 20))
    return True

def capabilities():
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    data = (ctypes.c_uint32 * 6)()
    ctypes.CDLL(None).capget(header, data)
    return any(data)

# Exceeding the limit on file sizes raises a signal by default; here it must be an error.
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
libc = ctypes.CDLL(None)
attempt("is root", lambda: 0 in (os.getuid(), os.geteuid()))
attempt("becomes root", lambda: os.setuid(0) is None)
attempt("has capabilities", capabilities)
attempt("sees the machine's processes", lambda: os.getpid() != 2)
attempt("signals the process that started it", lambda: os.kill(PARENT, 0) is None)
attempt("reads files of this machine", lambda: open(SECRET).read())
attempt("sees more than its own root", lambda: set(os.listdir("/")) - EXPECTED)
attempt("finds things in its folder", lambda: os.listdir("/tmp"))
attempt("writes outside its folder", write_outside)
attempt("writes more than disk_mb", too_large_file)
attempt("reaches this machine's network", lambda: connect(("127.0.0.1", PORT)))
attempt("has a network", lambda: [name for _, name in socket.if_nameindex() if name != "lo"])
attempt("makes namespaces", lambda: libc.unshare(0x10000000) == 0)
attempt("starts more than its processes", fork_many)
attempt("takes more than memory_mb", lambda: bytearray((MEMORY_MB + 1) << 20))
print(json.dumps(found))
"""


def check_isolation(limits: Limits = Limits()) -> list[str]:
    """Attempt everything that the jail must prevent.

    Args:
        limits: Limits that the jail must enforce; the time limit is extended for the check.

    Returns:
        The attempts, all of which failed.

    Raises:
        UserError: If the jail cannot be set up here, or an attempt succeeds; the message names it.
    """
    limits = Limits(**{**vars(limits), "seconds": max(limits.seconds, 20.0)})
    sandbox = Sandbox(limits, at_once=1)
    with tempfile.TemporaryDirectory() as folder, socket.create_server(("127.0.0.1", 0)) as server:
        os.chmod(folder, 0o755)
        secret = Path(folder, "secret.txt")
        secret.write_text(secrets.token_hex())
        secret.chmod(0o644)
        values = {
            "PROCESSES": limits.processes, "MEMORY_MB": limits.memory_mb, "DISK_MB": limits.disk_mb,
            "PARENT": os.getpid(), "PORT": server.getsockname()[1], "SECRET": str(secret),
            "EXPECTED": sandbox.visible | {"tmp", "dev"},
        }  # fmt: skip
        program = "".join(f"{name} = {value!r}\n" for name, value in values.items()) + _PROBE
        try:
            outcome = sandbox.run(program)
        except JailError as error:
            raise UserError(
                f"programs cannot be isolated on this machine ({error}); it needs a Linux that lets an ordinary user "
                "create namespaces (sysctl kernel.unprivileged_userns_clone and user.max_user_namespaces; in Docker "
                "--security-opt seccomp=unconfined). Nothing was run"
            ) from error
    if not outcome.passed:
        raise UserError(f"the check of the isolation ended with {outcome.reason}, so nothing was run: {outcome.output}")
    found: dict[str, bool] = json.loads(outcome.output)
    leaks = [name for name, could in found.items() if could]
    if leaks:
        raise UserError(
            f"programs cannot be isolated on this machine: one that tried {'; '.join(leaks)}. Nothing was run"
        )
    return list(found)
