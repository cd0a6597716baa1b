"""What code that reads a model needs of it: the protocol behind `logitlens.model.LensModel`."""

from __future__ import annotations

from typing import Any, Protocol

import torch

from logitlens.anatomy.blocks import Anatomy
from logitlens.anatomy.check import Check
from logitlens.anatomy.heads import Heads
from logitlens.anatomy.sublayers import Sublayers
from logitlens.anatomy.tail import Tail


class Readable(Protocol):
    """A model whose anatomy was found and checked; the names are those of `LensModel`.

    hf        the torch module that runs; of transformers, or wrapped to be called like one
    n_blocks  N          width   D          vocab_size   V
    context   the longest prompt, or None
    """

    @property
    def hf(self) -> Any: ...
    @property
    def tokenizer(self) -> Any: ...
    @property
    def name(self) -> str: ...
    @property
    def revision(self) -> str | None: ...
    @property
    def anatomy(self) -> Anatomy: ...
    @property
    def tail(self) -> Tail: ...
    @property
    def check(self) -> Check: ...
    @property
    def sublayers(self) -> Sublayers: ...
    @property
    def heads(self) -> Heads: ...
    @property
    def n_blocks(self) -> int: ...
    @property
    def width(self) -> int: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def context(self) -> int | None: ...
    @property
    def dtype(self) -> torch.dtype: ...
