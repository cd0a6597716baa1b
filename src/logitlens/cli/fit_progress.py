"""What `logitlens fit` shows on stderr while it runs, and prints about the lens at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from logitlens.cli.options import errors

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

Report = Callable[[Any], None]


@contextmanager
def watched_tuned(speak: bool) -> Iterator[Report | None]:
    """A bar and the losses per layer, where stderr is a terminal; else None."""
    console = errors()
    if not speak or not console.is_terminal:
        yield None
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
    """A bar and the largest standard error so far, where stderr is a terminal; else None."""
    console = errors()
    if not speak or not console.is_terminal:
        yield None
        return
    bar, task = _bar(console, "averaging")
    with bar:

        def report(p: Any) -> None:
            error = f"standard error ≤ {max(p.error.values()):.1%}" if p.error else ""
            bar.update(task, completed=p.prompts, total=p.total, note=error)

        yield report


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
