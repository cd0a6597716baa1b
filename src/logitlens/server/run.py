"""Listen: a socket, uvicorn, and an end on Ctrl-C."""

from __future__ import annotations

import errno
import ipaddress
import secrets
import socket
from collections.abc import Callable, Iterable, Sequence

from logitlens.errors import MissingExtra
from logitlens.server.desk import Desk, Loader
from logitlens.server.guard import Guard, literal, names
from logitlens.server.history import History
from logitlens.server.order import Limits

GRACE_SECONDS = 2


def bind(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes any free one. Raises OSError in one line."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
        sock.listen()
    except (OSError, UnicodeError) as error:  # UnicodeError: no name can be like this
        sock.close()
        why, advice = str(error), "give an address of this machine"
        if isinstance(error, OSError):
            why = error.strerror or why
            if error.errno in (errno.EADDRINUSE, errno.EACCES):
                advice = "choose another --port, 0 for any free one"
        raise OSError(f"cannot listen on {literal(host)}:{port} ({why}): {advice}") from error
    return sock


def serve(
    models: Sequence[str],
    load: Loader,
    *,
    lenses: Sequence[str] = ("logit", "tuned", "jacobian"),
    host: str = "127.0.0.1",
    port: int = 8765,
    allow_hosts: Iterable[str] = (),
    limits: Limits | None = None,
    ready: Callable[[str, bool], None] = lambda url, local: print(url),
    changed: Callable[[History], object] = lambda history: None,
    token: str | None = None,
) -> bool:
    """Serve until interrupted.

    load    makes a LensModel of a name
    ready   is called once with the URL, and whether only this machine can reach it
    changed is called whenever the readings have changed

    At the end, a prompt that is being read ends before the model's next block. Returns False if it
    has not ended within GRACE_SECONDS: its thread is in native code.

    Raises MissingExtra without starlette and uvicorn, OSError if the address cannot be bound.
    """
    try:
        from logitlens.server.app import create
        from logitlens.server.connection import listener
    except ImportError as error:
        raise MissingExtra("starlette and uvicorn", "serve", "the local page") from error

    token = token or secrets.token_urlsafe(16)
    with bind(host, port) as sock:
        port = sock.getsockname()[1]
        address = ipaddress.ip_address(sock.getsockname()[0].partition("%")[0])
        known, anywhere = names(host, port, address, allow_hosts)
        shown = "127.0.0.1" if anywhere else literal(host)
        desk = Desk(models, load, limits=limits, preload=True, changed=changed)
        app = Guard(create(desk, lenses), token=token, hosts=known, any_address=anywhere)
        try:
            listener(
                app,
                ready=lambda: ready(f"http://{shown}:{port}/{token}/", address.is_loopback),
                stopping=desk.stop,  # ends the streams of those who wait, so that none is cut off
                grace=GRACE_SECONDS,
            ).run(sockets=[sock])
        except KeyboardInterrupt:
            pass  # uvicorn has ended in order and raises the signal again
        finally:
            ended = desk.stop(GRACE_SECONDS)
    return ended
