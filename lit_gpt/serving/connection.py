"""Sockets: uvicorn's HTTP protocol with a bound on their number, and on the time that a request's head may take."""

import asyncio
from collections.abc import Callable
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from lit_gpt.serving.limits import Limits

TURNED_AWAY = 64
"""Connections beyond the limit that still get their 503; any more are closed without a word."""
SMALL_PIECES = 1024
SMALL_BYTES = 32
"""A body may come in so many pieces that are smaller than this on average: each takes the parser as long as a large
one, so that a megabyte in chunks of one byte would hold up everybody for seconds."""


def timed_protocol(limits: Limits) -> type[asyncio.Protocol]:
    """The HTTP protocol of uvicorn with these limits (a type, because uvicorn makes one for each connection)."""

    class TimedProtocol(H11Protocol):
        """Closes a connection that has no request in work for `header_seconds`, however slowly its bytes drip."""

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._head_timer: asyncio.TimerHandle | None = None
            self._unsent_timer: asyncio.TimerHandle | None = None
            self._next_event = self.conn.next_event
            self.conn.next_event = self._event_of_size  # type: ignore[method-assign]
            self._pieces = self._piece_bytes = 0
            self._unsent = 0
            if len(self.connections) > limits.connections + TURNED_AWAY:
                transport.abort()
            else:
                self._await_head()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self._await_head()

        def connection_lost(self, exc: Exception | None) -> None:
            for timer in (self._head_timer, self._unsent_timer):
                if timer is not None:
                    timer.cancel()
            super().connection_lost(exc)

        def _event_of_size(self) -> Any:
            """The parser's next event, unless the body comes in crumbs: then the connection goes."""
            event = self._next_event()
            if isinstance(event, h11.Request):
                self._pieces = self._piece_bytes = 0
            elif isinstance(event, h11.Data):
                self._pieces, self._piece_bytes = self._pieces + 1, self._piece_bytes + len(event.data)
                if self._pieces > SMALL_PIECES and self._piece_bytes < SMALL_BYTES * self._pieces:
                    self.transport.abort()
                    return h11.NEED_DATA
            return event

        def _await_head(self) -> None:
            if self._head_timer is not None:
                self._head_timer.cancel()
            expire: Callable[[], None] = self._head_is_late
            self._head_timer = self.loop.call_later(limits.header_seconds, expire)

        def _head_is_late(self) -> None:
            if self.cycle is None or self.cycle.response_complete:
                self.transport.close()
                self._watch_unsent()

        def pause_writing(self) -> None:
            super().pause_writing()
            self._watch_unsent()

        def _watch_unsent(self) -> None:
            """What a client does not take holds its connection, a closed one too, only as long as some of it goes."""
            if self._unsent_timer is None:
                self._unsent = self.transport.get_write_buffer_size()
                # Twice: a stream that stalls ends by itself, and says so in the log.
                self._unsent_timer = self.loop.call_later(2 * limits.stalled_seconds, self._unsent_is_late)

        def _unsent_is_late(self) -> None:
            self._unsent_timer = None
            unsent = self.transport.get_write_buffer_size()
            if unsent and unsent == self._unsent:
                self.transport.abort()
            elif unsent:
                self._watch_unsent()

    return TimedProtocol
