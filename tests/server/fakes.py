"""A model without weights, for the desk and the routes, and a server in a thread of the test's process."""

from __future__ import annotations

import contextlib
import ipaddress
import threading
from collections.abc import Iterator

from logitlens.errors import LensNotAvailable, PromptError, UnsupportedModel
from logitlens.server.desk import Desk
from tests.view import page_synthetic as synthetic


class FakeModel:
    """Reads words block by block; some prompts make it fail, and "wait" stops before block 3."""

    n_blocks, context = 4, 64
    gate, reached = threading.Event(), threading.Event()

    class tokens:
        @staticmethod
        def encode(text):
            if not text.split():
                raise PromptError(f"the prompt {text!r} has no tokens: give some text")
            return list(range(len(text.split())))

    def read(self, prompt, *, top, track, lens, progress):
        for block in range(1, self.n_blocks + 1):
            progress("blocks", block, self.n_blocks)
            if block == 2:
                self._fail(prompt)
        if lens != "logit":
            raise LensNotAvailable(f"no {lens} lens found for fake")
        tokens = len(prompt.split())
        for position in range(1, tokens + 1):
            progress("positions", position, tokens)
        return synthetic.plausible(L=5, K=top, M=len(track), prompt=prompt, model="fake")

    def _fail(self, prompt):
        if prompt == "crash":
            raise RuntimeError("CUDA error: device-side assert\n triggered")
        if prompt == "memory":
            raise MemoryError
        if prompt == "forward":
            raise UnsupportedModel(
                "Fake raises RuntimeError on 1 × 1 tokens: odd"
            ) from RuntimeError()
        if prompt == "cuda memory":
            words = "Fake raises OutOfMemoryError on 1 × 2 tokens: CUDA out of memory"
            raise UnsupportedModel(words) from RuntimeError("CUDA out of memory")
        if prompt == "exit":
            raise SystemExit(3)
        if prompt == "wait":
            self.reached.set()
            assert self.gate.wait(20)


TOKEN = "w0rd-xyz"


@contextlib.contextmanager
def serving(desk: Desk, *hosts: str) -> Iterator[int]:
    """The port at which a desk is served, as `logitlens serve` does."""
    from logitlens.server.app import create
    from logitlens.server.connection import listener
    from logitlens.server.guard import Guard, names
    from logitlens.server.run import bind

    with bind("127.0.0.1", 0) as sock:
        port = sock.getsockname()[1]
        known, _ = names("127.0.0.1", port, ipaddress.ip_address("127.0.0.1"), hosts)
        listens = threading.Event()
        app = Guard(create(desk, ["logit"]), token=TOKEN, hosts=known)
        server = listener(app, ready=listens.set, stopping=desk.stop, grace=1)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]})
        thread.start()
        assert listens.wait(20)
        try:
            yield port
        finally:
            server.should_exit = True
            thread.join(20)
            assert not thread.is_alive()
