"""The server's log: what happened, when and how long, never what was said.

A line names a request by a number of our own, its route by the pattern it matched, and its sizes. A fault is told by
its type and the lines of code it passed, without its message, which may quote a prompt.
"""

import logging
import traceback
from types import TracebackType
from typing import Any

LOGGER = logging.getLogger("lit_gpt.serving")
_FORMAT = "%(asctime)s %(levelname)s %(message)s"


def describe_fault(error: BaseException) -> str:
    """Type and places of an exception and what caused it, without any message or value."""
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

    Other packages' records (uvicorn's, asyncio's) pass through it too: where one carries an exception, only the fixed
    text of the record is kept, not the values that were put into it.
    """

    def formatException(  # noqa: N802 (logging's name)
        self, ei: tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]
    ) -> str:
        """Type and places."""
        return describe_fault(ei[1]) if ei[1] is not None else ""

    def format(self, record: logging.LogRecord) -> str:
        """One line, and one of the fault."""
        if record.exc_info and not record.name.startswith("lit_gpt."):
            record = logging.makeLogRecord(record.__dict__ | {"msg": str(record.msg).splitlines()[0], "args": ()})
        record.exc_text = None
        return super().format(record)


def log_config(level: str = "INFO") -> dict[str, Any]:
    """For `logging.config.dictConfig`: our lines and the warnings of others on standard error, no access log.

    Args:
        level: Of our own lines.
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
