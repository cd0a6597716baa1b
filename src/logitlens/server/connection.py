"""uvicorn, where a request arrives whole within seconds or its connection is closed.

uvicorn waits forever for the rest of a request, and accepts connections until the process has no
file descriptors left. Anyone who reaches the port could shut everybody out that way, without the
secret word.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from logitlens.server.guard import HEADERS, App, complain

REQUEST_SECONDS = 10  # from its first byte, or from the connection, to the end of its body
CONNECTIONS = 64  # open at a time; beyond that the oldest without a whole request is closed
ACCEPTED = 16  # in one go, before the first of them is handled

_INVALID = b"".join(
    b"%s: %s\r\n" % (name.encode(), value.encode())
    for name, value in {"content-type": "text/plain", "connection": "close", **HEADERS}.items()
)


class Connection(H11Protocol):
    """uvicorn's connection, limited in time and number."""

    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        super().connection_made(transport)
        self._since = self.loop.time()
        self._watch()
        _make_room({c for c in self.connections if isinstance(c, Connection)})

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._unwatch()

    def shutdown(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete and not self.whole:
            self.transport.abort()  # the rest of the body may never come
        else:
            super().shutdown()

    def send_400_response(self, msg: str) -> None:
        """Answer a request that is not HTTP with the headers of every other answer."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            head = b"HTTP/1.1 400 Bad Request\r\n" + _INVALID + b"\r\n"
            self.transport.write(head + msg.encode() + b"\n")
        self.transport.close()

    @property
    def whole(self) -> bool:
        """Whether the request has arrived up to the end of its body."""
        return self.conn.their_state not in (h11.IDLE, h11.SEND_BODY)

    def _watch(self) -> None:
        if self.whole:
            self._unwatch()
        elif self._late is None:
            self._late = self.loop.call_later(REQUEST_SECONDS, self.transport.abort)

    def _unwatch(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None


def _make_room(connections: set[Connection]) -> None:
    """If there are too many, close the oldest connection that has not sent a whole request."""
    there = [c for c in connections if not c.transport.is_closing()]
    if len(there) > CONNECTIONS:
        min((c for c in there if not c.whole), key=lambda c: c._since).transport.abort()


def listener(
    app: App, *, ready: Callable[[], object], stopping: Callable[[], object], grace: int
) -> uvicorn.Server:
    """A server that reports whatever goes wrong in one line.

    ready      called once it listens
    stopping   called at the signal that ends it
    grace      seconds that requests then have to finish
    """
    said: set[str] = set()

    def trouble(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Report what happens outside any request, like too many open files: each kind once."""
        line = f"{context['message']} ({context.get('exception')})"
        if line not in said and len(said) < 100:
            said.add(line)
            complain(line, context.get("exception"))

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            asyncio.get_running_loop().set_exception_handler(trouble)
            await super().startup(sockets)
            for sock in sockets or []:
                sock.listen()  # more than ACCEPTED may wait in the kernel
            ready()  # from here on Ctrl-C is heard

        def handle_exit(self, *args: Any) -> None:
            stopping()
            super().handle_exit(*args)

    return Server(
        uvicorn.Config(
            app,
            http=Connection,
            ws="none",
            backlog=ACCEPTED,
            log_level="critical",  # `complain` reports what goes wrong
            access_log=False,
            server_header=False,
            lifespan="off",
            timeout_graceful_shutdown=grace,
        )
    )
