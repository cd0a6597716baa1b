"""`logitlens check`: what was found inside a model, and how exactly it reproduces the model's logits."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from logitlens.cli.options import load_model, loading_options, output_console

if TYPE_CHECKING:
    from logitlens import LensModel


@click.command("check")
@click.argument("source", metavar="MODEL", default="demo")
@loading_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead.")
def command(source: str, as_json: bool, **loading: Any) -> None:
    """Show how a model was parsed and how exactly it is reproduced.

    MODEL is a hub name, a directory, or demo, the bundled model. A model whose own logits cannot be
    reproduced is refused with the reason; the exit code is then 1.
    """
    model = load_model(source, **loading)
    if as_json:
        click.echo(json.dumps(facts(model)))
        return
    from rich.table import Table
    from rich.text import Text

    from logitlens.view.text import visible

    table = Table.grid(padding=(0, 2))
    for name, value in lines(model):
        table.add_row(Text(name, style="dim"), Text(visible(value)))
    console = output_console()
    console.print(Text(f"{visible(model.name)}: {type(model.hf).__name__}", style="bold"))
    console.print(table)
    mark, style = ("✓", "green") if model.check.ok else ("✗", "bold red")
    console.print(Text.assemble((mark, style), " ", visible(model.check.line())))


def lines(model: LensModel) -> list[tuple[str, str]]:
    """What was found, for people: names and values."""
    blocks, context = model.n_blocks, model.context
    return [
        ("blocks", f"{blocks} at {model.anatomy.blocks_path}"),
        ("layers", f"embed, 0 … {blocks - 1}"),
        ("width", str(model.width)),
        ("vocabulary", str(model.vocab_size)),
        ("context", str(context) if context else "not stated"),
        *model.tail.description,
        ("tail", _KINDS.get(model.tail.kind, model.tail.kind)),
        (
            "dtype",
            f"{str(model.dtype).removeprefix('torch.')} on {next(model.hf.parameters()).device}",
        ),
    ]


_KINDS = {
    "weights": "read from its weights",
    "module": "called as a module (its weights cannot be read)",
    "replay": "replayed through the model itself (exact, slower)",
}


def facts(model: LensModel) -> dict[str, Any]:
    """What was found, for programs."""
    return {
        "model": model.name,
        "revision": model.revision,
        "class": type(model.hf).__name__,
        "blocks": model.anatomy.blocks_path,
        "n_blocks": model.n_blocks,
        "width": model.width,
        "vocab_size": model.vocab_size,
        "context": model.context,
        "dtype": str(model.dtype).removeprefix("torch."),
        "tail": {"kind": model.tail.kind, "steps": [list(pair) for pair in model.tail.description]},
        "check": model.check.to_meta(),
    }
