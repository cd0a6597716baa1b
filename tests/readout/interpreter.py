"""Triton's interpreter, made fast enough for tests, and the bytes that interpreted kernels move."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from triton.runtime import interpreter
from triton.runtime.interpreter import InterpreterBuilder


@contextmanager
def patched_once() -> Iterator[None]:
    """The interpreter replaces the language's functions each time that a kernel calls another one,
    which takes half of its time; here the first time only, and puts them back at the end."""
    patch, done = interpreter._patch_lang, {}

    class Nothing:
        def restore(self) -> None:
            pass

    def once(fn):
        where = id(fn.__globals__)
        if where not in done:
            done[where] = patch(fn)
        return Nothing()

    interpreter._patch_lang = once
    try:
        yield
    finally:
        interpreter._patch_lang = patch
        for scope in reversed(done.values()):
            scope.restore()


class Moved:
    """Bytes that kernels read and write: every element of every load and store that is not masked."""

    def __init__(self, patch: pytest.MonkeyPatch):
        self.read = self.written = 0
        load, store = InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store
        atomic = InterpreterBuilder.create_atomic_rmw

        def size(pointers, mask) -> int:
            return int(mask.data.sum()) * pointers.get_element_ty().primitive_bitwidth // 8

        def loaded(builder, pointers, mask, *rest):
            self.read += size(pointers, mask)
            return load(builder, pointers, mask, *rest)

        def stored(builder, pointers, value, mask, *rest):
            self.written += size(pointers, mask)
            return store(builder, pointers, value, mask, *rest)

        def added(builder, operation, pointers, value, mask, *rest):
            self.read += size(pointers, mask)
            self.written += size(pointers, mask)
            return atomic(builder, operation, pointers, value, mask, *rest)

        patch.setattr(InterpreterBuilder, "create_masked_load", loaded)
        patch.setattr(InterpreterBuilder, "create_masked_store", stored)
        patch.setattr(InterpreterBuilder, "create_atomic_rmw", added)
