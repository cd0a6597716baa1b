"""Training a tuned lens: one affine map per depth, KL(final ‖ lens) minimised over a corpus.

Belrose et al. 2023, "Eliciting Latent Predictions from Transformers with the Tuned Lens"
(arXiv:2303.08112). The residuals of a batch are computed once and shared by all depths, the loss
and its gradient come from `divergence`, and no layers × positions × vocabulary is ever held.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from logitlens.anatomy.readable import Readable
from logitlens.errors import FitError, PromptError
from logitlens.fit import batch, data_parallel
from logitlens.fit.affine import AffineMaps
from logitlens.fit.checkpoint import Folder, identity, interruptible
from logitlens.fit.corpus import Corpus
from logitlens.fit.divergence import Divergence
from logitlens.fit.optim import make_optimizers, schedule
from logitlens.fit.sequences import Schedule, split
from logitlens.fit.settings import check_counts, check_dtype, check_numbers, plain
from logitlens.lenses import Header, TunedLens, fingerprint

FILE = "tuned.safetensors"
_MAY_CHANGE = ("checkpoint_every", "dtype", "patience")  # without changing what a step does
_STATE = ("step", "best", "best_maps", "best_mean", "logit", "stale")


@dataclass(frozen=True)
class Settings:
    """How a tuned lens is trained.

    steps, tokens_per_step   length of the fit; the corpus is shuffled and run through again
    length            tokens of one training sequence
    optimizer         "sgd" (Nesterov, as in the paper), "adamw" or "muon"
    lr                None: 1.0 for sgd (scaled by 1 − momentum), 1e-3 for adamw, 0.02 for muon
    warmup            steps of linear warm-up; None: none for sgd, a fifth of the steps else
    decay             linear to 0 over the steps after the warm-up
    clip              norm that all gradients together are clipped to
    rank              None: whole maps; r: low rank, A = up · down
    precision         of the products with the unembedding: "float32" or "bfloat16"
    holdout           share of the sequences kept apart to judge by (at least one)
    holdout_tokens    how many tokens of them at most
    evaluate_every    steps between two judgements; None: about ten in all
    patience          judgements without a better mean held-out KL before it stops; None: never
    checkpoint_every  steps between two checkpoints; None: with every judgement
    dtype             in which the lens is stored
    """

    steps: int = 250
    tokens_per_step: int = 16384
    length: int = 256
    optimizer: str = "sgd"
    lr: float | None = None
    momentum: float = 0.9
    weight_decay: float = 1e-3
    warmup: int | None = None
    decay: bool = True
    clip: float = 1.0
    rank: int | None = None
    precision: str = "float32"
    holdout: float = 0.05
    holdout_tokens: int = 16384
    evaluate_every: int | None = None
    patience: int | None = None
    checkpoint_every: int | None = None
    seed: int = 0
    dtype: str = "float16"

    def check(self, model: Readable) -> None:
        """Raise PromptError for values that cannot be meant."""
        check_counts(
            self, "steps", "tokens_per_step", "length", "holdout_tokens", "rank", "evaluate_every",
            "patience", "checkpoint_every",
        )  # fmt: skip
        check_numbers(
            self, above=["clip"], least=["lr", "weight_decay", "warmup", "momentum", "seed"]
        )
        if not 0 < self.holdout < 1:
            raise PromptError(f"holdout={self.holdout}: expected a share between 0 and 1")
        if self.precision not in ("float32", "bfloat16"):
            raise PromptError(f"precision={self.precision!r}: expected float32 or bfloat16")
        if (self.rank or 0) > model.width:
            raise PromptError(
                f"rank={self.rank}: expected at most {model.width}, the model's width"
            )
        check_dtype(self)


def place(model: Readable, corpus: Corpus, settings: Settings, folder: Path | None) -> Folder:
    """The folder of a fit, which refuses what another one left there."""
    made_of = plain(settings, without=_MAY_CHANGE)
    return Folder(folder, identity("tuned", model, corpus, made_of))


@dataclass
class Progress:
    """What a fit tells while it runs: mean training loss per depth, and held-out KL where judged."""

    step: int
    steps: int
    losses: dict[int, float]
    tokens: int
    seconds: float
    lr: float
    heldout: dict[int, float] | None = None


class TunedFit:
    """One fit: prepare, then `run`. `fit` is the short way.

    stop   asked after every step, beside Ctrl-C, whether to save a checkpoint and end
    """

    def __init__(
        self,
        model: Readable,
        corpus: Corpus,
        settings: Settings,
        *,
        folder: Path | None = None,
        report: Callable[[Progress], None] | None = None,
        fresh: bool = False,
        stop: Callable[[], bool] = lambda: False,
    ):
        settings.check(model)
        self.model, self.corpus, self.settings = model, corpus, settings
        self.report, self.stop = report, stop
        self.depths = list(range(model.n_blocks))
        self.divergence = Divergence(
            model.tail.head, fingerprint.head_width(model), precision=settings.precision
        )
        self.exact = (
            self.divergence
            if settings.precision == "float32"
            else Divergence(model.tail.head, fingerprint.head_width(model))
        )
        train_CT, self.held_CT = split(model, corpus, settings)
        self.schedule = Schedule(train_CT, settings.tokens_per_step, settings.seed)
        probe = batch.residual_rows(model, train_CT[:1, :2], self.depths)
        self.maps = AffineMaps(
            self.depths,
            model.width,
            rank=settings.rank,
            seed=settings.seed,
            devices={depth: probe[depth].device for depth in self.depths},
        )
        self.optimizers = make_optimizers(self.maps, settings)
        self.rates = [optimizer.param_groups[0]["lr"] for optimizer in self.optimizers]
        self.step = 0
        self.logit: dict[int, float] = {}
        self.best: dict[int, float] = {}
        self.best_maps: dict[str, Tensor] = {}
        self.stale, self.best_mean = 0, math.inf
        self.folder = place(model, corpus, settings, folder)
        state = self.folder.load(FILE) if not fresh else None
        if state is not None:
            self._restore(state)

    def run(self) -> TunedLens:
        """Train to the end (or the early stop) and return the best maps, one depth at a time.

        Raises FitError for a loss that is not a number, KeyboardInterrupt after saving a checkpoint.
        """
        s = self.settings
        if not data_parallel.agreed(self.step):
            raise FitError(
                "the processes of the fit have read different checkpoints: all of them must see the "
                "same folder"
            )
        every = s.evaluate_every or max(1, s.steps // 10)
        began, seen = time.perf_counter(), 0
        if not self.logit:
            self.logit = self.judge()
            self.best = dict(self.logit)
            self.best_mean = _mean(self.logit)
            for depth in self.depths:
                self.best_maps.update(self.maps.of_depth(depth))
        with torch.no_grad(), interruptible() as asked:
            while self.step < s.steps and not self._stale():
                losses, tokens = self._update()
                self.step += 1
                seen += tokens
                heldout = None
                if self.step % every == 0 or self.step == s.steps:
                    heldout = self._judge_and_keep()
                stopping = data_parallel.any_of(asked.is_set() or self.stop())
                if stopping or self.step % (s.checkpoint_every or every) == 0:
                    self._save()
                if self.report is not None:
                    seconds = time.perf_counter() - began
                    lr = self.optimizers[0].param_groups[0]["lr"]
                    self.report(Progress(self.step, s.steps, losses, seen, seconds, lr, heldout))
                if stopping:
                    raise KeyboardInterrupt
        return self.lens()

    def lens(self) -> TunedLens:
        """The best maps so far, judged on held-out text; at a depth never improved on, the identity."""
        s = self.settings
        header = Header.of_model(
            "tuned",
            self.model,
            self.depths,
            corpus=self.corpus.describe(),
            settings=plain(s),
            losses={d: round(loss, 6) for d, loss in self.best.items()},
            weight=float(self.step * s.tokens_per_step),
            extra={
                "heldout_tokens": self.held_CT.numel(),
                "logit_losses": {str(d): round(loss, 6) for d, loss in self.logit.items()},
                "steps": self.step,
            },
        )
        tensors = {name: tensor.detach().cpu() for name, tensor in self.best_maps.items()}
        return TunedLens(tensors, header)

    # -- one step -------------------------------------------------------------------------------

    def _update(self) -> tuple[dict[int, float], int]:
        """Gradients of one step over all processes, clipped, and one move of the optimizer."""
        s = self.settings
        self.maps.zero_gradients()
        ids_BT = self.schedule.step(self.step)
        tokens = ids_BT.numel()
        mine_BT = ids_BT[data_parallel.rank() :: data_parallel.size()]
        sums = self._pass(mine_BT, self.divergence, tokens)
        total_L = torch.tensor([sums[d] for d in self.depths], dtype=torch.float64, device="cpu")
        data_parallel.sum_all([total_L, *self.maps.gradients()])
        losses = dict(zip(self.depths, (total_L / tokens).tolist()))
        for depth, loss in losses.items():
            if not math.isfinite(loss):
                raise FitError(
                    f"the loss at depth {depth} is {loss} at step {self.step + 1}: {self._good()}"
                    "try a smaller --lr, more --warmup, or --precision float32"
                )
        parameters = list(self.maps.parameters.values())
        norm = torch.nn.utils.clip_grad_norm_(parameters, s.clip)
        if not bool(norm.isfinite()):
            depth = next(
                int(name.partition(".")[0])
                for name, p in self.maps.parameters.items()
                if p.grad is not None and not bool(p.grad.isfinite().all())
            )
            raise FitError(
                f"the gradient at depth {depth} is {float(norm)} at step {self.step + 1}: "
                f"{self._good()}try a smaller --lr"
            )
        factor = schedule(self.step, s)
        for optimizer, rate in zip(self.optimizers, self.rates):
            optimizer.param_groups[0]["lr"] = rate * factor
            optimizer.step()
        return losses, tokens

    def _pass(self, ids_BT: Tensor, divergence: Divergence, tokens: int | None) -> dict[int, float]:
        """Sum of the loss per depth over a batch; with `tokens`, gradients of the mean as well."""
        sums = dict.fromkeys(self.depths, 0.0)
        if not len(ids_BT):
            return sums
        rows = batch.residual_rows(self.model, ids_BT, self.depths)
        tail, final_ND = self.model.tail, rows[self.model.n_blocks]
        for r in divergence.blocks(len(final_ND)):
            final = divergence.final(tail.head_input(final_ND[r]))
            for depth in self.depths:
                h_RD = rows[depth][r].float()
                y_RD = self.maps(h_RD, depth)
                if tokens is None:
                    x_RE = tail.head_input(y_RD)
                    loss_R, _ = divergence(x_RE, final, gradient=False)
                else:
                    loss_R, g_RD = batch.pull_back(
                        tail, y_RD, lambda x_RE, final=final: divergence(x_RE, final)
                    )
                    self.maps.accumulate(h_RD, g_RD.float() / tokens, depth)
                sums[depth] += float(loss_R.double().sum())
        return sums

    # -- judging --------------------------------------------------------------------------------

    def judge(self) -> dict[int, float]:
        """Mean held-out KL(final ‖ lens) per depth, nats, exactly, over all processes."""
        total_L = torch.zeros(len(self.depths), dtype=torch.float64, device="cpu")
        mine = self.held_CT[data_parallel.rank() :: data_parallel.size()]
        per = max(1, self.settings.tokens_per_step // self.held_CT.shape[1])
        with torch.no_grad():
            for part in mine.split(per):
                sums = self._pass(part, self.exact, None)
                total_L += total_L.new_tensor([sums[d] for d in self.depths])
        data_parallel.sum_all([total_L])
        return dict(zip(self.depths, (total_L / self.held_CT.numel()).tolist()))

    def _judge_and_keep(self) -> dict[int, float]:
        heldout = self.judge()
        for depth, loss in heldout.items():
            if loss < self.best[depth]:
                self.best[depth] = loss
                self.best_maps.update(self.maps.of_depth(depth))
        mean = _mean(self.best)
        self.stale = 0 if mean < self.best_mean else self.stale + 1
        self.best_mean = min(self.best_mean, mean)
        return heldout

    def _stale(self) -> bool:
        return self.settings.patience is not None and self.stale >= self.settings.patience

    # -- state ----------------------------------------------------------------------------------

    def _save(self) -> None:
        if not all(bool(p.isfinite().all()) for p in self.maps.parameters.values()):
            raise FitError(
                f"step {self.step}: the maps are no longer finite; {self._good()}lower --lr, or set --clip"
            )
        self.folder.save(
            {
                "maps": {name: p.detach() for name, p in self.maps.parameters.items()},
                "optimizer": {"parts": [o.state_dict() for o in self.optimizers]},
                **{name: getattr(self, name) for name in _STATE},
            }
        )

    def _restore(self, state: dict[str, Any]) -> None:
        try:
            with torch.no_grad():
                for name, parameter in self.maps.parameters.items():
                    parameter.copy_(state["maps"][name])
            saved = state["optimizer"]  # in older checkpoints the only optimizer's own state
            for optimizer, part in zip(self.optimizers, saved.get("parts", [saved]), strict=True):
                optimizer.load_state_dict(part)
            for name in _STATE:
                setattr(self, name, state[name])
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            raise FitError(
                f"{self.folder.checkpoint} does not hold the state of a fit "
                f"({type(error).__name__}): remove it, or start over with --fresh"
            ) from None

    def _good(self) -> str:
        kept = self.folder.checkpoint
        return f"the last good state is kept in {kept}; " if kept is not None else ""


def fit(
    model: Readable,
    corpus: Corpus,
    settings: Settings | None = None,
    *,
    folder: Path | None = None,
    report: Callable[[Progress], None] | None = None,
    fresh: bool = False,
) -> TunedLens:
    """Fit a tuned lens of `model` (a LensModel) on `corpus`.

    folder   where checkpoints and, at the end, `tuned.safetensors` are written; a checkpoint of the
             same fit found there is gone on from, and a finished lens is not replaced (`fresh`: both
             are ignored). None: nothing is written.
    report   called after every step

    The loss is averaged over all positions. Raises InputError (corpus too short), PromptError (bad
    setting), FitError (loss not a number, checkpoint of another fit), UnsupportedModel (no gradient through
    this tail), OSError (cannot write), KeyboardInterrupt after a checkpoint was saved.
    """
    job = TunedFit(model, corpus, settings or Settings(), folder=folder, report=report, fresh=fresh)
    with job.folder.locked():
        lens = job.run()
        job.folder.finish(lens, FILE, job.settings.dtype)
    return lens


def _mean(losses: dict[int, float]) -> float:
    return sum(losses.values()) / len(losses)
