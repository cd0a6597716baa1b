"""`logitlens patch`: which cells of a clean run bring its answer back in a corrupted one."""

from __future__ import annotations

from typing import Any

import click

from logitlens.cli.options import (
    busy,
    check_outputs,
    layers_option,
    load_model,
    model_options,
    positions_option,
    result_options,
    show,
)
from logitlens.cli.prompts import prompt_text
from logitlens.errors import PromptError
from logitlens.patch_grid import SUFFIXES


@click.command("patch")
@click.argument("prompts", metavar="CLEAN CORRUPTED", nargs=-1)
@model_options
@click.option("--token", required=True, metavar="TOKEN", help="The clean prompt's answer.")
@click.option("--versus", metavar="TOKEN", help="Measure its logit minus that of this token.")
@click.option(
    "--stream", type=click.Choice(["resid", "attn", "mlp", "head"]), default="resid", show_default=True,
    help="What is patched: the stream after each layer, or what each attention, MLP or head adds.",
)  # fmt: skip
@layers_option
@positions_option
@result_options(SUFFIXES, least=40)
def command(
    prompts: tuple[str, ...],
    source: str,
    token: str,
    versus: str | None,
    stream: str,
    layers: str | None,
    positions: str | None,
    outputs: tuple[str, ...],
    as_json: bool,
    width: int | None,
    **loading: Any,
) -> None:
    """Show how much of the clean prompt's answer each patched cell brings back.

    CLEAN and CORRUPTED must have the same number of tokens. The corrupted prompt runs once for every layer and
    position, with that cell taken from the clean run: 0 is the corrupted prompt's answer, 1 the
    clean one's.
    """
    paths = check_outputs(outputs, SUFFIXES)
    if len(prompts) != 2:
        raise click.UsageError(
            f"expected two prompts, CLEAN and CORRUPTED, each in quotes; got {len(prompts)} words or texts"
        )
    texts = prompt_text(prompts[0]), prompt_text(prompts[1])
    model = load_model(source, **loading)
    with busy("patching") as progress:
        grid = model.patch_grid(
            *texts, token, versus, stream=stream, layers=layers, positions=positions,
            progress=progress,
        )  # fmt: skip
    if not grid.differ:
        raise PromptError(
            f"both prompts give the same logit of {grid.piece(grid.token)!r}"
            + (f" minus that of {grid.piece(grid.versus)!r}" if grid.versus is not None else "")
            + f", {grid.clean['logit']:+.3f}: there is nothing to bring back; change what the answer depends on"
        )
    from logitlens.view import patches

    show(grid, paths, as_json, width, patches.render)
