"""Run one program in isolation: a script that is started by `sandbox` and never imported.

Linux only. Stages: if started as root, a mount namespace and a new root directory, after which root is permanently
given up (the limit on processes is not enforced for root) → user, pid, network, ipc and host name namespaces (for other
users the new root directory is built now) → process 1 of the new pid namespace, whose end terminates everything that
the program starts → the program: resource limits, a filter of system calls, no capabilities, no new privileges, exec.

The new root directory is a tmpfs with the system's libraries and Python, read-only, an empty `/tmp` of bounded size,
and four devices. Nothing else of the machine is visible: no `/proc`, no home, no socket. There is no network.

Sources: namespaces(7), user_namespaces(7), pid_namespaces(7), pivot_root(2), seccomp(2); bubblewrap's order of mounts.
"""

import ctypes
import json
import os
import resource
import signal
import struct
import sys
from collections.abc import Callable
from typing import Any, NoReturn

REPORT = 3
"""File descriptor on which set-up and program report their progress."""
INNER_ID = 1000
"""User and group id of the program inside its namespace."""
BASE = "/tmp"
"""Folder on which the new root is mounted before it becomes the root."""
NEWNS, NEWCGROUP, NEWUTS, NEWIPC = 0x00020000, 0x02000000, 0x04000000, 0x08000000
NEWUSER, NEWPID, NEWNET = 0x10000000, 0x20000000, 0x40000000
ALL_NAMESPACES = NEWNS | NEWCGROUP | NEWUTS | NEWIPC | NEWUSER | NEWPID | NEWNET
RDONLY, NOSUID, NODEV, REMOUNT, BIND, REC, PRIVATE = 1, 2, 4, 32, 4096, 16384, 1 << 18
DETACH = 2
AT_RECURSIVE, MOUNT_SETATTR = 0x8000, 442
SET_PDEATHSIG, SET_DUMPABLE, SET_SECCOMP, CAPBSET_DROP, SET_NO_NEW_PRIVS = 1, 4, 22, 24, 38
SOCKET_FAMILIES = (1, 2, 10, 16)
"""Unix, IPv4, IPv6, netlink: others, such as AF_VSOCK to the host of a virtual machine, ignore network namespaces."""
libc = ctypes.CDLL(None, use_errno=True)


def checked(result: int, what: str) -> None:
    """Raise the error of the last libc call if it failed."""
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def mount(source: str | None, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    """Mount a file system with the system call of this name."""
    words = [None if word is None else word.encode() for word in (source, target, kind)]
    checked(libc.mount(*words, ctypes.c_ulong(flags), data.encode() if data else None), f"mount {target}")


def prctl(option: int, value: int, third: Any = 0) -> int:
    """Change a property of this process with the system call of this name."""
    result: int = libc.prctl(option, ctypes.c_ulong(value), third, 0, 0)
    return result


def read_only(path: str, flags: int) -> None:
    """Make a mount and all mounts below it read-only."""
    attributes = ctypes.create_string_buffer(struct.pack("=4Q", RDONLY | flags, 0, 0, 0))
    size = ctypes.c_size_t(32)
    result = libc.syscall(MOUNT_SETATTR, -100, path.encode(), AT_RECURSIVE, attributes, size)
    checked(result, f"mount_setattr {path}")


def bind(path: str, device: bool = False) -> None:
    """Bind a path of the old root read-only to the same path in the new one; a symbolic link is copied."""
    old = f"/old{path}"
    os.makedirs(os.path.dirname(path), exist_ok=True)
    if os.path.islink(old):
        os.symlink(os.readlink(old), path)
        return
    if os.path.isdir(old):
        os.makedirs(path, exist_ok=True)
    else:
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY))
    mount(old, path, None, BIND | REC)
    read_only(path, NOSUID if device else NOSUID | NODEV)


def build_root(spec: dict[str, Any]) -> None:
    """Build the new root directory and leave the old one."""
    os.umask(0o022)
    mount("none", "/", None, REC | PRIVATE)
    mount("tmpfs", BASE, "tmpfs", NOSUID | NODEV, "mode=755,size=1m,nr_inodes=1000")
    os.chdir(BASE)
    os.mkdir("old")
    checked(libc.pivot_root(b".", b"old"), "pivot_root")
    os.chdir("/")
    for path in spec["folders"]:
        bind(path)
    for name in ("null", "zero", "random", "urandom"):
        bind(f"/dev/{name}", device=True)
    os.makedirs("/tmp", exist_ok=True)
    size = f"mode=1777,size={spec['disk_bytes']},nr_inodes={spec['disk_files']}"
    mount("tmpfs", "/tmp", "tmpfs", NOSUID | NODEV, size)
    checked(libc.umount2(b"/old", DETACH), "umount the old root")
    os.rmdir("/old")
    mount(None, "/", None, REMOUNT | BIND | RDONLY | NOSUID | NODEV)
    os.chdir("/tmp")


def give_up_root(user: int) -> None:
    """Switch to a user id that no other process has."""
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)
    try:
        os.setuid(0)
    except PermissionError:
        pass
    else:
        raise RuntimeError("root cannot be given up")
    checked(prctl(SET_DUMPABLE, 1), "prctl")  # otherwise its files in /proc, such as uid_map, would belong to root


def map_users(proc: int, user: int, group: int) -> None:
    """Map this process's user and group into its new user namespace.

    Args:
        proc: File descriptor of the old root's /proc.
        user: User id outside.
        group: Group id outside.
    """
    maps = {"setgroups": "deny", "gid_map": f"{INNER_ID} {group} 1", "uid_map": f"{INNER_ID} {user} 1"}
    for name, text in maps.items():
        file = os.open(f"self/{name}", os.O_WRONLY, dir_fd=proc)
        os.write(file, text.encode())
        os.close(file)


