import fcntl
import os
from pathlib import Path

from lit_gpt.data.cache import exclusive


def test_a_process_that_is_forked_under_the_lock_does_not_keep_it(tmp_path: Path) -> None:
    here, there = os.pipe()
    with exclusive(tmp_path / "lock", "testing"):
        child = os.fork()
        if child == 0:
            os.close(there)
            os.read(here, 1)  # until the parent is done
            os._exit(0)
    try:
        with open(tmp_path / "lock") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # BlockingIOError if it is held
    finally:
        os.close(there)
        os.waitpid(child, 0)
        os.close(here)
