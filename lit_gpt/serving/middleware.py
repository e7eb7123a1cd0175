"""Middleware around the routes: request log, access control, and limits on the body.

From outermost to innermost:

- `RequestLog` gives each request an id, counts and logs it, adds the security headers, strips the proxy's prefix, and
  turns an unexpected exception into a 500 that quotes nothing.
- `AccessControl` checks the Host header and the API key. A web page can reach a server on loopback through a host
 name that it points there (DNS rebinding), so a server without keys answers only to its known names. Keys are compared
  by their hashes in constant time.
- `BodyLimit` bounds a body's size and transfer time, and rejects what is not a JSON object before any route runs.
"""

import asyncio
import hashlib
import hmac
import os
import re
import secrets
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pydantic_core import from_json
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lit_gpt.errors import UserError
from lit_gpt.serving.admission import Limits
from lit_gpt.serving.errors import LOGGER, ApiError, describe_exception
from lit_gpt.serving.metrics import Metrics

CLIENT_CLOSED = 499
"""nginx's status code for a client that disconnected before its answer; used only in metrics and log."""
LOOPBACK = ("localhost", "127.0.0.1", "::1")
OPEN_PATHS = frozenset({"/", "/health", "/ready", "/favicon.ico"})
"""Paths that need no key because they reveal nothing about the model or its users."""
MIN_KEY_CHARACTERS = 16
KEYS_VARIABLE = "LIT_GPT_API_KEYS"
_HOST = re.compile(r"(\[[0-9a-fA-F:.]+\]|[^:\[\]]+)(?::\d+)?")
_METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}
_SECURITY_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
)


class RequestLog:
    """The outermost ASGI middleware: one log line and one count per request.

    It is outside FastAPI, so that any failure inside is answered in OpenAI's format, if an answer is still possible,
    and logged without any content of the request.

    Args:
        app: The wrapped application.
        metrics: Metrics in which requests are counted.
        routes: Paths that may appear in metrics and log; all others appear as `other`.
        root_path: Prefix of a reverse proxy, such as `/llm`; a request may come with or without it.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, routes: frozenset[str], root_path: str = "") -> None:
        self._app = app
        self._metrics = metrics
        self._routes = routes
        self._root_path = root_path.rstrip("/")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, catching all exceptions."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # a websocket: uvicorn rejects these itself
            return
        if self._root_path and scope["path"].startswith(self._root_path + "/"):
            scope = {**scope, "path": scope["path"].removeprefix(self._root_path)}
        record = _Record(scope, self._routes)
        if scope["method"] == "HEAD":
            scope = {**scope, "method": "GET"}  # uvicorn only sends the head of the answer

        async def recorded(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                sent = [*message.get("headers", []), (b"x-request-id", record.id.encode()), *_SECURITY_HEADERS]
                message = {**message, "headers": sent}
            elif message["type"] == "http.response.body" and not message.get("more_body", False):
                record.complete = True
            await send(message)

        try:
            await self._app(scope, receive, recorded)
        except ApiError as error:
            if record.status is None:
                await send_error(recorded, error)
        except Exception as error:
            LOGGER.error("%s failed: %s", record.id, describe_exception(error))
            if record.status is None:
                await send_error(recorded, internal_error(scope))
        finally:
            self._finish(record)

    def _finish(self, record: "_Record") -> None:
        seconds = time.monotonic() - record.since
        if record.status is None or not record.complete:
            record.status = CLIENT_CLOSED
        self._metrics.requests.labels(record.route, str(record.status)).inc()
        self._metrics.request_seconds.labels(record.route).observe(seconds)
        notes = "".join(f" {name}={value}" for name, value in record.notes.items())
        LOGGER.info("%s %s %s %d %.3fs%s", record.id, record.method, record.route, record.status, seconds, notes)


class _Record:
    """Log record of a request, without anything chosen by its sender except a known method and route."""

    def __init__(self, scope: Scope, routes: frozenset[str]) -> None:
        self.id = f"req-{secrets.token_hex(8)}"
        self.since = time.monotonic()
        self.method = scope["method"] if scope["method"] in _METHODS else "OTHER"
        self.route = scope["path"] if scope["path"] in routes else "other"
        self.status: int | None = None
        self.complete = False
        self.notes: dict[str, Any] = {}
        """Sizes and reasons added by the routes: only numbers and our own words."""
        scope["lit_gpt.record"] = self


def note(scope: Scope, **values: float | int | str) -> None:
    """Add numbers or our own words to a request's log line."""
    record = scope.get("lit_gpt.record")
    if record is not None:
        record.notes.update(values)


