"""The lens while a model writes: transformers' own `generate`, watched by the hooks of `capture`.

transformers prepares the run, decodes and stops; its cache is its own. Watched are the blocks, whose
rows are read out as soon as a pass has made them, or those of a few passes together where nobody
watches; the logits processors, which show the pass's own logits and the scores that a token is taken
from; and the stopping criteria, which show the token.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from transformers import GenerationConfig
from transformers.generation.logits_process import LogitsProcessorList
from transformers.generation.stopping_criteria import StoppingCriteriaList, StopStringCriteria

from logitlens.anatomy.check import distance, sums
from logitlens.anatomy.forward import accepts, as_found, input_device, refusing
from logitlens.errors import PromptError, UnsupportedModel
from logitlens.model.assemble import ReadingBuilder
from logitlens.model.capture import (
    Ended,
    Progress,
    Residuals,
    capture,
    ending,
    key_label,
    parts_of,
    reporting,
)
from logitlens.model.chunks import ROUNDING
from logitlens.model.sampling import (
    WatchedCriteria,
    WatchedProcessors,
    pad_of,
    plain,
    refuse_several,
    seeded,
)
from logitlens.model.stream import Each
from logitlens.reading import Reading

if TYPE_CHECKING:
    from logitlens.model.lens_model import LensModel
    from logitlens.model.request import Request

REREAD = 2048  # tokens that are read again in one pass, to compare
TOGETHER = 8  # passes read out together; more of them keep more logits, and are hardly faster


def written(
    model: LensModel,
    ids: Sequence[int],
    request: Request,
    settings: GenerationConfig,
    *,
    seed: int | None,
    each: Each | None,
    progress: Progress | None,
    **facts: Any,
) -> Reading:
    """Let the model write after the ids of a prompt → the Reading of all its passes.

    request   for the prompt; its last position, which leads to the first token, is read in any case
    facts     of the Reading: `prompt` and `dropped`

    What is raised on the way has the attribute `reading`: what there was until then, or None.
    """
    request = replace(request, positions=sorted({*request.positions, len(ids) - 1}))
    progress = ending(progress) if progress else None
    builder = ReadingBuilder(model, ids, request, progress, room=(settings.max_new_tokens or 1) - 1)
    run = _Run(model, builder, settings, seed=seed, each=each, facts=facts)
    try:
        try:
            run(progress)
            run.read()
        except BaseException:
            run.read()  # what was written before; also where that was interrupted
            raise
        run.reread = _reread(model, builder, run)
    except BaseException as error:
        reason = error.reason if isinstance(error, Ended) else error
        interrupted = isinstance(reason, (KeyboardInterrupt, GeneratorExit))
        said = " ".join(f"{type(reason).__name__}: {reason}".split())
        run.stopped = "interrupted" if interrupted else said
        reason.__dict__["reading"] = run.reading() if run.tokens else None
        if isinstance(error, Ended):
            raise reason from None
        raise
    return run.reading()


def _reread(model: LensModel, builder: ReadingBuilder, run: _Run) -> dict[str, Any] | None:
    """How far the last column is from what the model computes for the same tokens in one pass.

    Some models compute something else with their cache, by more than rounding; then `ok` is False.
    Measured in the first generation of each class of lengths (powers of two, up to REREAD tokens).
    """
    ids = builder.ids_T[:-1].tolist()
    settings = run.effective
    kind = (1 << (len(ids) - 1).bit_length(), settings.cache_implementation, settings.use_cache)
    known = model._rereadings if run.edits is None else {}  # an edited model is another one
    if kind not in known:
        if len(ids) > REREAD:
            return None
        with as_found(model.hf):
            (whole,) = capture(model, [ids], depths=[model.n_blocks], edits=run.edits)
        apart = distance(whole.final_logits, run.logits_1V, model.dtype)
        ok = apart.rounding <= ROUNDING * model.n_blocks**0.5
        known[kind] = {"ok": ok, "nats": apart.nats, "tokens": len(ids)}
    return known[kind]


class _Pass(NamedTuple):
    """What led to a token: the rows from position `start` on, and its log-probability in the
    distribution that it was drawn from."""

    token: int
    start: int
    part: Residuals
    drawn: float


class _Run:
    """One generation.

    passes      that are not yet read out
    tokens      ids written so far             stopped   why it ended
    logprobs    of each, in the model's own distribution
    sampled     of each, in the distribution that it was drawn from
    """

    def __init__(
        self,
        model: LensModel,
        builder: ReadingBuilder,
        settings: GenerationConfig,
        *,
        seed: int | None,
        each: Each | None,
        facts: dict[str, Any],
    ):
        self.model, self.builder, self.settings = model, builder, settings
        self.each, self.facts = each, facts
        self.seed = seed
        self.together = TOGETHER if each is None and builder.progress is None else 1
        self.passes: list[_Pass] = []
        self.tokens: list[int] = []
        self.logprobs: list[float] = []
        self.sampled: list[float] = []
        self.stopped = ""
        self.reread: dict[str, Any] | None = None
        edits = builder.request.edits
        self.edits = edits.chunk(0, builder.given) if edits is not None else None
        self.between = False  # two passes: what runs then is not edited

    def __call__(self, progress: Progress | None) -> None:
        model, hf, request = self.model, self.model.hf, self.builder.request
        anatomy, depths = model.anatomy, request.depths
        wanted = list(range(model.n_blocks + 1)) if depths is None else sorted(set(depths))
        generate = getattr(hf, "generate", None)
        if generate is None or "custom_generate" not in inspect.signature(generate).parameters:
            raise UnsupportedModel(
                f"{model.name}: {type(hf).__name__} has no generate of transformers: expected a "
                "causal language model of transformers, loaded without inputs"
            )
        ids_1T = self.builder.ids_T[None].to(input_device(hf))
        options: dict[str, Any] = {"generation_config": self.settings}
        if "attention_mask" in accepts(hf):
            options["attention_mask"] = torch.ones_like(ids_1T)
        stops = self.settings.stop_strings or []
        self.stops = [stops] if isinstance(stops, str) else list(stops)
        if self.stops and model.tokenizer is not None:
            criterion = StopStringCriteria(model.tokenizer, self.stops)
            options["stopping_criteria"] = StoppingCriteriaList([criterion])
            self.settings.stop_strings = None  # which need a tokenizer that is not handed on
        if self.settings.pad_token_id is None:  # never written: there is one sequence
            self.settings.pad_token_id = pad_of(hf)
        with ExitStack() as stack:
            stack.enter_context(refusing(hf, "while it generates"))
            stack.enter_context(as_found(hf))
            edits = self.edits
            changes = edits.writing(self._so_far) if edits is not None else None
            self.parts, self.labels = parts_of(model, anatomy, request.stream, wanted, 1, changes)
            self.kept = [stack.enter_context(context) for context, _ in self.parts]
            if progress:
                stack.enter_context(reporting(anatomy, self._of_the_prompt(progress)))
            generate(ids_1T, custom_generate=self._decode, **options)

    def _so_far(self) -> int | None:
        """How long the text is in this pass; None between passes."""
        return None if self.between else len(self.builder.ids_T)

    def _of_the_prompt(self, progress: Progress) -> Progress:
        """Blocks are reported while they read the prompt; later passes are too short."""

        def report(what: str, done: int, of: int) -> None:
            if self._so_far() == self.builder.given:
                progress(what, done, of)

        return report

    def _decode(
        self,
        hf: Any,
        input_ids: Tensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        **options: Any,
    ) -> Any:
        """What transformers calls to decode, with everything prepared: its own loop, watched."""
        refuse_several(generation_config)
        if input_ids.tolist() != [self.builder.ids_T.tolist()]:
            raise UnsupportedModel(
                f"{self.model.name}: {type(hf).__name__} changes the prompt before it generates"
            )
        self.effective = generation_config
        self.stated = plain(generation_config) | (
            {"stop_strings": self.stops} if self.stops else {}
        )
        with seeded(self._seed() if generation_config.do_sample else None, input_ids.device):
            return hf._sample(
                input_ids,
                logits_processor=WatchedProcessors(logits_processor, self.scored),
                stopping_criteria=WatchedCriteria(stopping_criteria, self.chosen),
                generation_config=generation_config,
                **options,
            )

    def _seed(self) -> int:
        """The seed; where none was given, one that torch draws, so that any run can be repeated."""
        if self.seed is None:
            drawn = torch.randint(1 << 31, (), dtype=torch.long, device="cpu")
            self.seed = int(drawn)
        return self.seed

    def scored(self, logits_1V: Tensor, scores_1V: Tensor) -> None:
        """The logits of a pass, and what became of them."""
        self.logits_1V, self.scores_1V = logits_1V, scores_1V
        total = len(self.builder.ids_T)
        if not bool(logits_1V.amax() < torch.inf):
            raise UnsupportedModel(
                f"{self.model.name}: the model's own logits at position {total - 1} are not finite "
                f"(nan or inf) after {total - self.builder.given} tokens; "
                + ("its edits may be too strong, or " if self.edits is not None else "")
                + "check the weights, or load with dtype='float32'"
            )
        if scores_1V is not logits_1V and not -torch.inf < float(scores_1V.amax()) < torch.inf:
            raise PromptError(
                f"the settings leave no token to choose after {total - self.builder.given} tokens: "
                "expected a temperature, penalties and biases that keep scores finite"
            )

    def chosen(self, token: int, reason: str) -> bool:
        """The token that a pass has led to, and why it is the last, if it is. Returns whether it is."""
        if not self.stopped:  # on some devices transformers runs one pass more
            self.between = True
            try:
                self._chosen(token)
            finally:
                self.between = False
            self.stopped = self.stopped or reason
        return bool(self.stopped)

    def _chosen(self, token: int) -> None:
        total = len(self.builder.ids_T)
        start = 0 if total == self.builder.given else total - 1
        part = self._part(start, total)
        z_1V = self.scores_1V
        drawn = float(z_1V[0, token].double() - sums(z_1V)) if self.effective.do_sample else 0.0
        self.passes.append(_Pass(token, start, part, drawn))
        self.builder.follow(token)
        if len(self.passes) == self.together:
            self.read()
        if self.each is None:
            return
        try:
            ending(self.each)(self.reading(last=1))
        except Ended as ended:
            if not isinstance(ended.reason, StopIteration):
                raise
            self.stopped = "each"
        self._forget()  # `each` may have read something with the same model

    def read(self) -> None:
        """Read out the passes since the last time, and check each of their columns."""
        try:
            self._read(self.passes)
        except UnsupportedModel:  # because of which of them?
            passes, self.passes = self.passes, []
            for one in passes:
                self._read([one])
        self.passes = []

    def _read(self, passes: Sequence[_Pass]) -> None:
        if not passes:
            return
        self.builder.table.filled = self.builder.checked  # what was interrupted begins again
        part, tokens = _joined([one.part for one in passes]), [one.token for one in passes]
        self.builder.add(passes[0].start, part)
        self.builder.check()
        self._forget()  # a replayed tail runs the blocks
        own_P = part.final_logits[range(len(tokens)), tokens].double().cpu() - part.final_sums
        self.tokens += tokens
        self.logprobs += own_P.tolist()
        self.sampled += [one.drawn for one in passes]

    def _forget(self) -> None:
        """Rows that are no pass of this generation."""
        for kept in self.kept:
            kept.clear()

    def _part(self, start: int, total: int) -> Residuals:
        """The residuals of the positions from `start` on, from the passes since the last token."""
        hf, anatomy, new = self.model.hf, self.model.anatomy, total - start
        h = []
        for kept, (_, keys) in zip(self.kept, self.parts):
            for key in keys:
                found = kept.pop(key, [])
                rows = sum(h_1tD.shape[1] for h_1tD in found)
                # A model without a cache runs the whole text again.
                if rows not in (new, total) or any(
                    x.shape[::2] != (1, anatomy.width) for x in found
                ):
                    raise UnsupportedModel(
                        f"{type(hf).__name__}: layer {key_label(key, 'resid')} made {rows} rows for "
                        f"{new} of {total} tokens while it generates; expected one a token"
                    )
                h_TD = (found[0] if len(found) == 1 else torch.cat(found, 1))[0]
                h.append(h_TD if rows == new else h_TD[rows - new :].clone())
            kept.clear()
        return Residuals(
            ids=self.builder.ids_T[start:total],
            h=h,
            layers=self.labels,
            final_logits=self.logits_1V,
            final_positions=[new - 1],
            stream=self.builder.request.stream,
            edits=self.edits,
        )

    def reading(self, last: int | None = None) -> Reading:
        """Everything so far; or its `last` positions, with what was written there."""
        count = len(self.tokens) if last is None else last
        sampling = bool(self.effective.do_sample)
        generation = {
            "prompt_tokens": self.builder.given,
            "ids": self.tokens[-count:],
            "text": self.model.tokens.text(self.tokens[-count:]),
            "logprobs": self.logprobs[-count:],
            "sampled_logprobs": self.sampled[-count:],
            "stopped": self.stopped or None,
            "reread": self.reread,
            "seed": self.seed if sampling else None,
            "settings": dict(self.stated),
        }
        return self.builder.reading(**self.facts, last=last, generation=generation)


def _joined(parts: Sequence[Residuals]) -> Residuals:
    """The positions of several passes, one after another; of each the last is checked."""
    first, *others = parts
    if not others:
        return first
    ends = torch.tensor([len(part.ids) for part in parts], dtype=torch.long, device="cpu").cumsum(0)
    return replace(
        first,
        ids=torch.cat([part.ids for part in parts]),
        h=[torch.cat(rows) for rows in zip(*(part.h for part in parts))],
        final_logits=torch.cat([part.final_logits for part in parts]),
        final_positions=(ends - 1).tolist(),
    )
