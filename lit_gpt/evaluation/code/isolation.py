"""Is the isolation really there? A harmless program tries what a hostile one would, and says what it could do.

It runs before the first program of a model does. Whatever it could reach is named, and nothing else is run.
"""

import json
import os
import secrets
import socket
import tempfile
from pathlib import Path

from lit_gpt.errors import UserError
from lit_gpt.evaluation.code.limits import Limits
from lit_gpt.evaluation.code.sandbox import JailError, Sandbox

_PROBE = """
import ctypes, json, os, signal, socket, time

found = {}

def attempt(name, action):
    try:
        found[name] = bool(action())
    except (OSError, MemoryError, ValueError):
        found[name] = False

def fork_many():
    # At most as many as asked for, and each waits for this one: a check of the limit, not a bomb.
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

# A limit on the size of files ends a program with a signal; here it is to be an error.
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


def check_isolation(limits: Limits = Limits()) -> list[str]:  # noqa: B008 (frozen)
    """Try everything that the jail is to prevent.

    Args:
        limits: That the jail shall hold; time is extended for the check.

    Returns:
        What was tried, each in vain.

    Raises:
        UserError: The jail cannot be built here, or leaks; says where.
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
                f"programs cannot be isolated on this machine ({error}); it takes Linux that lets an ordinary user "
                "make namespaces (sysctl kernel.unprivileged_userns_clone and user.max_user_namespaces; in Docker "
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
