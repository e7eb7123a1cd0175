"""Who may come in: a bound on the sequences that run or wait, so that a full server says so at once.

Everything runs in the event loop's thread, so counting needs no lock.
"""

import math
import time
from types import TracebackType

from lit_gpt.serving.errors import ApiError

LONGEST_WAIT_SECONDS = 60
_MEMORY = 0.9
"""Of the running mean of durations: about the last ten count."""


class Admission:
    """Counts sequences in flight.

    Args:
        running: Sequences that are worked on at a time.
        queued: That may wait beside them.
    """

    def __init__(self, running: int, queued: int) -> None:
        self.running = running
        self.queued = queued
        self.in_flight = 0
        self.draining = False
        self.mean_seconds = 1.0
        """Of the requests that ended last: what Retry-After is guessed from."""

    def enter(self, sequences: int) -> "Ticket":
        """Take places.

        Args:
            sequences: How many.

        Raises:
            ApiError: 429 if there are not that many free, 503 while the server is going down.
        """
        if self.draining:
            raise ApiError(503, "the server is shutting down", "shutting_down", headers={"Retry-After": "5"})
        room = self.running + self.queued
        if sequences > room:
            raise ApiError(400, f"the request asks for {sequences} sequences, more than the server's {room} places")
        if self.in_flight + sequences > room:
            wait = self.retry_after()
            message = f"the server is busy: {self.in_flight} sequences run or wait; try again in {wait} seconds"
            raise ApiError(429, message, "server_busy", headers={"Retry-After": str(wait)})
        self.in_flight += sequences
        return Ticket(self, sequences)

    def retry_after(self) -> int:
        """Seconds until places are likely free: how many rounds the queue is long, times a request's mean time."""
        rounds = max(1.0, (self.in_flight - self.running) / max(1, self.running))
        return min(LONGEST_WAIT_SECONDS, max(1, math.ceil(rounds * self.mean_seconds)))


class Ticket:
    """Places that one request holds; a context manager that gives them back, once."""

    def __init__(self, admission: Admission, sequences: int) -> None:
        self._admission = admission
        self._sequences = sequences
        self._since = time.monotonic()

    def __enter__(self) -> "Ticket":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.leave()

    def leave(self) -> None:
        """Give the places back; a second call does nothing."""
        if self._sequences:
            self._admission.in_flight -= self._sequences
            self._sequences = 0
            seconds = time.monotonic() - self._since
            self._admission.mean_seconds = _MEMORY * self._admission.mean_seconds + (1 - _MEMORY) * seconds
