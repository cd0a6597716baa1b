"""Hubs on this machine: one that serves a folder, and ones that behave as networks do."""

from __future__ import annotations

import hashlib
import json
import socket
import struct
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlparse

from logitlens.hub import THREAD

COMMIT = "c" * 40


class Answers(BaseHTTPRequestHandler):
    """A hub; `server.does(path)` says what happens to a request instead, if anything.

    "reset" cuts the connection, "hang" never answers, "busy" asks to come again, "portal" is a page
    of somebody else.
    """

    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self.do_GET(head=True)

    def do_GET(self, head: bool = False):
        path = unquote(urlparse(self.path).path)  # a proxy is given whole addresses
        self.server.asked.append(path)
        what = self.server.does(path)
        if what == "reset":
            # A linger of zero seconds sends RST, as a broken middle box does.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
            self.close_connection = True
        elif what == "hang":
            self.server.over.wait(60)
            self.close_connection = True
        elif what == "busy":
            self.say(b"", head, {"Retry-After": "0"}, 503)
        elif what == "portal":
            self.say(b"<html>Please accept our terms</html>", head, {"Content-Type": "text/html"})
        elif path.startswith("/api/"):
            siblings = [{"rfilename": name} for name in self.server.files]
            data = {"id": "x/y", "sha": COMMIT, "siblings": siblings}
            self.say(json.dumps(data).encode(), head, {"Content-Type": "application/json"})
        elif (name := path.partition("/resolve/")[2].partition("/")[2]) in self.server.files:
            content = self.server.files[name]
            etag = hashlib.sha1(content).hexdigest()
            self.say(content, head, {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT})
        elif name:
            self.say(b"", head, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT}, 404)
        else:
            self.say(b"a hub", head, {})

    def say(self, body: bytes, head: bool, headers: dict[str, str], status: int = 200) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if not head:
            self.wfile.write(body)

    def log_message(self, *args):
        pass


class Hub(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, files: dict[str, bytes]):
        super().__init__(("127.0.0.1", 0), Answers)
        self.files, self.asked, self.over = files, [], threading.Event()
        self.does = lambda path: None

    def handle_error(self, request, client_address):
        pass

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server_port}"


@contextmanager
def serving(folder: Path | None = None):
    """A hub, up for the length of a block."""
    files = {p.name: p.read_bytes() for p in folder.iterdir()} if folder else {}
    hub = Hub(files)
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        # Threads that were given up go on asking: answer them now, or they disturb other tests.
        hub.does = lambda path: None
        hub.over.set()
        for left in [t for t in threading.enumerate() if t.name == THREAD]:
            left.join(20)
        hub.shutdown()
        hub.server_close()


def use(monkeypatch, address: str, cache: Path) -> None:
    """Make `address` the hub and `cache` its cache, for this process."""
    from huggingface_hub import constants
    from huggingface_hub.utils import close_session

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "ENDPOINT", f"http://{address}")
    template = f"http://{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    close_session()  # the next one reads the proxy variables as they are now
