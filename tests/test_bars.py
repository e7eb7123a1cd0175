"""Progress bars on terminals that do and do not know their width, and none in pipes."""

import fcntl
import io
import os
import pty
import struct
import termios

import pytest

from lit_gpt.progress import Bar


@pytest.mark.parametrize("columns", [0, 60])
def test_a_bar_fits_a_terminal(columns):
    reader, writer = pty.openpty()
    fcntl.ioctl(writer, termios.TIOCSWINSZ, struct.pack("HHHH", 0 if columns == 0 else 24, columns, 0, 0))
    with os.fdopen(writer, "w") as terminal:
        with Bar(range(3), desc="reading", file=terminal, mininterval=0) as bar:
            for _ in bar:
                pass
        terminal.write("the end")
        terminal.flush()
        text = ""
        while "the end" not in text:  # a terminal passes its text on in parts
            text += os.read(reader, 65536).decode()
    os.close(reader)
    assert "reading" in text
    assert all(f"{done}/3" in text for done in range(4))  # no step is skipped
    assert max(map(len, text.split("\r"))) <= (columns or 80)


def test_a_pipe_has_no_bar():
    stream = io.StringIO()
    assert list(Bar(range(3), file=stream)) == [0, 1, 2]
    assert stream.getvalue() == ""
