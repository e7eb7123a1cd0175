"""One request to an address that nobody vouches for: with an end in time and in size, and to that address alone.

`urllib` alone waits anew for every byte, so that a server that sends one now and then holds it for ever; and it follows
a redirect with the key still in its headers, to whatever host the server names.
"""

import http.client
import socket
import threading
import urllib.request
from collections.abc import Mapping
from typing import Any, NamedTuple


class Reply(NamedTuple):
    """What a server sent, whatever its status; 300 to 399 are redirects that were not followed.

    Attributes:
        status: Of HTTP.
        reason: The server's words for it.
        retry_after: Its header of this name; empty: none.
        data: The body, cut at the limit.
    """

    status: int
    reason: str
    retry_after: str
    data: bytes


def post(address: str, body: bytes, headers: Mapping[str, str], timeout_seconds: float, max_bytes: int) -> Reply:
    """Send a body and read the reply.

    Args:
        address: http or https.
        body: What is sent.
        headers: Beside those that every request has.
        timeout_seconds: For all of it, from the connection's first byte to the reply's last.
        max_bytes: Of the reply's body; the rest is not read.

    Raises:
        TimeoutError: The reply was not whole in time.
        OSError: There is no connection.
        HTTPException: What came is no HTTP.
    """
    clock = _Clock(timeout_seconds)
    opener = urllib.request.build_opener(_AnyStatus, _Http(clock), _Https(clock))
    request = urllib.request.Request(address, body, dict(headers), method="POST")
    try:
        with opener.open(request, timeout=timeout_seconds) as response:
            data: bytes = response.read(max_bytes)
            reply = Reply(response.status, response.reason or "", response.headers.get("Retry-After", ""), data)
    except (OSError, http.client.HTTPException) as error:
        if clock.is_over:
            raise TimeoutError("timed out") from error
        raise
    finally:
        clock.stop()
    if clock.is_over:  # what is shut looks like the end of a body of unknown length
        raise TimeoutError("timed out")
    return reply


class _Clock:
    """Shuts the connections of one request when its time is over."""

    def __init__(self, seconds: float) -> None:
        self.is_over = False
        self._sockets: list[socket.socket] = []
        self._timer = threading.Timer(seconds, self._end)
        self._timer.daemon = True
        self._timer.start()

    def watch(self, connection: socket.socket) -> None:
        """Another connection of the request."""
        self._sockets.append(connection)
        if self.is_over:
            raise TimeoutError("timed out")

    def stop(self) -> None:
        """The request has ended."""
        self._timer.cancel()

    def _end(self) -> None:
        self.is_over = True
        for connection in self._sockets:
            try:
                socket.socket.shutdown(connection, socket.SHUT_RDWR)  # under TLS too: whoever reads sees the end
            except OSError:
                continue  # closed by now


class _AnyStatus(urllib.request.HTTPErrorProcessor):
    """Hands every status over, so that nothing is raised for one and no redirect followed."""

    def http_response(self, request: Any, response: Any) -> Any:
        """As it came."""
        return response

    https_response = http_response


class _Http(urllib.request.HTTPHandler):
    def __init__(self, clock: _Clock) -> None:
        super().__init__()
        self.clock = clock

    def http_open(self, req: urllib.request.Request) -> Any:
        clock = self.clock

        class Connection(http.client.HTTPConnection):
            def connect(self) -> None:
                super().connect()
                clock.watch(self.sock)

        return self.do_open(Connection, req)


class _Https(urllib.request.HTTPSHandler):
    def __init__(self, clock: _Clock) -> None:
        super().__init__()
        self.clock = clock

    def https_open(self, req: urllib.request.Request) -> Any:
        clock = self.clock

        class Connection(http.client.HTTPSConnection):
            def connect(self) -> None:
                super().connect()
                clock.watch(self.sock)

        return self.do_open(Connection, req)