def internal_error(scope: Scope) -> ApiError:
    """Return the response for a request that hit a bug; it refers to the log line that describes the bug."""
    number = scope["lit_gpt.record"].id
    return ApiError(500, f"the server failed on this request; see its log under {number}", "internal_error")


async def send_error(send: Send, error: ApiError) -> None:
    """Send an error response from a middleware."""
    body = error.encoded()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    headers += [(name.lower().encode(), value.encode()) for name, value in error.headers.items()]
    if error.status in (408, 413):
        headers.append((b"connection", b"close"))  # the rest of its body is not read
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


class Keys:
    """The API keys.

    Args:
        keys: The keys; if there are none, the API is open to everyone.

    Raises:
        UserError: If a key is short enough to be guessed, or cannot be sent in a header.
    """

    def __init__(self, keys: Iterable[str] = ()) -> None:
        self._digests = []
        for number, key in enumerate(keys, start=1):
            if len(key) < MIN_KEY_CHARACTERS or not key.isascii() or not key.isprintable() or " " in key:
                raise UserError(
                    f"API key {number} has {len(key)} characters; use at least {MIN_KEY_CHARACTERS} printable ASCII "
                    'ones without spaces, for example from python -c "import secrets; print(secrets.token_urlsafe())"'
                )
            self._digests.append(hashlib.sha256(key.encode()).digest())

    def __len__(self) -> int:
        return len(self._digests)

    def admit(self, given: str | None) -> bool:
        """Return whether a key is valid; takes the same time for any key."""
        if not self._digests:
            return True
        digest = hashlib.sha256((given or "").encode("utf-8", "replace")).digest()
        known = False
        for own in self._digests:  # compare with all of them, so that the time does not reveal which one matched
            known |= hmac.compare_digest(digest, own)
        return known


def read_keys(file: str | None) -> list[str]:
    """Return the keys of a file, one per line, or else of the variable LIT_GPT_API_KEYS, separated by commas.

    Raises:
        UserError: If the file cannot be read, or contains no key.
    """
    if file is None:
        return [key.strip() for key in os.environ.get(KEYS_VARIABLE, "").split(",") if key.strip()]
    try:
        keys = [line.strip() for line in Path(file).expanduser().read_text(encoding="utf-8").split("\n")]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the API keys in {file} cannot be read: {type(error).__name__}") from error
    keys = [key for key in keys if key and not key.startswith("#")]
    if not keys:
        raise UserError(f"{file} contains no API key; write one per line")
    return keys


def allowed_names(host: str, allowed_hosts: Sequence[str] | None, num_keys: int) -> frozenset[str] | None:
    """Return the allowed names in a Host header; None for any.

    Args:
        host: Address that the server listens on.
        allowed_hosts: Names that the user allows; None: not specified.
        num_keys: Number of API keys.

    Raises:
        UserError: If other machines could reach the server without a key.
    """
    if host not in LOOPBACK and num_keys == 0:
        raise UserError(
            f"--host {host} lets other machines in, and no API key is set; give --api_keys_file (or {KEYS_VARIABLE}), "
            "or use --host 127.0.0.1"
        )
    if allowed_hosts is not None:
        return frozenset(name.lower().strip("[]") for name in allowed_hosts)
    return frozenset(LOOPBACK) if host in LOOPBACK else None


