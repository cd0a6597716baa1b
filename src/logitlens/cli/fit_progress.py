"""What `logitlens fit` shows on stderr while it runs, and prints about the lens at the end."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from logitlens.cli.options import errors
from logitlens.cli.process import keeping

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

Report = Callable[[Any], None]
OFTEN = 60.0  # seconds between two lines where stderr is no terminal


@contextmanager
def watched_tuned(speak: bool) -> Iterator[Report | None]:
    """A bar and the losses per layer, where stderr is a terminal; else a line for each evaluation, and one
    a minute. None: another process speaks."""
    console = errors()
    if not speak:
        yield None
        return
    if not console.is_terminal:
        yield _Lines(console, _of_tuned)
        return
    from rich.console import Group
    from rich.live import Live
    from rich.table import Table

    from logitlens.select import layer_label

    bar, task = _bar(console, "training")
    heldout: dict[int, float] = {}

    def table(losses: dict[int, float]) -> Table:
        out = Table("layer", "loss", "held-out KL", box=None, padding=(0, 2))
        for depth, loss in losses.items():
            judged = f"{heldout[depth]:.4f}" if depth in heldout else ""
            out.add_row(layer_label(depth), f"{loss:.4f}", judged)
        return out

    with Live(bar, console=console, transient=True) as live:

        def report(p: Any) -> None:
            heldout.update(p.heldout or {})
            rate = f"{p.tokens / max(p.seconds, 1e-9):,.0f} tokens/s"
            bar.update(task, completed=p.step, total=p.steps, note=rate)
            live.update(Group(bar, table(p.losses)))

        yield report


@contextmanager
def watched_jacobian(speak: bool) -> Iterator[Report | None]:
    """A bar and the largest standard error so far, where stderr is a terminal; else a line a minute. None:
    another process speaks."""
    console = errors()
    if not speak:
        yield None
        return
    if not console.is_terminal:
        yield _Lines(console, _of_jacobian)
        return
    bar, task = _bar(console, "averaging")
    with bar:

        def report(p: Any) -> None:
            bar.update(task, completed=p.prompts, total=p.total, note=_error(p))

        yield report


@contextmanager
def kept(folder: Path, fresh: bool, speak: bool) -> Iterator[None]:
    """Let Ctrl-C inside say which checkpoint, or how many shards, a fit goes on from."""

    def checkpoints() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in folder.glob("checkpoint*.pt")}

    before = checkpoints()

    def words() -> str:
        now = checkpoints()
        if not (speak and now) or (fresh and now == before):  # that is another fit's
            return ""
        shards = len(list(folder.glob("shard-*.pt")))
        what = f"{shards} shard{'s' * (shards > 1)}" if shards else "the checkpoint"
        verb = "are" if shards > 1 else "is"
        return f"{what} in {folder} {verb} kept, the same command {'without --fresh ' if fresh else ''}goes on"

    with keeping(words):
        yield


class _Lines:
    """Progress as plain lines: a log may be all that is seen of a fit of hours."""

    def __init__(self, console: Console, words: Callable[[Any], str]):
        self.file, self.words = console.file, words
        self.heldout: dict[int, float] = {}
        self.next = time.monotonic() + OFTEN

    def __call__(self, p: Any) -> None:
        # Progress of several processes brings the last judgement again and again.
        heldout = getattr(p, "heldout", None) or self.heldout
        if heldout == self.heldout and time.monotonic() < self.next:
            return
        self.heldout = heldout
        self.next = time.monotonic() + OFTEN
        minutes, seconds = divmod(round(p.seconds), 60)
        with suppress(OSError):  # that nobody reads stderr ends no fit
            click.echo(f"{self.words(p)} · {minutes}:{seconds:02d}", file=self.file)


def _of_tuned(p: Any) -> str:
    said = f"step {p.step:,} of {p.steps:,} · mean loss {_mean(p.losses):.4f}"
    return said + (f" · mean held-out KL {_mean(p.heldout):.4f}" if p.heldout else "")


def _of_jacobian(p: Any) -> str:
    return " · ".join(filter(None, [f"prompt {p.prompts:,} of {p.total:,}", _error(p)]))


def _error(p: Any) -> str:
    return f"standard error ≤ {max(p.error.values()):.1%}" if p.error else ""


def _mean(of_depth: dict[int, float]) -> float:
    return sum(of_depth.values()) / max(1, len(of_depth))


def _bar(console: Console, what: str) -> tuple[Progress, TaskID]:
    """A progress bar with a note behind it."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    bar = Progress(
        TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"), console=console, transient=True,
    )  # fmt: skip
    return bar, bar.add_task(what, total=None, note="")


def tell_tuned(lens: Any, path: Path) -> None:
    """The held-out KL of every layer, beside that of the logit lens."""
    from logitlens.select import layer_label

    logit = {int(d): loss for d, loss in lens.header.extra["logit_losses"].items()}
    tokens = lens.header.extra["heldout_tokens"]
    click.echo(f"{path}: held-out KL(final ‖ lens) in nats, {tokens} tokens")
    click.echo(f"{'layer':>6} {'logit':>9} {'tuned':>9}")
    for depth, loss in lens.header.losses.items():
        click.echo(f"{layer_label(depth):>6} {logit[depth]:9.4f} {loss:9.4f}")


def tell_jacobian(lens: Any, path: Path) -> None:
    """How much text the mean was taken over, and its standard errors."""
    from logitlens.select import layer_label

    corpus, error = lens.header.corpus, lens.header.extra.get("relative_error") or {}
    click.echo(f"{path}: mean over {corpus['documents']} prompts, {corpus['tokens']} tokens")
    for depth in lens.header.depths:
        if str(depth) in error:
            click.echo(f"{layer_label(depth):>6} relative standard error {error[str(depth)]:.2%}")
