"""What one request, and all of them together, may ask of the server."""

import math
from dataclasses import dataclass, fields

from lit_gpt.errors import UserError


@dataclass(frozen=True)
class Limits:
    """Bounds that hold for every client.

    Attributes:
        body_bytes: Of a request's body; more is answered with 413 before it is read.
        prompt_tokens: Of one prompt; None: what the model's context and cache hold.
        new_tokens: That one answer may have (`max_tokens`); None: what the context holds.
        prompts: In one completion or embedding request.
        choices: Answers to one prompt (`n`).
        constraint_bytes: Of a JSON schema, expression or grammar: reading a large one takes the engine's time.
        queued: Sequences that wait for a place in the batch; one more is answered with 429 and Retry-After.
        connections: Open sockets.
        request_seconds: From the first byte of a request to the last of its answer.
        body_seconds: For a client to send its body.
        header_seconds: For a client to send a request's head, on a new or kept connection.
        stalled_seconds: That a client may leave a stream unread.
        drain_seconds: After SIGTERM, for what has been accepted to end.

    Raises:
        UserError: A bound below 1.
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
    header_seconds: float = 15.0
    stalled_seconds: float = 60.0
    drain_seconds: float = 30.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            low = 0 if field.name in ("queued", "drain_seconds") else 0.001 if "seconds" in field.name else 1
            if value is not None and not (math.isfinite(value) and value >= low):
                raise UserError(f"limits.{field.name} is {value}, it must be a finite number of at least {low}")
