"""System calls that a program has no need of: ways to memory that no limit counts, to other processes, to the kernel.

Numbers from Linux's tables `syscall_64.tbl` (x86-64) and `asm-generic/unistd.h` (AArch64); calls from 424 on have one
number everywhere. Which ones follows Docker's default profile, and beyond it what outlives or escapes rlimits: System V
and anonymous files of shared memory.
"""

import platform
from dataclasses import dataclass
from typing import Any

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

_LOOKED_AT = ("clone", "clone3", "socket")
"""Calls whose arguments decide."""


@dataclass(frozen=True)
class Processor:
    """How a kind of processor numbers its system calls.

    Attributes:
        audit: Its number in seccomp's data.
        calls: Name → number.
    """

    audit: int
    calls: dict[str, int]

    def to_dict(self) -> dict[str, Any]:
        """As the jail's filter takes it."""
        denied = [number for name, number in self.calls.items() if name not in _LOOKED_AT]
        return {"arch": self.audit, "denied": denied, **{name: self.calls[name] for name in _LOOKED_AT}}


PROCESSORS = {
    "x86_64": Processor(0xC000003E, _X86_64 | _EVERYWHERE),
    "aarch64": Processor(0xC00000B7, _AARCH64 | _EVERYWHERE),
}


def this_processor() -> Processor | None:
    """The one that this runs on; None: its numbers are not known here."""
    return PROCESSORS.get(platform.machine())