class AccessControl:
    """ASGI middleware that checks the Host header and the API key.

    Args:
        app: The wrapped application.
        keys: Accepted API keys; if there are none, no key is required.
        hosts: Allowed names in the Host header; None: any.
        metrics: Metrics in which rejections are counted.
    """

    def __init__(self, app: ASGIApp, keys: Keys, hosts: frozenset[str] | None, metrics: Metrics) -> None:
        self._app = app
        self._keys = keys
        self._hosts = hosts
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or reject it."""
        if scope["type"] == "http":
            headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
            refusal = self._refusal(scope["path"], headers)
            if refusal is not None:
                note(scope, refused=str(refusal.code))
                self._metrics.rejected.labels(refusal.code).inc()
                await send_error(send, refusal)
                return
        await self._app(scope, receive, send)

    def _refusal(self, path: str, headers: dict[bytes, str]) -> ApiError | None:
        if self._hosts is not None and host_name(headers.get(b"host", "")) not in self._hosts:
            message = (
                "the Host header names another host; reach the server by its own name, or allow it (allowed_hosts)"
            )
            return ApiError(403, message, "host_not_allowed")
        if path in OPEN_PATHS:
            return None
        scheme, _, key = headers.get(b"authorization", "").partition(" ")
        given = key.strip() if scheme.lower() == "bearer" else headers.get(b"x-api-key")  # as Anthropic's clients do
        if self._keys.admit(given):
            return None
        message = "the API key is missing or wrong; send it as `Authorization: Bearer <key>`"
        return ApiError(401, message, "invalid_api_key", headers={"WWW-Authenticate": "Bearer"})


def host_name(header: str) -> str:
    """Return the name in a Host header, without port and brackets, in lower case; empty if there is none."""
    found = _HOST.fullmatch(header.strip())
    return found[1].strip("[]").lower() if found else ""


class BodyLimit:
    """ASGI middleware that reads the whole body, with limits on its size and time.

    Args:
        app: The wrapped application, which gets the body in one piece; its next `receive` waits for a disconnect.
        limits: Limits on size and time.
        metrics: Metrics in which rejections are counted.
        json_routes: Paths that take a JSON object.
    """

    def __init__(self, app: ASGIApp, limits: Limits, metrics: Metrics, json_routes: frozenset[str]) -> None:
        self._app = app
        self._limits = limits
        self._metrics = metrics
        self._json_routes = json_routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Read a body and pass the request on, or reject it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            body = await self._read(scope, receive)
            if body is None:
                return
            if scope["method"] == "POST" and scope["path"] in self._json_routes:
                check_json(dict(scope["headers"]).get(b"content-type", b""), body)
        except ApiError as error:
            note(scope, refused=str(error.code))
            self._metrics.rejected.labels(error.code).inc()
            await send_error(send, error)
            return
        given = False

        async def whole() -> Message:
            nonlocal given
            if given:
                return await receive()
            given = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self._app(scope, whole, send)

    async def _read(self, scope: Scope, receive: Receive) -> bytes | None:
        """Return the whole body, or None if the client has disconnected."""
        limit = self._limits.body_bytes
        too_large = ApiError(413, f"the body is larger than the server's {limit} bytes", "body_too_large")
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if not length.isdigit() or len(length) > 18 or int(length) > limit:
            raise too_large
        body = bytearray()
        try:
            async with asyncio.timeout(self._limits.body_seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    body += message.get("body", b"")
                    if len(body) > limit:
                        raise too_large
                    if not message.get("more_body", False):
                        return bytes(body)
        except TimeoutError:
            text = f"the body did not arrive within {self._limits.body_seconds:g} seconds"
            raise ApiError(408, text, "body_timeout") from None


def check_json(content_type: bytes, body: bytes) -> None:
    """Reject a body that is not a JSON object.

    The content type must be JSON, because a page of another origin cannot send it without a preflight request.
    pydantic's parser limits the nesting (200 levels) and rejects lone surrogates and endless numbers, so later code
    never sees them.

    Raises:
        ApiError: 415 for the content type, 400 otherwise.
    """
    if content_type.split(b";")[0].strip().lower() != b"application/json":
        raise ApiError(415, "the body must be JSON, sent with `Content-Type: application/json`", "not_json")
    try:
        value = from_json(body)
    except ValueError as error:
        reason = str(error)  # from jiter, Pydantic's parser: it names a position and quotes nothing
        code = "nested_too_deep" if reason.startswith("recursion limit") else "invalid_json"
        raise ApiError(400, f"the body is not valid JSON: {reason}", code) from None
    if not isinstance(value, dict):
        raise ApiError(400, "the body must be a JSON object", "invalid_json")
