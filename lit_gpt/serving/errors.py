"""API errors in OpenAI's format, and a log that never quotes a request.

A client gets `{"error": {"message", "type", "param", "code"}}` with a suitable status. The log contains a random id of
the request, the pattern of its route, and sizes; an exception is logged by type and code locations, without its
message, which might quote a prompt.
"""

import json
import logging
import traceback
from collections.abc import Mapping
from types import TracebackType
from typing import Any

SHOWN_CHARACTERS = 80
LOGGER = logging.getLogger("lit_gpt.serving")
_FORMAT = "%(asctime)s %(levelname)s %(message)s"


class ApiError(Exception):
    """A response that reports an error.

    Args:
        status: HTTP status code.
        message: Message for the client: the value, the bound, the remedy.
        code: OpenAI's error code; None if it has none.
        param: Name of the offending field of the request.
        headers: Additional response headers.
    """

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """Return the JSON body that the client receives."""
        return {
            "error": {"message": self.message, "type": error_type(self.status), "param": self.param, "code": self.code}
        }

    def encoded(self) -> bytes:
        """Return `body` as UTF-8."""
        return json.dumps(self.body()).encode()


def error_type(status: int) -> str:
    """Return OpenAI's error type for a status."""
    if status == 401:
        return "authentication_error"
    if status == 403:
        return "permission_error"
    if status == 429:
        return "rate_limit_error"
    return "invalid_request_error" if status < 500 else "server_error"


def shown(value: object) -> str:
    """Return a value quoted for a message to its sender, truncated if it is long."""
    text = repr(value)
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}... ({len(text)} characters)"


def describe_exception(error: BaseException) -> str:
    """Return types and code locations of an exception and its causes, without any message or value."""
    parts = []
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        frames = traceback.extract_tb(current.__traceback__)
        places = " < ".join(f"{_short(frame.filename)}:{frame.lineno} {frame.name}" for frame in reversed(frames))
        parts.append(f"{type(current).__name__} at {places or 'nowhere'}")
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)
    return ", caused by ".join(parts)


def _short(filename: str) -> str:
    return "/".join(filename.split("/")[-2:])


class PrivateFormatter(logging.Formatter):
    """Formats a record's exception without its message.

    Records of other packages (uvicorn, asyncio) are formatted by it, too: if one carries an exception, only the
    record's fixed text is logged, not the values that were formatted into it.
    """

    def formatException(  # noqa: N802 (logging's name)
        self, ei: tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]
    ) -> str:
        """Return types and code locations."""
        return describe_exception(ei[1]) if ei[1] is not None else ""

    def format(self, record: logging.LogRecord) -> str:
        """Return one line for the record, and one for its exception."""
        if record.exc_info and not record.name.startswith("lit_gpt."):
            record = logging.makeLogRecord(record.__dict__ | {"msg": str(record.msg).splitlines()[0], "args": ()})
        record.exc_text = None
        return super().format(record)


def log_config(level: str = "INFO") -> dict[str, Any]:
    """Return a config for `logging.config.dictConfig`: our messages and others' warnings on standard error.

    Args:
        level: Threshold of our messages.
    """
    quiet = {"handlers": ["errors"], "level": "WARNING", "propagate": False}
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"private": {"()": PrivateFormatter, "format": _FORMAT}},
        "handlers": {"errors": {"class": "logging.StreamHandler", "formatter": "private"}},
        "loggers": {
            LOGGER.name: {"handlers": ["errors"], "level": level, "propagate": False},
            "uvicorn.access": {"handlers": [], "level": "CRITICAL", "propagate": False},
            **dict.fromkeys(("uvicorn", "uvicorn.error", "asyncio", "sse_starlette", "fastapi"), quiet),
        },
    }
