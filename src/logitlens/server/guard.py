"""Who may ask: a random token in the path, the right Host and Origin, requests of a sane size.

A page on the internet can make a browser send requests to 127.0.0.1, and with a name that resolves
there (DNS rebinding) it can even read the answers. So every path begins with a token that is only in
the printed address, the Host must be one the server is bound to, and an Origin, where a browser sends
one, must be the server's own.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import os
import socket
import sys
import traceback
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]
Address = ipaddress.IPv4Address | ipaddress.IPv6Address

MAX_BODY = 256 * 1024
HEADERS = {
    # no inline script and no inline style: styles are set through the CSSOM
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",
}


def complain(line: str, error: BaseException | None = None) -> None:
    """Say on stderr, in one line, what went wrong; with its traceback under LOGITLENS_DEBUG=1."""
    print(" ".join(f"logitlens serve: {line}".split())[:1000], file=sys.stderr, flush=True)
    if error is not None and os.environ.get("LOGITLENS_DEBUG", "0") not in ("", "0"):
        traceback.print_exception(error)


class Guard:
    """ASGI middleware: refuses in words, adds the security headers to every answer, contains errors."""

    def __init__(self, app: App, *, token: str, hosts: Iterable[str], any_address: bool = False):
        self.app = app
        self.token = token
        self.hosts = {host.lower() for host in hosts}
        self.any_address = any_address  # bound to 0.0.0.0: any literal address is this machine

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return  # no WebSockets here, and nothing to start or to end

        async def guarded_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                known = {key.lower() for key, _ in message["headers"]}
                added = ((k.encode(), v.encode()) for k, v in HEADERS.items())
                message["headers"] = [
                    *message["headers"],
                    *((k, v) for k, v in added if k not in known),
                ]
            await send(message)

        refusal = self._refuse(scope)
        if refusal:
            await _answer(guarded_send, *refusal)
            return
        prefix = f"/{self.token}"
        if scope["path"] == prefix:  # without its slash, relative addresses would lose the token
            place = [(b"location", prefix.encode() + b"/"), (b"content-length", b"0")]
            await guarded_send({"type": "http.response.start", "status": 307, "headers": place})
            await guarded_send({"type": "http.response.body", "body": b""})
            return
        body = _Body(receive)
        inner = dict(scope, path=scope["path"][len(prefix) :])
        try:
            await self.app(inner, body.receive, guarded_send)
        except asyncio.CancelledError:
            pass  # the server ends, and had its time to answer
        except Exception as error:
            if not body.gone:  # else nobody is waiting for the answer
                what = f"{type(error).__name__}: {error}"
                complain(f"unexpected, at {scope['method']} {inner['path']}: {what}", error)

    def _refuse(self, scope: Message) -> tuple[int, str] | None:
        """(status, words) for a request that may not pass."""
        headers = {k.decode("latin-1").lower(): v.decode("latin-1") for k, v in scope["headers"]}
        host = headers.get("host", "")
        if not self._known(host):
            return 403, f"this server does not answer to the name {host[:100]!r}"
        origin = headers.get("origin")
        if origin is not None and origin.lower() != f"{scope['scheme']}://{host}".lower():
            return 403, "requests from other sites are not answered"
        if headers.get("sec-fetch-site", "none") not in ("none", "same-origin") and not (
            # a link that opens the page in a tab, as the file does that the browser is started with
            scope["path"] == f"/{self.token}/"
            and headers.get("sec-fetch-mode") == "navigate"
            and headers.get("sec-fetch-dest") == "document"
        ):
            return 403, "requests from other sites are not answered"
        first = scope["path"].removeprefix("/").partition("/")[0]
        whole = scope["path"].startswith("/")  # not `*` or `host:port`, as of OPTIONS and CONNECT
        if not (whole and hmac.compare_digest(first.encode(), self.token.encode())):
            return 403, "open the address that `logitlens serve` printed: it ends in a secret word"
        length = headers.get("content-length", "0")
        if not (length.isascii() and length.isdigit()) or int(length[:20]) > MAX_BODY:
            return 413, f"the request is larger than {MAX_BODY // 1024} KiB"
        return None

    def _known(self, host: str) -> bool:
        if host.lower() in self.hosts:
            return True
        name = host.rsplit(":", 1)[0].strip("[]") if not host.endswith("]") else host.strip("[]")
        if not self.any_address:
            return False
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return name.lower() in self.hosts
        return True


class TooLarge(Exception):
    """The body has more bytes than its header said or than are allowed."""


class _Body:
    """The request's body, counted: one that is sent in pieces has the same limit."""

    def __init__(self, receive: Receive):
        self._receive = receive
        self._seen = 0
        self.gone = False

    async def receive(self) -> Message:
        message = await self._receive()
        self.gone = self.gone or message["type"] == "http.disconnect"
        self._seen += len(message.get("body", b""))
        if self._seen > MAX_BODY:
            raise TooLarge
        return message


async def _answer(send: Send, status: int, words: str) -> None:
    body = (words + "\n").encode()
    headers = [
        (b"content-type", b"text/plain; charset=utf-8"),
        (b"content-length", b"%d" % len(body)),
        *([(b"connection", b"close")] if status == 403 else []),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def names(
    host: str, port: int, address: Address, extra: Iterable[str] = ()
) -> tuple[list[str], bool]:
    """The Host values to answer to, and whether any literal address is one of them.

    host      as asked for, which may be a name
    address   what it was bound to
    """
    everywhere = address.is_unspecified
    plain = ["127.0.0.1", "localhost", "[::1]"] if everywhere or address.is_loopback else []
    own = socket.gethostname() if everywhere else literal(host)
    plain = list(dict.fromkeys([*plain, own, *extra]))
    return [*(f"{name}:{port}" for name in plain), *plain], everywhere


def literal(host: str) -> str:
    """A host as it is written in an address."""
    return f"[{host}]" if ":" in host else host
