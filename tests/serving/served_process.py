"""`python -m lit_gpt serve` as a process of its own."""

import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path


class ServedProcess:
    """Context manager: serves on a free port; what it writes is kept, line by line."""

    def __init__(self, *words: str, environment: dict[str, str] | None = None) -> None:
        self.words = [sys.executable, "-u", "-m", "lit_gpt", "serve", "--port", "0", *map(str, words)]
        self.environment = {**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})}

    def __enter__(self) -> "ServedProcess":
        self.process = subprocess.Popen(
            self.words, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self.lines: list[str] = []
        self.up = threading.Event()
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()
        assert self.up.wait(120), self.lines
        return self

    def _read(self) -> None:
        for line in self.process.stdout:
            self.lines.append(line)
            found = re.search(r"page +(http://[\d.]+:(\d+))/", line)
            if found:
                self.address, self.port = found[1], int(found[2])
            self.up.set() if line.startswith("  openai") else None
        self.up.set()

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def memory_bytes(self) -> int:
        """Resident."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def __exit__(self, *_) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(30)
        self.reader.join(10)
