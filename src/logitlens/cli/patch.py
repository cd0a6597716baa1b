"""`logitlens patch`: which cells of a clean run bring its answer back in a corrupted one."""

from __future__ import annotations

import json
import sys
from typing import Any

import click

from logitlens.cli.options import (
    busy,
    check_outputs,
    errors,
    load_model,
    model_options,
    output_console,
    prompt_text,
)
from logitlens.patch_grid import SUFFIXES


@click.command("patch")
@click.argument("clean")
@click.argument("corrupted")
@model_options
@click.option("--token", required=True, metavar="TOKEN", help="The clean prompt's answer.")
@click.option("--versus", metavar="TOKEN", help="Measure its logit minus that of this token.")
@click.option(
    "--stream", type=click.Choice(["resid", "attn", "mlp"]), default="resid", show_default=True,
    help="What is patched: the stream after each layer, or what each attention or MLP adds.",
)  # fmt: skip
@click.option("--layers", metavar="LAYERS", help="Layers to patch: 0:12:2, -4:, or embed,4,8.")
@click.option("--positions", metavar="POSITIONS", help="Positions to patch, from 0.")
@click.option(
    "-o", "--output", "outputs", multiple=True, metavar="FILE",
    help="Write .json .png .svg .pdf or .txt; repeatable.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead.")
@click.option("--width", type=click.IntRange(40, 10_000), metavar="COLUMNS", help="Width.")
def command(
    clean: str,
    corrupted: str,
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

    CLEAN and CORRUPTED have as many tokens. The corrupted prompt runs once for every layer and
    position, with that cell taken from the clean run: 0 is the corrupted prompt's answer, 1 the
    clean one's.
    """
    paths = check_outputs(outputs, SUFFIXES)
    texts = prompt_text(clean), prompt_text(corrupted)
    model = load_model(source, **loading)
    with busy("patching") as progress:
        grid = model.patch_grid(
            *texts, token, versus, stream=stream, layers=layers, positions=positions,
            progress=progress,
        )  # fmt: skip
    for path in paths:
        errors().print(f"wrote {grid.save(path)}", markup=False, soft_wrap=True)
    if as_json:
        ascii_only = "utf" not in (sys.stdout.encoding or "").lower()
        click.echo(json.dumps(grid.to_dict(), ensure_ascii=ascii_only, allow_nan=False))
        return
    from logitlens.view import patches

    console = output_console(width)
    console.print(patches.render(grid, width=console.width))
