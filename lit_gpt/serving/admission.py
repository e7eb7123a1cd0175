"""Limits of the server, and admission control, which bounds the number of running and waiting sequences.

A full server rejects requests immediately (429 with Retry-After) instead of letting them pile up. Everything here runs
in the event loop's thread, so counting needs no lock.
"""

import math
import time
from dataclasses import dataclass, fields
from types import TracebackType

from lit_gpt.checks import check_at_least
from lit_gpt.serving.errors import ApiError

MAX_RETRY_SECONDS = 60
_DECAY = 0.9
"""Decay of the running mean of request durations, which averages about the last ten requests."""


@dataclass(frozen=True)
class Limits:
    """Limits that apply to every client.

    Attributes:
        body_bytes: size of a request body in bytes; a larger one is answered with 413.
        prompt_tokens: tokens per prompt; null: as many as the model's context and cache hold.
        new_tokens: tokens per answer (`max_tokens`); null: as many as the context holds.
        prompts: prompts per completion or embedding request.
        choices: answers per prompt (`n`).
        constraint_bytes: size of a JSON schema, regular expression or grammar, which takes time to compile.
        queued: sequences that may wait for a slot in the batch; further requests get 429 and Retry-After.
        connections: open connections; requests beyond them are answered with 503.
        request_seconds: time from the first byte of a request to the last byte of its answer.
        body_seconds: time that a client has to send the body.
        keep_alive_seconds: time that an idle connection is kept open after an answer.
        stalled_seconds: time for which a client may leave a stream unread.
        drain_seconds: time that accepted requests have to finish after SIGTERM.

    Raises:
        UserError: If a bound is too low.
    """

    body_bytes: int = 2_000_000
    prompt_tokens: int | None = None
    new_tokens: int | None = None
    prompts: int = 64
    choices: int = 8
    constraint_bytes: int = 65_536
    queued: int = 128
    connections: int = 1024
    request_seconds: float = 600.0
    body_seconds: float = 30.0
    keep_alive_seconds: float = 15.0
    stalled_seconds: float = 60.0
    drain_seconds: float = 30.0

    def __post_init__(self) -> None:
        for field in fields(self):
            low = 0 if field.name in ("queued", "drain_seconds") else 0.001 if "seconds" in field.name else 1
            check_at_least(f"limits.{field.name}", getattr(self, field.name), low)


class Admission:
    """Counts sequences in flight.

    Args:
        running: Number of sequences processed at a time.
        queued: Number of further sequences that may wait.
    """

    def __init__(self, running: int, queued: int) -> None:
        self.running = running
        self.queued = queued
        self.in_flight = 0
        self.draining = False
        self.mean_seconds = 1.0
        """Mean duration of recent requests in seconds, from which Retry-After is estimated."""

    @property
    def capacity(self) -> int:
        """Sequences that may be in flight."""
        return self.running + self.queued

    def enter(self, sequences: int) -> "Ticket":
        """Reserve slots for the sequences of one request.

        Raises:
            ApiError: 429 if too few are free, 400 if there can never be enough, 503 during shutdown.
        """
        if self.draining:
            raise ApiError(503, "the server is shutting down", "shutting_down", headers={"Retry-After": "5"})
        if sequences > self.capacity:
            message = f"the request asks for {sequences} sequences, more than the server's {self.capacity} slots"
            raise ApiError(400, message)
        if self.in_flight + sequences > self.capacity:
            wait = self.retry_after()
            message = f"the server is busy: {self.in_flight} sequences run or wait; try again in {wait} seconds"
            raise ApiError(429, message, "server_busy", headers={"Retry-After": str(wait)})
        self.in_flight += sequences
        return Ticket(self, sequences)

    def retry_after(self) -> int:
        """Estimate the seconds until slots are free: the queue's length in batches times the mean request time."""
        rounds = max(1.0, (self.in_flight - self.running) / max(1, self.running))
        return min(MAX_RETRY_SECONDS, max(1, math.ceil(rounds * self.mean_seconds)))


class Ticket:
    """Slots reserved by one request; a context manager that releases them once."""

    def __init__(self, admission: Admission, sequences: int) -> None:
        self._admission = admission
        self._sequences = sequences
        self._since = time.monotonic()

    def __enter__(self) -> "Ticket":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def release(self) -> None:
        """Release the slots; a second call does nothing."""
        if self._sequences:
            self._admission.in_flight -= self._sequences
            self._sequences = 0
            seconds = time.monotonic() - self._since
            self._admission.mean_seconds = _DECAY * self._admission.mean_seconds + (1 - _DECAY) * seconds
