"""Listen: a socket, uvicorn, and an end on Ctrl-C."""

from __future__ import annotations

import secrets
import socket
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from logitlens.errors import MissingExtra
from logitlens.server.desk import Desk, Loader
from logitlens.server.order import Limits

GRACE_SECONDS = 2


def bind(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes any free one. Raises OSError in one line."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
        sock.listen(128)
    except OSError as error:
        sock.close()
        raise OSError(
            f"cannot listen on {host}:{port} ({error.strerror}): choose another --port, 0 for any free one"
        ) from error
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
    ready: Callable[[str], None] = print,
    token: str | None = None,
) -> bool:
    """Serve until interrupted. `load` makes a LensModel of a name; `ready` is told the address.

    A prompt that is being read ends before the model's next block. Returns False where it has not
    ended within GRACE_SECONDS: its thread is in the midst of native code.

    Raises MissingExtra without starlette and uvicorn, OSError where the port is taken.
    """
    try:
        import uvicorn

        from logitlens.server.app import create
    except ImportError as error:
        raise MissingExtra("starlette and uvicorn", "serve", "the local page") from error
    from logitlens.server.guard import Guard, names

    token = token or secrets.token_urlsafe(16)
    with bind(host, port) as sock:
        port = sock.getsockname()[1]
        known, anywhere = names(host, port, allow_hosts)
        desk = Desk(models, load, limits=limits)
        app: Any = Guard(create(desk, lenses), token=token, hosts=known, any_address=anywhere)
        config = uvicorn.Config(
            app,
            log_level="error",
            access_log=False,
            server_header=False,
            lifespan="off",
            timeout_graceful_shutdown=GRACE_SECONDS,
        )
        shown = "127.0.0.1" if anywhere else f"[{host}]" if ":" in host else host

        class Server(uvicorn.Server):
            async def startup(self, *args: Any, **options: Any) -> None:
                await super().startup(*args, **options)
                ready(f"http://{shown}:{port}/{token}/")  # from here on Ctrl-C is heard

            def handle_exit(self, *args: Any) -> None:
                desk.stop()  # those who wait hear it, so that no connection has to be cut
                super().handle_exit(*args)

        try:
            Server(config).run(sockets=[sock])
        except KeyboardInterrupt:
            pass  # uvicorn has ended in order and raises the signal again
        finally:
            ended = desk.stop(GRACE_SECONDS)
    return ended
