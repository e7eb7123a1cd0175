"""What a hung run says; `tests/plugins` plants a hang in two processes."""

import threading
from datetime import timedelta

import pytest

from lit_gpt.callbacks import HangGuard
from lit_gpt.callbacks.hang_guard import WAITS, report, where
from lit_gpt.errors import UserError

REDUCE = f"{WAITS}all_reduce (training_step, base.py:1)"


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (
            {0: ("a", REDUCE), 1: ("b", "read, disk.py:3")},
            ["process 1 on b is in read, disk.py:3", "1 of 2", "all_reduce"],
        ),
        ({0: ("", ""), 1: ("b", REDUCE), 2: ("c", REDUCE)}, ["process 0 does not answer", "2 of 3", "all_reduce"]),
        ({0: ("a", REDUCE), 1: ("b", REDUCE)}, ["all processes wait", "all_reduce"]),
        ({0: ("a", "f, x.py:1"), 1: ("", "")}, ["process 0 on a", "process 1 does not", "0 of 2"]),
        ({}, ["after step 7"]),
    ],
)
def test_the_process_that_does_not_wait_is_named(found, words):
    line = report(found, 7, timedelta(minutes=30))
    assert all(word in line for word in words), line
    assert "0:30:00" in line
    assert "\n" not in line


def test_where_a_thread_is():
    reached, release = threading.Event(), threading.Event()

    def stands_still():
        reached.set()
        release.wait(60)

    thread = threading.Thread(target=stands_still)
    thread.start()
    assert reached.wait(60)
    place = where(thread.ident)
    release.set()
    thread.join()
    assert place.startswith("stands_still, ")
    assert "test_hang_guard.py" in place


def test_no_time_is_refused():
    with pytest.raises(UserError, match=r"minutes of HangGuard.*0"):
        HangGuard(minutes=0)
