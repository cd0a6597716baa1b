"""A model without weights, for the desk and the routes."""

from __future__ import annotations

import threading

from logitlens.errors import LensNotAvailable, PromptError, UnsupportedModel
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