def limit(spec: dict[str, Any]) -> None:
    """Set the program's resource limits; a lower existing limit is kept."""
    for name, value in spec["limits"].items():
        kind = getattr(resource, name)
        hard = resource.getrlimit(kind)[1]
        most = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (most, most))


def refuse_system_calls(calls: dict[str, Any]) -> None:
    """Install a seccomp filter, written as a classic BPF program.

    Each instruction is (code, jump if true, jump if false, value); jumps count the instructions to skip.

    Args:
        calls: `arch` of the processor; `denied`: numbers that fail with EPERM; `clone`, denied if it creates
            namespaces; `clone3`, whose flags are behind a pointer that no filter can read, and which libc can do
            without (ENOSYS); `socket`, denied for families that a network namespace does not contain.
    """

    def load(offset: int) -> bytes:
        return struct.pack("=HBBI", 0x20, 0, 0, offset)

    def jump(code: int, value: int, otherwise: int) -> bytes:
        return struct.pack("=HBBI", code, 0, otherwise, value)

    def answer(action: int) -> bytes:
        return struct.pack("=HBBI", 0x06, 0, 0, action)

    equal, at_least, any_bit = 0x15, 0x35, 0x45
    kill, allow, no_permission, no_such_call = 0x80000000, 0x7FFF0000, 0x00050001, 0x00050026
    lines = [load(4), struct.pack("=HBBI", equal, 1, 0, calls["arch"]), answer(kill), load(0)]
    lines += [jump(at_least, 0x40000000, 1), answer(no_permission)]  # x86-64's second table, x32
    for number in calls["denied"]:
        lines += [jump(equal, number, 1), answer(no_permission)]
    lines += [jump(equal, calls["clone3"], 1), answer(no_such_call)]
    families = len(SOCKET_FAMILIES)
    lines += [jump(equal, calls["socket"], families + 3), load(16)]
    lines += [struct.pack("=HBBI", equal, families - n, 0, family) for n, family in enumerate(SOCKET_FAMILIES)]
    lines += [answer(no_permission), answer(allow)]
    lines += [jump(equal, calls["clone"], 3), load(16), jump(any_bit, ALL_NAMESPACES, 1), answer(no_permission)]
    lines.append(answer(allow))
    code = ctypes.create_string_buffer(b"".join(lines))
    program = ctypes.create_string_buffer(struct.pack("@HP", len(lines), ctypes.addressof(code)))
    checked(prctl(SET_SECCOMP, 2, ctypes.byref(program)), "seccomp")


def become_program(spec: dict[str, Any]) -> NoReturn:
    """Set the limits and exec Python, which reads its program from standard input."""
    capability = 0
    while prctl(CAPBSET_DROP, capability) == 0:
        capability += 1
    limit(spec)
    checked(prctl(SET_NO_NEW_PRIVS, 1), "no_new_privs")
    refuse_system_calls(spec["system_calls"])
    os.set_inheritable(REPORT, True)
    environment = {"PATH": "/usr/bin:/bin", "HOME": "/tmp", "TMPDIR": "/tmp", "LANG": "C.UTF-8"}
    command = [spec["python"], "-I", "-S", "-B", "-u", "-X", "utf8", "-c", spec["runner"]]
    os.execve(spec["python"], command, environment)


def be_first(spec: dict[str, Any]) -> NoReturn:
    """Run as process 1: start the program, reap its children, and end with it; the kernel then kills all others."""
    prctl(SET_PDEATHSIG, signal.SIGKILL)
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, signal.SIG_DFL)  # process 1 ignores signals from its own namespace without a handler
    prctl(SET_DUMPABLE, 0)  # prevents tracing by other processes
    program = os.fork()
    if program == 0:
        reporting(become_program, spec)
    while os.wait()[0] != program:
        pass
    os._exit(0)


def reporting(stage: Callable[[dict[str, Any]], NoReturn], spec: dict[str, Any]) -> NoReturn:
    """Run a stage that does not return; an exception in it is reported and ends the process."""
    try:
        stage(spec)
    except BaseException as error:
        os.write(REPORT, f"refused {type(error).__name__}: {error}".encode())
        os._exit(1)


def main(spec: dict[str, Any]) -> NoReturn:
    """Run all stages; end when the last process of the program has ended."""
    os.closerange(REPORT + 1, 1 << 16)
    prctl(SET_PDEATHSIG, signal.SIGKILL)
    with open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")  # if memory runs out, this process is killed first
    proc = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY)
    root = os.geteuid() == 0
    if root:
        checked(libc.unshare(NEWNS), "unshare mount namespace")
        build_root(spec)
        give_up_root(spec["user"])
        prctl(SET_PDEATHSIG, signal.SIGKILL)  # changing the user id clears it
    if os.getppid() != spec["parent"]:
        raise RuntimeError("the process that started it has ended")
    user, group = os.getuid(), os.getgid()
    checked(libc.unshare(ALL_NAMESPACES & ~NEWNS if root else ALL_NAMESPACES), "unshare namespaces")
    map_users(proc, user, group)
    os.close(proc)
    if not root:
        build_root(spec)
    first = os.fork()
    if first == 0:
        reporting(be_first, spec)

    def end(number: int, frame: object) -> None:
        os.kill(first, signal.SIGKILL)

    signal.signal(signal.SIGTERM, end)
    os.waitpid(first, 0)  # returns when all processes of its namespace have ended
    os._exit(0)


if __name__ == "__main__":
    os.dup2(int(sys.argv[1]), REPORT)
    reporting(main, json.loads(sys.argv[2]))
