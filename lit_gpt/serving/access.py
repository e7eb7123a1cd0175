"""Who may ask: the host name that was meant, and the key.

A page in somebody's browser can reach a server on loopback by a name of its own that it points there (DNS rebinding);
so a server without keys answers only to the names it is known by. Keys are compared by their hashes in constant time,
all of them each time.
"""

import hashlib
import hmac
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from starlette.types import ASGIApp, Receive, Scope, Send

from lit_gpt.errors import UserError
from lit_gpt.serving.edge import note, send_error
from lit_gpt.serving.errors import ApiError
from lit_gpt.serving.metrics import Metrics

LOOPBACK = ("localhost", "127.0.0.1", "::1")
OPEN_PATHS = frozenset({"/", "/health", "/ready", "/favicon.ico"})
"""Nobody needs a key for these: they tell nothing of the model or its users."""
SHORTEST_KEY = 16
KEYS_VARIABLE = "LIT_GPT_API_KEYS"
_HOST = re.compile(r"(\[[0-9a-fA-F:.]+\]|[^:\[\]]+)(?::\d+)?")


class Keys:
    """The keys that open the API.

    Args:
        keys: None at all lets everyone in.

    Raises:
        UserError: A key that is short enough to be guessed, or that no header can carry.
    """

    def __init__(self, keys: Iterable[str] = ()) -> None:
        self._digests = []
        for number, key in enumerate(keys, start=1):
            if len(key) < SHORTEST_KEY or not key.isascii() or not key.isprintable() or " " in key:
                raise UserError(
                    f"API key {number} has {len(key)} characters; give at least {SHORTEST_KEY} printable ASCII "
                    'ones without spaces, for example from python -c "import secrets; print(secrets.token_urlsafe())"'
                )
            self._digests.append(hashlib.sha256(key.encode()).digest())

    def __len__(self) -> int:
        return len(self._digests)

    def admit(self, given: str | None) -> bool:
        """Whether a key is one of ours; takes the same time for any key."""
        if not self._digests:
            return True
        digest = hashlib.sha256((given or "").encode("utf-8", "replace")).digest()
        known = False
        for own in self._digests:
            known |= hmac.compare_digest(digest, own)
        return known


def read_keys(file: str | None) -> list[str]:
    """The keys of a file, one a line, or else of the variable LIT_GPT_API_KEYS, separated by commas.

    Raises:
        UserError: The file cannot be read, or holds none.
    """
    if file is None:
        return [key.strip() for key in os.environ.get(KEYS_VARIABLE, "").split(",") if key.strip()]
    try:
        keys = [line.strip() for line in Path(file).expanduser().read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the API keys in {file} cannot be read: {type(error).__name__}") from error
    keys = [key for key in keys if key and not key.startswith("#")]
    if not keys:
        raise UserError(f"{file} holds no API key; write one on a line of its own")
    return keys


def allowed_names(host: str, allowed_hosts: Sequence[str] | None, num_keys: int) -> frozenset[str] | None:
    """The names that requests may reach a server by.

    Args:
        host: That it listens on.
        allowed_hosts: That were asked for.
        num_keys: Of the API.

    Returns:
        None for any.

    Raises:
        UserError: Everyone could reach the server, and nobody would need a key.
    """
    if host not in LOOPBACK and num_keys == 0:
        raise UserError(
            f"--host {host} lets other machines in, and no API key is set; give --api_keys_file (or {KEYS_VARIABLE}), "
            "or keep to --host 127.0.0.1"
        )
    if allowed_hosts is not None:
        return frozenset(name.lower().strip("[]") for name in allowed_hosts)
    return frozenset(LOOPBACK) if host in LOOPBACK else None


class AccessControl:
    """ASGI middleware.

    Args:
        app: What it guards.
        keys: That open it.
        hosts: Names that may stand in the Host header; None: any.
        metrics: Where refusals are counted.
    """

    def __init__(self, app: ASGIApp, keys: Keys, hosts: frozenset[str] | None, metrics: Metrics) -> None:
        self._app = app
        self._keys = keys
        self._hosts = hosts
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
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
        if self._keys.admit(key.strip() if scheme.lower() == "bearer" else None):
            return None
        message = "the API key is missing or wrong; send it as `Authorization: Bearer <key>`"
        return ApiError(401, message, "invalid_api_key", headers={"WWW-Authenticate": "Bearer"})


def host_name(header: str) -> str:
    """The name in a Host header, without its port and brackets, in lower case; empty if it is none."""
    found = _HOST.fullmatch(header.strip())
    return found[1].strip("[]").lower() if found else ""
