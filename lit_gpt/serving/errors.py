"""Errors as OpenAI's API words them: `{"error": {"message", "type", "param", "code"}}` with a fitting status."""

import json
from collections.abc import Mapping
from typing import Any

SHOWN_CHARACTERS = 80


class ApiError(Exception):
    """An answer that is an error.

    Args:
        status: Of HTTP.
        message: For the client: the value, the bound, the remedy.
        code: OpenAI's short name of it, None where it has none.
        param: Field of the request that is at fault.
        headers: Further ones.
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
        """The JSON that the client gets."""
        return {
            "error": {"message": self.message, "type": error_type(self.status), "param": self.param, "code": self.code}
        }

    def encoded(self) -> bytes:
        """`body` as UTF-8."""
        return json.dumps(self.body()).encode()


def error_type(status: int) -> str:
    """The name that OpenAI's API gives to a class of errors."""
    if status == 401:
        return "authentication_error"
    if status == 403:
        return "permission_error"
    if status == 429:
        return "rate_limit_error"
    return "invalid_request_error" if status < 500 else "server_error"


def shown(value: object) -> str:
    """A value for a message to the one who sent it: quoted, and cut where it is long."""
    text = repr(value)
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}... ({len(text)} characters)"
