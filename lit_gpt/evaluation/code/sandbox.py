"""Where programs of a model run, and what is seen of them from outside.

Each program gets a jail of its own (`jail.py`). It passes if it reaches its own end: then the runner inside writes a
word on a pipe that it was given for this one run. Everything else is a failure: an exception, an exit of its own, a
limit reached, another word on the pipe; what a program has forked off says nothing. The word keeps programs from
passing by accident or by guessing. One that searches its own interpreter for the word can still claim to have passed;
it can do nothing to the machine.
"""

import fcntl
import json
import os
import random
import secrets
import selectors
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from lit_gpt.errors import UserError
from lit_gpt.evaluation.code.limits import Ending, Limits, Outcome
from lit_gpt.evaluation.code.system_calls import this_processor
from lit_gpt.evaluation.progress import Progress, no_progress

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
"""For the jail to stand; the program's own time begins after."""
BEGUN, REFUSED = b"begun ", b"refused "
END_SECONDS = 10.0
"""For the kernel to end what a jail holds."""
REPORT_BYTES = 4096
JAIL = Path(__file__).with_name("jail.py")
SYSTEM_FOLDERS = ("/usr", "/lib", "/lib32", "/lib64", "/bin", "/nix/store", "/etc/ld.so.cache")


class JailError(UserError):
    """A jail could not be built; says at which step and why."""


class Sandbox:
    """Runs programs, several at a time.

    Args:
        limits: Of each program.
        at_once: Programs that run at a time; None: as many as there are cores.

    Raises:
        UserError: This is no Linux, or a processor whose system calls are not known.
    """

    def __init__(self, limits: Limits = Limits(), at_once: int | None = None) -> None:  # noqa: B008 (frozen)
        processor = this_processor() if sys.platform == "linux" else None
        if processor is None:
            raise UserError(
                f"programs cannot be isolated on {sys.platform} {os.uname().machine}: it takes Linux on x86-64 or "
                "AArch64; run this measure there, or leave it out"
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
        """Names in the root that a program sees, besides its own `/tmp` and devices."""
        return {folder.split("/")[1] for folder in self._spec["folders"]}

    def run_all(self, programs: Sequence[str], progress: Progress = no_progress) -> list[Outcome]:
        """Run programs and return what became of each, in their order.

        Raises:
            JailError: A jail could not be built, twice.
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
        """A jail may fail where memory or processes of the machine are short for a moment."""
        try:
            return self.run(program)
        except JailError:
            return self.run(program)

    def run(self, program: str) -> Outcome:
        """Run one program to its end, or to that of a limit.

        Args:
            program: Python source. Its text never reaches another interpreter than the jail's.

        Raises:
            JailError: Its jail could not be built; the program has not run.
        """
        word = secrets.token_hex(16)
        # No path, no writing: what the program reads from cannot be changed by it.
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
        """Start a jail: it finds its report pipe at descriptor 3."""
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
        """Read what a jail says until it has ended or must be."""
        assert process.stdout is not None
        told, output = b"", b""
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
                        told = (told + piece)[: REPORT_BYTES + 1]
                    else:
                        output = (output + piece)[: most + 1]
                if not begun and told.startswith(BEGUN):
                    begun, deadline = True, time.monotonic() + self.limits.seconds
                if len(output) > most or len(told) > REPORT_BYTES:
                    ending = "output"
                elif time.monotonic() > deadline:
                    ending = "timeout"
        if not begun:
            reason = told.removeprefix(REFUSED).decode("utf-8", "replace") or output[-500:].decode("utf-8", "replace")
            raise JailError(f"a jail for a program could not be built: {reason.strip() or 'no word from it'}")
        passed = ending is None and told == BEGUN + word
        return Outcome(ending or ("passed" if passed else "failed"), output[:most].decode("utf-8", "replace"))


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End a jail and all that lives in it; it tells so by ending itself."""
    assert process.stdout is not None
    process.stdout.close()
    process.terminate()
    try:
        process.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()  # the kernel ends its process 1, and with it the rest
        process.wait()


def _folders(python: str) -> list[str]:
    """What a program sees of this machine: the system's libraries, and Python where it lies elsewhere."""
    wanted = [*SYSTEM_FOLDERS, os.path.realpath(sys.base_prefix), python]
    folders: list[str] = []
    for path in wanted:
        if os.path.exists(path) and path != "/" and not any(Path(path).is_relative_to(folder) for folder in folders):
            folders.append(path)
    return folders
