"""A process that serves: its socket, and its end."""

import asyncio
import socket
import sys
import threading
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from lit_gpt.errors import UserError
from lit_gpt.serving.connection import TURNED_AWAY, timed_protocol
from lit_gpt.serving.records import LOGGER, describe_fault, log_config
from lit_gpt.serving.service import Service

BACKLOG = 2048
LAST_SECONDS = 10
"""Beyond the drain, for answers that say so to arrive."""


def listen(host: str, port: int) -> socket.socket:
    """Open the socket before anything slow, so that a taken port is known at once.

    Args:
        host: Name or address.
        port: 0 takes any free one.

    Raises:
        UserError: It cannot be had.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        opened = socket.socket(family, kind, protocol)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind(address)
    except (OSError, OverflowError) as error:
        raise UserError(f"cannot listen on {host}:{port}: {error}; choose another --host or --port") from error
    return opened


def address_of(opened: socket.socket) -> str:
    """The URL of a socket."""
    host, port = opened.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class DrainingServer(uvicorn.Server):
    """Ends in order: takes nothing new, finishes what it has accepted, and after `drain_seconds` says so to the rest.

    Args:
        config: Of uvicorn.
        service: What it serves.
    """

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """SIGTERM or Ctrl-C: the first begins the drain, the second ends it."""
        if self.should_exit:
            self.force_exit = True
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Drain."""
        self._service.stop_accepting()
        loop = asyncio.get_running_loop()
        last = loop.call_later(self._service.limits.drain_seconds, self._service.end_all)
        try:
            await super().shutdown(sockets)
        finally:
            last.cancel()


def make_server(app: ASGIApp, service: Service) -> DrainingServer:
    """Configure uvicorn with our limits: no access log, no banner, no proxy headers, no websockets."""
    limits = service.limits
    config = uvicorn.Config(
        app,
        http=timed_protocol(limits),
        ws="none",
        lifespan="off",
        access_log=False,
        log_config=log_config(),
        server_header=False,
        proxy_headers=False,
        backlog=BACKLOG,
        limit_concurrency=limits.connections,
        timeout_keep_alive=max(1, round(limits.header_seconds)),
        timeout_graceful_shutdown=round(limits.drain_seconds) + LAST_SECONDS,
    )
    return DrainingServer(config, service)


def serve_until_stopped(app: ASGIApp, service: Service, opened: socket.socket) -> None:
    """Serve on a socket until SIGTERM or Ctrl-C.

    Args:
        app: From `create_app`.
        service: What it serves; it is closed at the end.
        opened: From `listen`.
    """
    raise_file_limit(2 * (service.limits.connections + TURNED_AWAY))
    threading.excepthook = _thread_failed  # of the engine's, which else would print the exception's message
    try:
        make_server(app, service).run(sockets=[opened])
    finally:
        service.close()
        opened.close()


def _thread_failed(failure: threading.ExceptHookArgs) -> None:
    fault = "unknown" if failure.exc_value is None else describe_fault(failure.exc_value)
    LOGGER.critical("thread %s has died: %s", failure.thread and failure.thread.name, fault)


def raise_file_limit(wanted: int) -> None:
    """Let the process open this many files, as far as the system allows."""
    if sys.platform == "win32":
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))
