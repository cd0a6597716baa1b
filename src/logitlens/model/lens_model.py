"""`LensModel`: a loaded causal LM with its anatomy found and checked, and its tokenizer."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, Unpack

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from transformers import GenerationConfig

from logitlens.anatomy.blocks import Anatomy
from logitlens.anatomy.check import Check
from logitlens.anatomy.forward import as_found, turn
from logitlens.anatomy.heads import Heads, find_heads
from logitlens.anatomy.probe import probe_ids
from logitlens.anatomy.snapshot import Snapshot
from logitlens.anatomy.sublayers import Sublayers, find_sublayers
from logitlens.anatomy.tail import Tail, look_at
from logitlens.anatomy.tensor_parallel import with_shards
from logitlens.attribution import Attribution
from logitlens.errors import PromptError, UnsupportedModel
from logitlens.lenses import Lens, resolve
from logitlens.model import (
    attribute,
    batches,
    capture,
    chunks,
    generate,
    patching,
    sampling,
    score,
    together,
)
from logitlens.model.assemble import ReadingBuilder
from logitlens.model.capture import Progress, Residuals
from logitlens.model.edits import direction, prepare
from logitlens.model.prompt import Prompt, ids_of, words_of
from logitlens.model.request import Edits, ReadOptions, Request, depths_for, request_of
from logitlens.model.score import Answer
from logitlens.model.stream import Each, columns
from logitlens.model.tokens import Vocabulary
from logitlens.model.track import Track, tracks_of
from logitlens.model.vectors import read_vectors, weights
from logitlens.patch_grid import PatchGrid
from logitlens.reading import Reading
from logitlens.scores import Scores
from logitlens.select import Selection, renamed
from logitlens.vector_table import VectorTable


class LensModel:
    """A model that can be read. Made by `logitlens.load`; holds the user's model as it was.

    hf        the transformers model             tokenizer        its tokenizer, or None
    anatomy   where the blocks are               tail             last block's output → logits
    check     the comparison made at load        name, revision   where the model came from
    tokens    text → ids, ids → pieces of text

    Several threads may read one model: each waits for its turn.
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
        self.name = name
        self.revision = revision
        self.tokens = Vocabulary(tokenizer)
        self._found(anatomy, tail, check)

    def _found(self, anatomy: Anatomy, tail: Tail, check: Check) -> None:
        """Take what was found; what was measured before no longer counts."""
        self.anatomy, self.check = anatomy, check
        self.tail = with_shards(tail, self.hf)
        self._snapshot = Snapshot(anatomy, self.tail)
        self._sublayers: Sublayers | None = None
        self._heads: Heads | None = None
        self._chunk_verdicts: dict[tuple[int, int], str | None] = {}  # see `chunks.why_not`
        self._rereadings: dict[Any, dict[str, Any]] = {}  # see `generate.written`
        for name in ("_pads_change_nothing", "_unembedding_fingerprints", "_lens_verdicts"):
            vars(self).pop(name, None)

    def _look_again(self) -> None:
        """Find anatomy and tail again where the model has changed since they were found.

        Raises UnsupportedModel where it cannot be read as it is now.
        """
        with turn(self.hf):
            change = self._snapshot.change()
            if change is None:
                return
            try:
                self._found(*look_at(self.hf, self.tokenizer))
            except UnsupportedModel as error:
                raise UnsupportedModel(
                    f"{self.name} has changed since it was loaded ({change}): {error}"
                ) from error

    # -- facts --------------------------------------------------------------------------------

    @property
    def n_blocks(self) -> int:
        """N: the number of blocks; layers are `embed` and 0 … N − 1."""
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
        """Of the first weights that are floats."""
        return next(p.dtype for p in self.hf.parameters() if p.is_floating_point())

    @property
    def context(self) -> int | None:
        """The longest prompt that the configuration allows, in tokens; None: it names no limit."""
        config = self.hf.config.get_text_config(decoder=True)
        for name in ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length"):
            limit = getattr(config, name, None)
            if isinstance(limit, int) and 0 < limit < 10**9:
                return limit
        return None

    @property
    def sublayers(self) -> Sublayers:
        """What attention and MLP add to the stream, found on first use. Raises UnsupportedModel."""
        if self._sublayers is None:
            ids_T = probe_ids(self.hf, self.tokenizer)[0]
            self._sublayers = find_sublayers(self.hf, self.anatomy, ids_T)
        return self._sublayers

    @property
    def heads(self) -> Heads:
        """The attention heads of every block, found on first use. Raises UnsupportedModel."""
        if self._heads is None:
            ids_T = probe_ids(self.hf, self.tokenizer)[0]
            self._heads = find_heads(self.hf, self.anatomy, self.sublayers, ids_T)
        return self._heads

    def __repr__(self) -> str:
        return (
            f"LensModel({self.name!r}: {type(self.hf).__name__}, {self.n_blocks} blocks at "
            f"{self.anatomy.blocks_path}, width {self.width}, vocabulary {self.vocab_size}; "
            f"{self.check.line()})"
        )

    @cached_property
    def _pads_change_nothing(self) -> bool:
        """Whether a prompt reads the same beside a longer one; measured once."""
        return capture.pads_change_nothing(self)

    # -- reading ------------------------------------------------------------------------------

    @renamed(depths="layers")
    def read(
        self,
        prompt: Prompt,
        *,
        top: int = 10,
        candidates: int = 5,
        track: Track = (),
        lens: str | Lens = "logit",
        layers: Selection = None,
        positions: Selection = None,
        truncate: bool = False,
        stream: str = "resid",
        chunk: int | None = None,
        edits: Edits = (),
        progress: Progress | None = None,
    ) -> Reading:
        """Read one prompt at every layer → one `Reading`.

            reading = model.read("The Eiffel Tower is in the city of", track=[" Paris", " Rome"])
            print(reading)                                # the top token of every layer
            reading.track_logprobs[reading.row(5), -1]    # of both, after block 5, at the last position

        prompt      text, token ids (list, array, tensor, what a tokenizer returned), or chat messages
        top         K, how many of the likeliest tokens to keep in each cell
        candidates  C, how many of the final row's top tokens to follow exactly through every layer
        track       tokens (exact text or ids) whose log-probability and rank are kept in every cell;
                    sets of tokens by name, {"France": [" Paris", " Lyon"]}: the log of their summed
                    probability, and the best rank among them
        lens        "logit", "tuned[:PATH]", "jacobian[:PATH]", or a lens object
        layers      which layers, by number (5: the output of block 5; -1: the last), slice ("0:12:2")
                    or name ("embed"); the last row, which is the model's own, is always kept
        positions   which token positions ("-8:", numbers, a mask); the model still sees the whole
                    prompt
        truncate    read the last positions that fit where the prompt is longer than the context
        stream      "resid": the residual stream after each block; "mid": between attention and MLP;
                    "attn", "mlp", "head": what a sublayer, or each of its attention heads, adds to
                    the stream, read as if it were one
        chunk       process long prompts N positions at a time through the KV cache, to bound memory
        edits       changes made to the stream while the model runs, see `logitlens.edit`; the last
                    row is checked against the edited model's own logits
        progress    called with ("blocks", done, of) as the model's blocks return, and with
                    ("positions", done, of) as positions are read out; an exception it raises ends
                    the reading and reaches the caller

        Raises PromptError, LensMismatch, LensNotAvailable, and UnsupportedModel where the last row
        is not the model's own output, or the model computes something else in chunks.
        """
        self._look_again()
        ids, dropped = self._ids(prompt, truncate)
        request = request_of(
            self, len(ids), top=top, candidates=candidates, track=track, lens=lens, layers=layers,
            positions=positions, stream=stream, edits=edits,
        )  # fmt: skip
        with as_found(self.hf):
            stops = [len(ids)] if chunk is None else chunks.stops_of(self, len(ids), chunk)
            captured = chunks.capture_chunks(
                self, ids, stops, depths=request.depths, stream=stream, progress=progress,
                check=request.positions[-1], edits=request.edits,
            )  # fmt: skip
            return self._reading(prompt, ids, dropped, request, captured, progress)

    @renamed(depths="layers")
    def read_batch(
        self,
        prompts: Iterable[Prompt] | Mapping[str, Any],
        *,
        track: Track | Sequence[Track] = (),
        truncate: bool = False,
        token_budget: int = 4096,
        **options: Unpack[ReadOptions],
    ) -> list[Reading]:
        """Read several prompts → one `Reading` each, in order; padded and batched inside.

            readings = model.read_batch(["Paris is in", "Rome is in"], track=[[" France"], [" Italy"]])

        prompts        text or ids each, or what a tokenizer returned for a batch: its padding, on
                       either side, is removed by its attention mask
        track          tokens to follow in every prompt, or one list for each prompt
        token_budget   tokens of one forward pass, padding included, of prompts of similar length

        Each reading equals the reading of its prompt alone, within float error. Other arguments and
        errors are those of `read`.
        """
        if isinstance(prompts, str):
            raise PromptError("expected several prompts, got one text: use read, or give a list")
        self._look_again()
        given = batches.unpadded(prompts) if isinstance(prompts, Mapping) else list(prompts)
        cut = [self._ids(prompt, truncate) for prompt in given]
        options["lens"] = resolve(options.get("lens", "logit"), self)
        options["edits"] = prepare(self, options.get("edits"))  # whose prompts run once
        requests = [
            request_of(self, len(ids), track=tokens, **options)
            for (ids, _), tokens in zip(cut, tracks_of(track, len(given)))
        ]
        found = together.read(self, cut, requests, token_budget, [words_of(each) for each in given])
        return [found[i] for i in range(len(given))]

    def score(
        self,
        prompt: Prompt,
        answers: str | Sequence[Answer],
        *,
        lens: str | Lens = "logit",
        layers: Selection = None,
        truncate: bool = False,
        token_budget: int = 4096,
        edits: Edits = (),
    ) -> Scores:
        """How likely whole answers are after a prompt, at every layer → `Scores`.

            scores = model.score("The Eiffel Tower is in the city of", [" Paris", " New York"])
            print(scores)

        answers   texts or lists of token ids, of one or several tokens each. A token's probability is
                  that given the prompt and the answer's tokens before it (teacher forcing)
        edits     as for `read`; of an answer's positions only those are edited that would be generated
        truncate  drop the prompt's first tokens where it does not fit with the longest answer

        Other arguments are those of `read`. Raises PromptError for an empty answer and for one that
        does not fit into the context with its prompt, and what `read` raises.
        """
        self._look_again()
        ids, dropped = self._ids(prompt, truncate)
        several = [answers] if isinstance(answers, str) else list(answers)
        if not several:
            raise PromptError("there are no answers to score: give some, like [' Paris']")
        whole = self.tokens.encode(prompt) if dropped and isinstance(prompt, str) else ids
        found = [score.answer_ids(self, prompt, whole, answer) for answer in several]
        ids, _ = self._ids(prompt, truncate, room=max(map(len, found)) - 1)
        return score.score(
            self, prompt, ids, several, found, lens=resolve(lens, self),
            depths=depths_for(self, layers), token_budget=token_budget, edits=prepare(self, edits),
        )  # fmt: skip

    @renamed(depths="layers")
    def capture(
        self,
        prompt: Prompt,
        *,
        layers: Selection = None,
        truncate: bool = False,
        stream: str = "resid",
        edits: Edits = (),
        progress: Progress | None = None,
    ) -> Residuals:
        """The first half of `read`: the raw residual stream at each layer, (T, D) each.

        layers     which to keep, as in `read`; the last one always is
        truncate   drop the prompt's first tokens where it does not fit into the context
        stream     "resid", after each layer; "mid", between attention and MLP; or what every "attn",
                   "mlp" or "head" adds
        edits      as for `read`
        progress   called with ("blocks", done, N) as blocks return

        Raises PromptError, and UnsupportedModel where the model cannot be read as it is now.
        """
        self._look_again()
        ids, dropped = self._ids(prompt, truncate)
        depths = depths_for(self, layers, stream)
        (residuals,) = capture.capture(
            self, [ids], depths=depths, stream=stream, progress=progress,
            edits=prepare(self, edits),
        )  # fmt: skip
        residuals.prompt = words_of(prompt)
        residuals.position_offset = dropped
        return residuals

    def readout(
        self,
        residuals: Residuals,
        *,
        top: int = 10,
        candidates: int = 5,
        track: Track = (),
        lens: str | Lens = "logit",
        positions: Selection = None,
        progress: Progress | None = None,
    ) -> Reading:
        """The second half of `read`: what `capture` gave → Reading.

        Arguments are those of `read`. A position that `capture` kept no logits of runs once more for
        the check. Raises PromptError and LensMismatch; UnsupportedModel where the last row is not the
        model's own.
        """
        self._look_again()
        ids = residuals.ids.tolist()
        request = request_of(
            self, len(ids), top=top, candidates=candidates, track=track, lens=lens, positions=positions,
            stream=residuals.stream,
        )  # fmt: skip
        dropped = residuals.position_offset
        shown = request.positions[-1]
        with as_found(self.hf):
            if shown not in residuals.final_positions:  # a position that is shown is checked
                (again,) = capture.capture(
                    self, [ids], depths=[self.n_blocks], check=[shown], edits=residuals.edits
                )
                residuals = replace(
                    residuals, final_logits=again.final_logits, final_positions=[shown]
                )
            return self._reading(
                residuals.prompt, ids, dropped, request, [(0, residuals)], progress
            )

    # -- writing ------------------------------------------------------------------------------

    def generate(
        self,
        prompt: Prompt,
        *,
        max_new_tokens: int | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        top_k: int | None = None,
        seed: int | None = None,
        stop: str | Sequence[str] = (),
        generation_config: GenerationConfig | None = None,
        each: Each | None = None,
        track: Track = (),
        truncate: bool = False,
        progress: Progress | None = None,
        **options: Unpack[ReadOptions],
    ) -> Reading:
        """Let the model write after a prompt, and read every pass as it comes → one `Reading`.

            reading = model.generate("The capital of France is", max_new_tokens=8)
            reading.meta["generation"]["text"]            # what it wrote
            reading.settled()[~reading.generated][-1]     # where its first token was settled

        max_new_tokens      how many tokens at most (40, or what still fits the context)
        temperature         0: the likeliest token; above: drawn, as from `top_p`, `top_k` and `seed`
        stop                texts that end it when they are written
        generation_config   settings of transformers; the arguments above come first. What neither
                            names is the model's own default, as in `hf.generate`
        each                called with a Reading of one position as soon as its token is chosen,
                            `next_ids[0]`. StopIteration ends the generation; anything else that it
                            raises reaches the caller
        positions           which of the prompt's; those that are written are always kept

        The decoding is transformers' `generate`, with its cache: the tokens are those of
        `hf.generate` with the same settings and `torch.manual_seed(seed)`. The prompt's T positions
        and every token but the last have a column; what a column led to is its `next_ids`, and
        `generated` says which tokens the model wrote. Every column that led to a token is compared
        with the logits of the very pass that it was chosen from.

        `meta["generation"]`: `ids`, `text`, `stopped` ("eos", "stop", "max_new_tokens", …), `seed`,
        `settings`, and of each token `logprobs`, the model's own, beside `sampled_logprobs`, of the
        distribution it was drawn from (0 where the likeliest was taken); `reread`: whether, and how
        nearly, one pass over the same tokens gives the same, which a model with a cache of its own
        may not.

        Other arguments and errors are those of `read`. What ends a generation early (also Ctrl-C) has
        the attribute `reading`: everything until then, or None. Raises PromptError for beams and
        assistants, UnsupportedModel for logits that are not numbers.
        """
        self._look_again()
        settings = sampling.settings_of(
            self, generation_config, max_new_tokens=max_new_tokens, temperature=temperature,
            top_p=top_p, top_k=top_k, stop=stop,
        )  # fmt: skip
        ids, dropped = self._ids(prompt, truncate, room=settings.max_new_tokens or 1)
        settings = sampling.with_length(settings, len(ids), self.context)
        return generate.written(
            self, ids, request_of(self, len(ids), track=track, **options), settings, each=each,
            seed=sampling.seed_of(seed), progress=progress, prompt=words_of(prompt), dropped=dropped,
        )  # fmt: skip

    def stream(self, prompt: Prompt, **options: Any) -> Generator[Reading, None, Reading]:
        """`generate` as an iterator: one-position Readings as the tokens are chosen.

            for column in model.stream("Once upon a time", max_new_tokens=20):
                print(column.piece(column.next_ids[0]), end="", flush=True)

        Options are those of `generate`, but for `each`. The generator returns the whole Reading
        (`reading = yield from model.stream(…)`); leaving the loop ends the generation.
        """
        return columns(lambda each: self.generate(prompt, each=each, **options))

    # -- which part did it ----------------------------------------------------------------------

    def attribute(
        self,
        prompt: Prompt,
        token: int | str | None = None,
        *,
        versus: int | str | None = None,
        position: Selection = -1,
        by: str = "sublayer",
        truncate: bool = False,
        edits: Edits = (),
    ) -> Attribution:
        """What every component added to one logit, or to the difference of two → `Attribution`.

            found = model.attribute("The Eiffel Tower is in the city of", " Paris", versus=" Rome")

        token, versus   each by its exact text or id; token=None: what the model says there
        by              "sublayer": embeddings and what every attention and MLP added; "layer": what
                        every block did; "head": as sublayer, attention head by head; "token": each
                        head by the position it read, which needs eager attention; "expert": as
                        sublayer, a mixture expert by expert, times the router's weight

        With the final norm's statistics held at this row's own values the logit before a softcap is
        a sum; the parts sum to the model's own logit, which is checked. Raises PromptError, and
        UnsupportedModel where the logit is no such sum, or not the model's own.
        """
        self._look_again()
        ids, _ = self._ids(prompt, truncate)
        text = prompt if isinstance(prompt, str) else None
        return attribute.attribute(
            self, ids, token, versus=versus, position=position, by=by, prompt=text,
            edits=prepare(self, edits),
        )  # fmt: skip

    def patch_grid(
        self,
        clean: Prompt,
        corrupted: Prompt,
        token: int | str,
        versus: int | str | None = None,
        *,
        stream: str = "resid",
        layers: Selection = None,
        positions: Selection = None,
        position: Selection = -1,
        progress: Progress | None = None,
    ) -> PatchGrid:
        """How much of the clean prompt's answer each cell brings back in the corrupted one.

            grid = model.patch_grid(clean, corrupted, " Paris", versus=" Rome")
            grid.restored                     # (L, T): 0 as corrupted, 1 as clean

        token, versus   the answer, and what its logit is compared with (None: nothing)
        stream          what is patched: "resid", after each layer; what an "attn", "mlp" or "head" adds
        position        where the answer is read

        Both prompts must have the same number of tokens. For every layer and position the corrupted
        prompt runs with that cell taken from the clean run, as `edit.patch` does; many at once, and only
        what is above the cell. The unpatched run beside them is checked against the corrupted prompt's
        own logits.
        Raises PromptError, UnsupportedModel.
        """
        self._look_again()
        ids = [self._ids(prompt, False)[0] for prompt in (clean, corrupted)]
        texts = [prompt if isinstance(prompt, str) else None for prompt in (clean, corrupted)]
        return patching.patch_grid(
            self, ids[0], ids[1], token, versus, stream=stream, layers=layers, positions=positions,
            position=position, progress=progress, prompts=texts,
        )  # fmt: skip

    def read_vectors(
        self,
        vectors: ArrayLike | Tensor,
        *,
        layer: int | str | None = None,
        lens: str | Lens = "logit",
        norm: bool = True,
        top: int = 10,
        both_signs: bool = True,
    ) -> VectorTable:
        """Any directions (N, D) read as rows of the stream → the tokens each raises most.

            model.read_vectors(model.weights("mlp_out", block=5), layer=5, top=5)

        layer        where the vectors belong; needed by a fitted lens only
        norm         through the final norm, with each vector's own statistics, and with its bias, which is
                     in every row; False: the head alone
        both_signs   read the opposite of each vector, too

        Vectors are read a few at a time: an array on the disk (numpy.memmap) stays there. The logits
        of a direction have no scale of their own. Raises PromptError, LensMismatch.
        """
        self._look_again()
        return read_vectors(
            self, vectors, layer=layer, lens=lens, norm=norm, top=top, both_signs=both_signs
        )

    def weights(self, name: str, block: int | None = None) -> Tensor:
        """Rows of weights that are directions of the stream (N, D), as the model holds them.

        "embed", "unembed": one for each token; "attn_out", "mlp_out" of a block: one for each number
        that its output map receives (a neuron of the MLP), before any norm after it. Raises
        PromptError, and UnsupportedModel where no one map writes it (experts).
        """
        self._look_again()
        return weights(self, name, block)

    def direction(
        self,
        token: int | str,
        versus: int | str | None = None,
        *,
        layer: int | str,
        lens: str | Lens = "logit",
    ) -> NDArray[np.float32]:
        """The direction of a token at a layer (D,), of length 1: for `edit.add` and the others.

        The token's row of the unembedding (minus that of `versus`), taken back through the final
        norm's gain and the lens; a step along it raises the token's logit most, up to the norm's own
        statistics. Raises PromptError, LensMismatch, UnsupportedModel.
        """
        self._look_again()
        return direction(self, token, versus, layer=layer, lens=lens)

    # -- helpers ------------------------------------------------------------------------------

    def _reading(
        self,
        prompt: Prompt | None,
        ids: Sequence[int],
        dropped: int,
        request: Request,
        captured: Iterable[tuple[int, Residuals]],
        progress: Progress | None = None,
    ) -> Reading:
        builder = ReadingBuilder(self, ids, request, progress)
        for start, residuals in captured:
            builder.add(start, residuals)
        return builder.reading(prompt=words_of(prompt), dropped=dropped)

    def _ids(self, prompt: Prompt, truncate: bool, room: int = 0) -> tuple[list[int], int]:
        """Ids and how many were dropped; `room`: positions to leave behind them in the context."""
        context = self.context
        if truncate and context is not None:
            context = max(1, context - room)
        return ids_of(prompt, self.tokens, self.vocab_size, context=context, truncate=truncate)
