"""Sockets: uvicorn's HTTP protocol with a bound on their number, and on the time that a request's head may take."""

import asyncio
from collections.abc import Callable
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from lit_gpt.serving.limits import Limits

TURNED_AWAY = 64
"""Connections beyond the limit that still get their 503; any more are closed without a word."""


def timed_protocol(limits: Limits) -> type[asyncio.Protocol]:
    """The HTTP protocol of uvicorn with these limits (a type, because uvicorn makes one for each connection)."""

    class TimedProtocol(H11Protocol):
        """Closes a connection that has no request in work for `header_seconds`, however slowly its bytes drip."""

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._head_timer: asyncio.TimerHandle | None = None
            if len(self.connections) > limits.connections + TURNED_AWAY:
                transport.abort()
            else:
                self._await_head()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self._await_head()

        def connection_lost(self, exc: Exception | None) -> None:
            if self._head_timer is not None:
                self._head_timer.cancel()
            super().connection_lost(exc)

        def _await_head(self) -> None:
            if self._head_timer is not None:
                self._head_timer.cancel()
            expire: Callable[[], None] = self._head_is_late
            self._head_timer = self.loop.call_later(limits.header_seconds, expire)

        def _head_is_late(self) -> None:
            if (self.cycle is None or self.cycle.response_complete) and not self.transport.is_closing():
                self.transport.close()

    return TimedProtocol
