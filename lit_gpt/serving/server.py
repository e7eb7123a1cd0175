"""The server process: its socket, uvicorn's settings, and graceful shutdown.

uvicorn's own settings limit connections (`limits.connections`, answered with 503), idle ones
(`limits.keep_alive_seconds`) and the size of a request's head. Clients that intentionally send or read a byte at a time
must be handled by a reverse proxy that buffers requests and times out slow clients; publish the server behind one. For
nginx:

    location /llm/ {
        proxy_pass http://127.0.0.1:8000/;       # serve with --root_path /llm and --allowed_hosts llm.example.org
        proxy_set_header Host $host;
        proxy_buffering off;                     # streams arrive as they are written
        proxy_read_timeout 600s;                 # as limits.request_seconds
        client_header_timeout 15s;
        client_body_timeout 30s;
        send_timeout 60s;
        client_max_body_size 2m;                 # as limits.body_bytes
    }
"""

import asyncio
import socket
import sys
import threading
from collections.abc import Callable
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from lit_gpt.checks import check_between
from lit_gpt.errors import UserError
from lit_gpt.serving.errors import LOGGER, describe_exception, log_config
from lit_gpt.serving.service import Service

BACKLOG = 2048
HEAD_BYTES = 65_536
"""Maximum size of a request's line and headers; uvicorn answers a longer one with 400."""
LAST_SECONDS = 10
"""Time after the drain for responses that report the shutdown to arrive."""


def listen(host: str, port: int) -> socket.socket:
    """Open the socket before anything slow, so that a taken port is reported at once.

    Args:
        host: Host name or address.
        port: Port; 0 takes any free one.

    Raises:
        UserError: If there is no such port, or the socket cannot be opened.
    """
    check_between("port", port, 0, 65535)  # getaddrinfo takes a larger number modulo 65536
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        opened = socket.socket(family, kind, protocol)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind(address)
    except OSError as error:
        raise UserError(f"cannot listen on {host}:{port}: {error}; choose another --host or --port") from error
    return opened


def address_of(opened: socket.socket) -> str:
    """Return the URL of a socket."""
    host, port = opened.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class DrainingServer(uvicorn.Server):
    """A server that drains on shutdown: it accepts nothing new, finishes accepted requests, and ends the rest.

    Args:
        config: uvicorn's settings.
        service: Service behind the application.
        announce: Called once when the server listens and handles signals.
    """

    def __init__(self, config: uvicorn.Config, service: Service, announce: Callable[[], None]) -> None:
        super().__init__(config)
        self._service = service
        self._announce = announce

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, then announce it: a reader of the announcement may connect, or stop the server, at once."""
        await super().startup(sockets)
        self._announce()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Handle SIGTERM or Ctrl-C: the first begins the drain, the second ends it."""
        if self.should_exit:
            self.force_exit = True
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Drain, then shut down."""
        self._service.stop_accepting()
        loop = asyncio.get_running_loop()
        last = loop.call_later(self._service.limits.drain_seconds, self._service.end_all)
        try:
            await super().shutdown(sockets)
        finally:
            last.cancel()


def make_server(app: ASGIApp, service: Service, announce: Callable[[], None]) -> DrainingServer:
    """Configure uvicorn with our limits: no access log, no banner, no proxy headers, no websockets."""
    limits = service.limits
    config = uvicorn.Config(
        app,
        http="h11",
        h11_max_incomplete_event_size=HEAD_BYTES,
        ws="none",
        lifespan="off",
        access_log=False,
        log_config=log_config(),
        server_header=False,
        proxy_headers=False,
        backlog=BACKLOG,
        limit_concurrency=limits.connections,
        timeout_keep_alive=limits.keep_alive_seconds,  # type: ignore[arg-type]  # seconds for asyncio's call_later
        timeout_graceful_shutdown=round(limits.drain_seconds) + LAST_SECONDS,
    )
    return DrainingServer(config, service, announce)


def serve_until_stopped(app: ASGIApp, service: Service, opened: socket.socket, announce: Callable[[], None]) -> None:
    """Serve on a socket until SIGTERM or Ctrl-C.

    Args:
        app: Application from `create_app`.
        service: Service behind the application; it is closed at the end.
        opened: Socket from `listen`.
        announce: Called once when the server listens and handles signals.
    """
    raise_file_limit(2 * service.limits.connections)
    threading.excepthook = _thread_failed  # the default would print the exception's message
    try:
        make_server(app, service, announce).run(sockets=[opened])
    finally:
        service.close()
        opened.close()


def _thread_failed(failure: threading.ExceptHookArgs) -> None:
    fault = "unknown" if failure.exc_value is None else describe_exception(failure.exc_value)
    LOGGER.critical("thread %s has died: %s", failure.thread and failure.thread.name, fault)


def raise_file_limit(wanted: int) -> None:
    """Allow the process to open this many files, as far as the system permits."""
    if sys.platform == "win32":
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))
