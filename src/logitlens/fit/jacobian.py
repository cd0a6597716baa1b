"""Averaging a Jacobian lens: J_d = E[∂h_final / ∂h_d].

The estimator of anthropics/jacobian-lens (Anthropic 2026): for each output dimension a one-hot
cotangent stands at every valid target position at once; the gradient at a source position is then
the sum over all later targets, and the mean over valid source positions makes one row of J. Valid
are all positions but the first 16 (attention sinks) and the last. Prompts count equally.

Here many prompts share one forward pass and one backward pass serves several dimensions of all of
them. The stochastic estimator replaces the D unit cotangents by r random orthonormal ones q and
takes (D / r) Σ q (Jᵀq)ᵀ, whose mean is J: D / r times cheaper a prompt, noisier a prompt.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from logitlens.anatomy.forward import input_device
from logitlens.anatomy.readable import Readable
from logitlens.errors import FitError, InputError, PromptError
from logitlens.fit import data_parallel, gradients
from logitlens.fit.checkpoint import Folder, identity, interruptible
from logitlens.fit.corpus import Corpus
from logitlens.fit.settings import check_counts, check_dtype, check_numbers, plain
from logitlens.lenses import Header, JacobianLens
from logitlens.model.batches import batches

FILE = "jacobian.safetensors"


@dataclass(frozen=True)
class Settings:
    """How a Jacobian lens is averaged.

    prompts          documents used, at most           length   tokens of each, at most
    skip_first       leading positions left out (and always the last one)
    cotangents       None: every dimension, exact; r: that many random orthonormal directions
    depths           which of 0 … N−1; None: all
    tokens_per_pass  positions one backward pass carries: prompts × copies × tokens; None: 1024 on a
                     CPU, whose caches they then fit, 16384 elsewhere
    checkpoint_seconds   time between two checkpoints; 0: after every batch
    dtype            in which the lens is stored
    """

    prompts: int = 1000
    length: int = 128
    skip_first: int = 16
    cotangents: int | None = None
    depths: tuple[int, ...] | None = None
    tokens_per_pass: int | None = None
    seed: int = 0
    checkpoint_seconds: float = 60.0
    dtype: str = "float16"

    def check(self, model: Readable) -> None:
        """Raise PromptError for values that cannot be meant."""
        check_counts(self, "prompts", "length", "tokens_per_pass")
        check_numbers(self, least=["skip_first", "seed", "checkpoint_seconds"])
        if self.length < self.skip_first + 2:
            raise PromptError(
                f"length={self.length}: with the first {self.skip_first} positions and the last left "
                f"out, at least {self.skip_first + 2} tokens are needed"
            )
        if self.cotangents is not None and not 1 <= self.cotangents <= model.width:
            raise PromptError(
                f"cotangents={self.cotangents}: expected 1 to the width {model.width}"
            )
        for depth in self.depths or ():
            if not 0 <= depth < model.n_blocks:
                raise PromptError(
                    f"depth {depth}: expected 0 to {model.n_blocks - 1}, before the last"
                )
        check_dtype(self)

    def per_pass(self, model: Readable, device: str | None = None) -> int:
        """Positions of one backward pass, by the kind of device; None: the one this model is on."""
        if self.tokens_per_pass is not None:
            return self.tokens_per_pass
        return 1024 if (device or input_device(model.hf).type) == "cpu" else 16384


@dataclass
class Progress:
    """What a fit tells while it runs.

    error   depth → standard error of the mean so far, relative to its norm, estimated from the
            spread between batches; empty before the second batch
    """

    prompts: int
    total: int
    tokens: int
    seconds: float
    error: dict[int, float]


def estimate(model: Readable, prompts: Sequence[Tensor], settings: Settings) -> dict[int, Tensor]:
    """Depth → Σ over prompts of their J, (D, D) float32 on the CPU. One batch, one forward pass.

    prompts   token ids, each (T,) with T ≥ skip_first + 2

    Raises FitError where a Jacobian is not finite.
    """
    depths = list(range(model.n_blocks)) if settings.depths is None else sorted(settings.depths)
    D, anatomy = model.width, model.anatomy
    longest = max(len(ids) for ids in prompts)
    copies = max(1, min(D, settings.per_pass(model) // (len(prompts) * longest)))
    with gradients.differentiable(model):
        kept = gradients.run(model, prompts, depths, copies)
        target, sources = kept[model.n_blocks], [kept[d] for d in depths]
        B = len(prompts) * copies
        target_BTD = anatomy.rows(target, B)
        valid_BT = _valid(prompts, longest, settings.skip_first).repeat_interleave(copies, 0)
        valid_BT = valid_BT.to(target.device)
        weight_BT = valid_BT / valid_BT.sum(1, keepdim=True)
        sums = {d: torch.zeros(D, D, dtype=torch.float32, device="cpu") for d in depths}
        directions = _directions(D, settings, prompts)
        passes = directions.split(copies)
        for number, q_RD in enumerate(passes):
            R = len(q_RD)
            cotangent_BTD = torch.zeros_like(target_BTD)
            by_copy = cotangent_BTD.unflatten(0, (-1, copies))[:, :R]
            by_copy += valid_BT.unflatten(0, (-1, copies))[:, :R, :, None] * q_RD[:, None].to(
                target.device, target.dtype
            )
            found = torch.autograd.grad(
                target,
                sources,
                anatomy.stream(cotangent_BTD),
                retain_graph=number < len(passes) - 1,
                allow_unused=True,
            )
            for depth, gradient in zip(depths, found):
                if gradient is None:
                    continue
                g_PRTD = anatomy.rows(gradient, B).unflatten(0, (-1, copies))[:, :R]
                w_PRT = weight_BT.to(gradient.device).unflatten(0, (-1, copies))[:, :R]
                rows_RD = torch.einsum("prt,prtd->rd", w_PRT, g_PRTD.float()).cpu()
                _add(sums[depth], rows_RD, q_RD, number * copies, settings)
    for depth, J_DD in sums.items():
        if not bool(J_DD.isfinite().all()):
            raise FitError(
                f"the Jacobian at depth {depth} is not finite; load the model with --dtype float32"
            )
    return sums


def _add(J_DD: Tensor, rows_RD: Tensor, q_RD: Tensor, start: int, settings: Settings) -> None:
    if settings.cotangents is None:
        J_DD[start : start + len(rows_RD)] += rows_RD
    else:
        J_DD.addmm_(q_RD.T, rows_RD, alpha=len(J_DD) / settings.cotangents)


def _directions(D: int, settings: Settings, prompts: Sequence[Tensor]) -> Tensor:
    """Cotangents (r, D): the unit vectors, or random orthonormal ones, new for every batch."""
    if settings.cotangents is None:
        return torch.eye(D, dtype=torch.float32, device="cpu")
    key = sum(int(ids.sum()) * (i + 1) for i, ids in enumerate(prompts))
    generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + key % (1 << 40))
    gauss_DR = torch.randn(
        D, settings.cotangents, generator=generator, dtype=torch.float64, device="cpu"
    )
    q_DR, r_RR = torch.linalg.qr(gauss_DR)
    # The sign of R's diagonal makes Q uniform over orthonormal frames (Mezzadri 2007).
    return (q_DR * r_RR.diagonal().sign()).T.float()


def _valid(prompts: Sequence[Tensor], longest: int, skip: int) -> Tensor:
    """(P, T) float: 1 at positions skip … len − 2 of each prompt."""
    place_T = torch.arange(longest, dtype=torch.long, device="cpu")
    length_P1 = torch.tensor([[len(ids)] for ids in prompts], dtype=torch.long, device="cpu")
    return ((place_T >= skip) & (place_T < length_P1 - 1)).float()


class JacobianFit:
    """One fit: prepare, then `run`. `fit` is the short way."""

    def __init__(
        self,
        model: Readable,
        corpus: Corpus,
        settings: Settings,
        *,
        folder: Path | None = None,
        report: Callable[[Progress], None] | None = None,
        fresh: bool = False,
    ):
        settings.check(model)
        self.model, self.corpus, self.settings = model, corpus, settings
        self.report = report
        self.prompts = choose(model, corpus, settings)
        D = model.width
        depths = range(model.n_blocks) if settings.depths is None else settings.depths
        self.depths = tuple(sorted(depths))
        self.sums = {d: torch.zeros(D, D, dtype=torch.float32, device="cpu") for d in self.depths}
        self.squares = dict.fromkeys(self.depths, 0.0)  # Σ over batches of n ‖J_batch‖²
        self.count, self.tokens, self.rounds = 0, 0, 0
        made_of = plain(settings, without=("checkpoint_seconds", "dtype"))
        made_of["tokens_per_pass"] = settings.per_pass(model)
        self.folder = Folder(folder, identity("jacobian", model, corpus, made_of), apart=True)
        state = self.folder.load(FILE) if not fresh else None
        for name, value in (state or {}).items():
            setattr(self, name, value)

    def run(self) -> JacobianLens:
        """Average over all prompts. Raises FitError, KeyboardInterrupt after a checkpoint."""
        began = saved = time.perf_counter()
        lengths = [len(ids) for ids in self.prompts]
        rounds = list(batches(lengths, self.settings.per_pass(self.model)))
        mine = rounds[data_parallel.rank() :: data_parallel.size()]
        with interruptible() as asked:
            for indices in mine[self.rounds :]:
                self.add([self.prompts[i] for i in indices])
                now = time.perf_counter()
                if now - saved >= self.settings.checkpoint_seconds:
                    self._save()
                    saved = now
                if self.report is not None:
                    total = len(self.prompts)
                    error = self.error()
                    self.report(Progress(self.count, total, self.tokens, now - began, error))
                if asked.is_set():
                    self._save()
                    raise KeyboardInterrupt
        return self.lens()

    def add(self, prompts: Sequence[Tensor]) -> None:
        """Add the Jacobians of one batch to the sums. Raises FitError where one is not finite."""
        for depth, J_DD in estimate(self.model, prompts, self.settings).items():
            self.sums[depth] += J_DD
            self.squares[depth] += float(J_DD.double().square().sum()) / len(prompts)
        self.rounds += 1
        self.count += len(prompts)
        self.tokens += sum(len(ids) for ids in prompts)

    def error(self) -> dict[int, float]:
        """Depth → relative standard error of the mean, from the spread between batches.

        With batches of n_k prompts and means X_k, the variance of one prompt is estimated by
        Σ n_k ‖X_k − X‖² / (batches − 1), that of the mean by its n-th part.
        """
        if self.rounds < 2 or not self.count:
            return {}
        out = {}
        for depth in self.depths:
            mean2 = float((self.sums[depth].double() / self.count).square().sum())
            spread = max(0.0, self.squares[depth] - self.count * mean2)
            variance = spread / (self.rounds - 1) / self.count
            out[depth] = (variance / mean2) ** 0.5 if mean2 > 0 else float("inf")
        return out

    def lens(self) -> JacobianLens:
        """The mean so far, of all processes."""
        error = self.error() if data_parallel.size() == 1 else {}
        count = torch.tensor([self.count, self.tokens], dtype=torch.float64, device="cpu")
        sums = [self.sums[d].clone() for d in self.depths]
        data_parallel.sum_all([count, *sums])
        n, tokens = float(count[0]), int(count[1])
        tensors = {f"{d}.jacobian": J / n for d, J in zip(self.depths, sums)}
        # How, not what: shards made differently still merge.
        how = ("checkpoint_seconds", "tokens_per_pass", "dtype", "prompts")
        header = Header.of_model(
            "jacobian",
            self.model,
            self.depths,
            corpus={**self.corpus.describe(), "documents": int(n), "tokens": tokens},
            settings=plain(self.settings, without=how),
            weight=n,
            extra={"relative_error": {str(d): round(e, 6) for d, e in error.items()}},
        )
        return JacobianLens(tensors, header)

    def _save(self) -> None:
        names = ("sums", "squares", "count", "tokens", "rounds")
        self.folder.save({name: getattr(self, name) for name in names})


def fit(
    model: Readable,
    corpus: Corpus,
    settings: Settings | None = None,
    *,
    folder: Path | None = None,
    report: Callable[[Progress], None] | None = None,
    fresh: bool = False,
) -> JacobianLens:
    """Average the Jacobian lens of `model` (a LensModel) over the documents of `corpus`.

    folder   where checkpoints and, at the end, `jacobian.safetensors` are written; a checkpoint of
             the same fit found there is gone on from, and a finished lens is not replaced (`fresh`:
             both are ignored). None: nothing is written.
    report   called after every batch of prompts

    Documents shorter than skip_first + 2 tokens are skipped. Raises InputError (none long
    enough), PromptError (bad setting), FitError, UnsupportedModel (no gradient), OSError, KeyboardInterrupt
    after a checkpoint was saved.
    """
    job = JacobianFit(
        model, corpus, settings or Settings(), folder=folder, report=report, fresh=fresh
    )
    with job.folder.locked():
        lens = job.run()
        job.folder.finish(lens, FILE, job.settings.dtype)
    return lens


def choose(model: Readable, corpus: Corpus, settings: Settings) -> list[Tensor]:
    """The prompts: token ids of the documents that are long enough, cut to the length."""
    length = min(settings.length, model.context or settings.length)
    shortest = settings.skip_first + 2
    chosen = [d for d in corpus.documents if len(d) >= shortest][: settings.prompts]
    if not chosen or length < shortest:
        raise InputError(
            f"{corpus.name}: none of {len(corpus.documents)} documents has the {shortest} tokens a "
            f"Jacobian needs (the first {settings.skip_first} positions and the last are left out): "
            "longer documents, or a smaller --skip-first"
        )
    return [torch.from_numpy(document[:length].astype("int64")) for document in chosen]
