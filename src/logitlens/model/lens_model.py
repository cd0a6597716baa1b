"""`LensModel`: a loaded causal LM with its anatomy found and verified, and its tokenizer."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from logitlens.anatomy import sublayers
from logitlens.anatomy.blocks import Anatomy
from logitlens.anatomy.check import Check
from logitlens.anatomy.probe import probe_ids
from logitlens.anatomy.sublayers import Sublayers
from logitlens.anatomy.tail import Tail
from logitlens.anatomy.tensor_parallel import with_shards
from logitlens.errors import PromptError
from logitlens.lenses import Lens, resolve
from logitlens.model import batches, chunks
from logitlens.model import capture as capturing
from logitlens.model.assemble import Gathering, several, wanted
from logitlens.model.capture import Progress, Residuals
from logitlens.model.prompt import Prompt, ids_of
from logitlens.model.tokens import Vocabulary
from logitlens.reading import Reading
from logitlens.select import Selection, layer_label, renamed, select_layers


class LensModel:
    """A model that can be read. Made by `logitlens.load`; holds the user's model as it was.

    hf           the transformers model      tokenizer   its tokenizer, or None
    anatomy      where the blocks are        tail        last block's output → logits
    check        the verification made at load            name, revision   where it came from
    """

    def __init__(
        self,
        hf: Any,
        *,
        tokenizer: Any | None,
        anatomy: Anatomy,
        tail: Tail,
        check: Check,
        name: str,
        revision: str | None = None,
    ):
        self.hf = hf
        self.tokenizer = tokenizer
        self.anatomy = anatomy
        self.tail = with_shards(tail, hf)
        self.check = check
        self.name = name
        self.revision = revision
        self.vocabulary = Vocabulary(tokenizer)
        self._chunk_verdicts: dict[tuple[int, int], str | None] = {}  # see `chunks.why_not`

    # -- facts --------------------------------------------------------------------------------

    @property
    def depth(self) -> int:
        """N: the number of blocks; depths run from 0 to N."""
        return len(self.anatomy.blocks)

    @property
    def width(self) -> int:
        """D: numbers in one row of the residual stream."""
        return self.anatomy.width

    @property
    def vocab_size(self) -> int:
        """V: logits the model computes, padded rows included."""
        return self.tail.head.vocab

    @property
    def dtype(self) -> torch.dtype:
        return next(p.dtype for p in self.hf.parameters() if p.is_floating_point())

    @property
    def label(self) -> str:
        """The name people see: a directory's own name rather than its path on this machine."""
        return Path(self.name).resolve().name if os.path.isdir(self.name) else self.name

    @cached_property
    def context(self) -> int | None:
        """The longest prompt the model's configuration allows, in tokens; None: no limit named."""
        config = self.hf.config.get_text_config(decoder=True)
        for name in ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length"):
            limit = getattr(config, name, None)
            if isinstance(limit, int) and 0 < limit < 10**9:
                return limit
        return None

    @cached_property
    def sublayers(self) -> Sublayers:
        """What attention and MLP add to the stream, found on first use. Raises UnsupportedModel."""
        return sublayers.find(self.hf, self.anatomy, probe_ids(self.hf, self.tokenizer)[0])

    def __repr__(self) -> str:
        return (
            f"LensModel({self.name!r}: {type(self.hf).__name__}, {self.depth} blocks at "
            f"{self.anatomy.blocks_path}, width {self.width}, vocabulary {self.vocab_size}; "
            f"{self.check.line()})"
        )

    @cached_property
    def pads_change_nothing(self) -> bool:
        """Whether a prompt reads the same beside a longer one; asked of the model, once."""
        return capturing.pads_change_nothing(self)

    # -- reading ------------------------------------------------------------------------------

    @renamed(depths="layers")
    def read(
        self,
        prompt: Prompt,
        *,
        top: int = 10,
        track: Iterable[int | str] = (),
        lens: str | Lens = "logit",
        layers: Selection = None,
        positions: Selection = None,
        truncate: bool = False,
        stream: str = "resid",
        chunk: int | None = None,
        progress: Progress | None = None,
    ) -> Reading:
        """Text or token ids (list, array, tensor) → one Reading.

        top         K, how many of the likeliest tokens to keep in each cell
        track       tokens (text or ids) whose log-probability and rank are wanted in every cell
        lens        "logit", "tuned[:PATH]", "jacobian[:PATH]", or a lens object
        layers      which layers, by number (5: the output of block 5; -1: the last), slice ("0:12:2")
                    or name ("embed"); the last row, which is the model's own, is always kept
        positions   which token positions (`"-8:"`, …); the model still sees the whole prompt
        truncate    read the last positions that fit where the prompt is longer than the context
        stream      "resid": the residual stream after each block; "mid": between attention and MLP;
                    "attn", "mlp": what a sublayer adds to the stream, read as if it were one
        chunk       for long prompts: at most so many positions run at a time, after the cached keys
                    and values of those before, so that residuals are held for a chunk only
        progress    called with ("blocks", done, of) as the model's blocks return, and with
                    ("positions", done, of) as positions are read out; what it raises ends the
                    reading and reaches the caller, and nothing stays on the model

        Raises PromptError, LensMismatch, LensNotAvailable, and UnsupportedModel where the last row
        is not the model's own output, or a cache changes what the model computes.
        """
        ids, dropped = self._ids(prompt, truncate)
        request = wanted(
            self, len(ids), top=top, track=track, lens=lens, positions=positions, stream=stream
        )
        cells = Gathering(self, ids, request, progress)
        stops = [len(ids)] if chunk is None else chunks.stops_of(self, len(ids), chunk)
        parts = chunks.capture_chunks(
            self, ids, stops, depths=self._depths(layers, stream), stream=stream, progress=progress
        )
        for start, residuals in parts:
            cells.add(start, residuals)
        return cells.reading(prompt=prompt if isinstance(prompt, str) else None, dropped=dropped)

    @renamed(depths="layers")
    def read_batch(
        self,
        prompts: Iterable[Prompt] | Mapping[str, Any],
        *,
        top: int = 10,
        track: Iterable[int | str] = (),
        lens: str | Lens = "logit",
        layers: Selection = None,
        positions: Selection = None,
        truncate: bool = False,
        token_budget: int = 4096,
        stream: str = "resid",
    ) -> list[Reading]:
        """Several prompts → one Reading each, in order; padded and batched inside.

        prompts   text or ids each, or what a tokenizer returned for a batch: its pads, on either
                  side, are taken off by its attention mask
        Batches are formed from prompts of similar length, at most `token_budget` padded tokens in
        one forward pass. Each reading equals the reading of its prompt alone, within float error.
        """
        if isinstance(prompts, str):
            raise PromptError("expected several prompts, got one text: use read, or give a list")
        texts = batches.unpadded(prompts) if isinstance(prompts, Mapping) else list(prompts)
        cut = [self._ids(prompt, truncate) for prompt in texts]
        ids, dropped = [i for i, _ in cut], [n for _, n in cut]
        track = several(track)
        rows = self._depths(layers, stream)
        found = resolve(lens, self)
        out: dict[int, Reading] = {}
        alone_beyond = batches.rescales_beyond(self.hf.config)
        lengths = [len(i) for i in ids]
        if len(set(lengths)) > 1 and not self.pads_change_nothing:
            alone_beyond = 0  # only prompts of one length share a batch
        for batch in batches.batches(lengths, token_budget, alone_beyond=alone_beyond):
            for index, residuals in zip(
                batch,
                capturing.capture(self, [ids[i] for i in batch], depths=rows, stream=stream),
            ):
                text = texts[index]
                residuals.prompt = text if isinstance(text, str) else None
                residuals.position_offset = dropped[index]
                out[index] = self.readout(
                    residuals, top=top, track=track, lens=found, positions=positions
                )
        return [out[i] for i in range(len(texts))]

    @renamed(depths="layers")
    def capture(
        self,
        prompt: Prompt,
        *,
        layers: Selection = None,
        truncate: bool = False,
        stream: str = "resid",
        progress: Progress | None = None,
    ) -> Residuals:
        """The first half of `read`: the raw residual stream at each depth, T × D each."""
        ids, dropped = self._ids(prompt, truncate)
        rows = self._depths(layers, stream)
        (residuals,) = capturing.capture(self, [ids], depths=rows, stream=stream, progress=progress)
        residuals.prompt = prompt if isinstance(prompt, str) else None
        residuals.position_offset = dropped
        return residuals

    def readout(
        self,
        residuals: Residuals,
        *,
        top: int = 10,
        track: Iterable[int | str] = (),
        lens: str | Lens = "logit",
        positions: Selection = None,
        progress: Progress | None = None,
    ) -> Reading:
        """The second half of `read`: residuals → Reading."""
        request = wanted(
            self, len(residuals.ids), top=top, track=track, lens=lens, positions=positions,
            stream=residuals.stream,
        )  # fmt: skip
        cells = Gathering(self, residuals.ids.tolist(), request, progress)
        cells.add(0, residuals)
        return cells.reading(prompt=residuals.prompt, dropped=residuals.position_offset)

    # -- parts --------------------------------------------------------------------------------

    def _ids(self, prompt: Prompt, truncate: bool) -> tuple[list[int], int]:
        return ids_of(
            prompt, self.vocabulary, self.vocab_size, context=self.context, truncate=truncate
        )

    def _depths(self, layers: Selection, stream: str = "resid") -> list[int] | None:
        """Depths to keep; the last one always, because it is the check and the base of KL."""
        if layers is None:
            return None
        chosen = select_layers(layers, [layer_label(depth) for depth in range(self.depth + 1)])
        return sorted({*chosen, self.depth} if stream == "resid" else chosen)
