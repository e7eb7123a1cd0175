"""The outermost layer: gives each request a number, keeps its record, and lets no fault past.

It stands outside FastAPI, so that whatever goes wrong inside is answered in OpenAI's shape where an answer can still be
given, and told in the log without a word of the request.
"""

import json
import secrets
import time
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lit_gpt.serving.errors import ApiError
from lit_gpt.serving.metrics import Metrics
from lit_gpt.serving.records import LOGGER, describe_fault

CLIENT_CLOSED = 499
"""nginx's code for a client that left before its answer; seen in metrics and log alone."""
_METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}
_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
)


class Edge:
    """ASGI middleware.

    Args:
        app: What it guards.
        metrics: Where requests are counted.
        routes: Paths that may stand in metrics and log; any other is `other`.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, routes: frozenset[str]) -> None:
        self._app = app
        self._metrics = metrics
        self._routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, whatever happens."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # a websocket: no library for them is needed, uvicorn turns them away
            return
        record = _Record(scope, self._routes)

        async def recorded(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                headers = [*message.get("headers", []), (b"x-request-id", record.number.encode()), *_HEADERS]
                message = {**message, "headers": headers}
            elif message["type"] == "http.response.body" and not message.get("more_body", False):
                record.complete = True
            await send(message)

        try:
            await self._app(scope, receive, recorded)
        except ApiError as error:
            if record.status is None:
                await send_error(recorded, error)
        except Exception as error:
            LOGGER.error("%s failed: %s", record.number, describe_fault(error))
            if record.status is None:
                await send_error(recorded, unforeseen(scope))
        finally:
            self._finish(record)

    def _finish(self, record: "_Record") -> None:
        seconds = time.monotonic() - record.since
        if record.status is None or not record.complete:
            record.status = CLIENT_CLOSED
        self._metrics.requests.labels(record.route, str(record.status)).inc()
        self._metrics.request_seconds.labels(record.route).observe(seconds)
        notes = "".join(f" {name}={value}" for name, value in record.notes.items())
        LOGGER.info("%s %s %s %d %.3fs%s", record.number, record.method, record.route, record.status, seconds, notes)


class _Record:
    """What is kept of a request: nothing that its sender chose, but a known method and route."""

    def __init__(self, scope: Scope, routes: frozenset[str]) -> None:
        self.number = f"req-{secrets.token_hex(8)}"
        self.since = time.monotonic()
        self.method = scope["method"] if scope["method"] in _METHODS else "OTHER"
        self.route = scope["path"] if scope["path"] in routes else "other"
        self.status: int | None = None
        self.complete = False
        self.notes: dict[str, Any] = {}
        """Sizes and reasons, which the routes add: numbers and our own words alone."""
        scope["lit_gpt.record"] = self


def note(scope: Scope, **values: float | int | str) -> None:
    """Add numbers or words of our own to a request's line in the log."""
    record = scope.get("lit_gpt.record")
    if record is not None:
        record.notes.update(values)


def unforeseen(scope: Scope) -> ApiError:
    """The answer to a request that met a fault of ours; it names the line of the log that tells of it."""
    number = scope["lit_gpt.record"].number
    return ApiError(500, f"the server failed on this request; its log says more under {number}", "internal_error")


async def send_error(send: Send, error: ApiError) -> None:
    """Answer with an error from a middleware."""
    body = json.dumps(error.body()).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    headers += [(name.lower().encode(), value.encode()) for name, value in error.headers.items()]
    if error.status in (408, 413):
        headers.append((b"connection", b"close"))  # what is left of its body is not read
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
