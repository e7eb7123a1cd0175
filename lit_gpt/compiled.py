"""C libraries that are compiled by the machine's own compiler when they are first used, and kept in the cache folder.

They are optional: there are none without a compiler (`CC`, or `cc` on the path), or if LIT_GPT_NATIVE is 0.
"""

import ctypes
import hashlib
import os
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from lit_gpt.atomic import atomic_file
from lit_gpt.cache_dir import find_cache_dir
from lit_gpt.errors import UserError

# Not -ffast-math: linked into a library, it changes the arithmetic of the whole process.
_FLAGS = ("-O3", "-fPIC", "-shared")
_SECONDS = 120
"""Time limit of the compiler."""


def load_compiled(source: Path, machine: str, options: Sequence[Sequence[str]] = ((),)) -> ctypes.CDLL | None:
    """Compile a C file, unless that was done before, and load it.

    Args:
        source: The file.
        machine: What the result depends on besides the file, the compiler and the options.
        options: Further arguments of the compiler; of several, the first that it accepts are used.

    Returns:
        The library; None if such libraries are turned off or cannot be compiled here.
    """
    compiler = shlex.split(os.environ.get("CC") or shutil.which("cc") or "")
    if os.environ.get("LIT_GPT_NATIVE") == "0" or not compiler or os.name != "posix":
        return None
    texts = [path.read_text(encoding="utf-8") for path in (source, *sorted(source.parent.glob("*.h")))]
    parts = (*texts, machine, *compiler, *_FLAGS, *map(str, options))
    name = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
    try:
        path = find_cache_dir() / f"{source.stem}-{name}.so"
        if not path.exists():
            with atomic_file(path) as temporary:
                _compile([*compiler, *_FLAGS, str(source), "-o", str(temporary)], options)
        return ctypes.CDLL(str(path))
    except (OSError, UserError, subprocess.SubprocessError):  # no place to keep it, or a compiler that lacks something
        return None


def _compile(command: list[str], options: Sequence[Sequence[str]]) -> None:
    for some in options:
        if subprocess.run([*command, *some], capture_output=True, timeout=_SECONDS, check=False).returncode == 0:
            return
    raise subprocess.SubprocessError("the compiler failed")
