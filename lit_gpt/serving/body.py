"""A request's body: read with a bound on its size and time, and looked over before any parser sees it.

A body is kept whole in memory (it is JSON), so it is bounded; what a parser could choke on, nesting thousands deep or
half a surrogate pair, is refused here for all routes alike.
"""

import asyncio
import json
import re

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lit_gpt.serving.edge import note, send_error
from lit_gpt.serving.errors import ApiError
from lit_gpt.serving.limits import Limits
from lit_gpt.serving.metrics import Metrics

DEEPEST = 64
"""Brackets inside brackets."""
MOST_CONTAINERS = 50_000
"""Lists and objects: two megabytes of empty ones take the parser seconds, in which nobody else is heard."""
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_STRINGS = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)  # an open one runs to the end: linear in any case
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


class BodyLimit:
    """ASGI middleware.

    Args:
        app: Gets the body in one piece; its next `receive` waits for the client to leave.
        limits: Of size and time.
        metrics: Where refusals are counted.
    """

    def __init__(self, app: ASGIApp, limits: Limits, metrics: Metrics) -> None:
        self._app = app
        self._limits = limits
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Read a body and pass the request on, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            body = await self._read(scope, receive)
            if body is None:
                return
            if scope["method"] == "POST":
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
        """The whole body; None if the client has left."""
        most = self._limits.body_bytes
        too_large = ApiError(413, f"the body is larger than the server's {most} bytes", "body_too_large")
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if not length.isdigit() or len(length) > 18 or int(length) > most:
            raise too_large
        body = bytearray()
        try:
            async with asyncio.timeout(self._limits.body_seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    body += message.get("body", b"")
                    if len(body) > most:
                        raise too_large
                    if not message.get("more_body", False):
                        return bytes(body)
        except TimeoutError:
            text = f"the body did not arrive within {self._limits.body_seconds:g} seconds"
            raise ApiError(408, text, "body_timeout") from None


def check_json(content_type: bytes, body: bytes) -> None:
    """Refuse a body that is no JSON, or of a kind that code behind it could choke on.

    The content type must be JSON: a page elsewhere cannot send that without asking first, and is refused then.

    Raises:
        ApiError: 415 for the type, 400 for the rest.
    """
    if content_type.split(b";")[0].strip().lower() != b"application/json":
        raise ApiError(415, "the body must be JSON, sent with `Content-Type: application/json`", "not_json")
    brackets = _brackets(body)
    if len(brackets) > 2 * MOST_CONTAINERS:
        raise ApiError(400, f"the body has more than {MOST_CONTAINERS} lists and objects", "too_many")
    if _depth(brackets) > DEEPEST:
        raise ApiError(400, f"the body nests more than {DEEPEST} levels deep", "nested_too_deep")
    try:
        text = body.decode()
        value = json.loads(text)
        if _SURROGATE.search(body):
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ApiError(400, "the body has half of a surrogate pair, which is no character", "invalid_json") from None
    except UnicodeDecodeError:
        raise ApiError(400, "the body is not UTF-8", "invalid_json") from None
    except ValueError as error:
        place = f" at character {error.pos}" if isinstance(error, json.JSONDecodeError) else ""
        raise ApiError(400, f"the body is not valid JSON{place}", "invalid_json") from None
    if not isinstance(value, dict):
        raise ApiError(400, "the body must be a JSON object", "invalid_json")


def _brackets(body: bytes) -> bytes:
    """All that open and close, in order, without parsing: strings are left out first."""
    return _STRINGS.sub(b"", body).translate(None, _NO_BRACKETS)


def _depth(brackets: bytes) -> int:
    """How deep they nest."""
    depth = deepest = 0
    for bracket in brackets:
        depth += 1 if bracket in b"[{" else -1
        deepest = max(deepest, depth)
    return deepest
