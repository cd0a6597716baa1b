"""`logitlens attribute`: which components wrote a token, as bars that sum to the model's own logit."""

from __future__ import annotations

from typing import Any

import click

from logitlens.attribution import BY, SUFFIXES
from logitlens.cli.options import (
    check_outputs,
    edit_option,
    edits_of,
    load_model,
    model_options,
    result_options,
    show,
    truncate_option,
)
from logitlens.cli.prompts import check_quotes, prompt_text


@click.command("attribute")
@click.argument("prompt", metavar="PROMPT|-")
@click.argument("token", nargs=-1, metavar="[TOKEN]")
@model_options
@click.option("--versus", metavar="TOKEN", help="Attribute the difference to this token's logit.")
@click.option(
    "--position", type=int, default=-1, show_default=True, help="After which position, from 0."
)
@click.option(
    "--by", type=click.Choice(BY), default="sublayer", show_default=True,
    help="What the components are: each attention and MLP, each layer, each head, what each head "
    "read from each token, or each expert.",
)  # fmt: skip
@truncate_option
@click.option(
    "--bars", type=click.IntRange(min=1), default=24, show_default=True, metavar="N",
    help="Show the N largest components; the rest are one bar.",
)  # fmt: skip
@edit_option
@result_options(SUFFIXES, least=40)
def command(
    prompt: str,
    token: tuple[str, ...],
    source: str,
    versus: str | None,
    position: int,
    by: str,
    truncate: bool,
    bars: int,
    edits: tuple[str, ...],
    outputs: tuple[str, ...],
    as_json: bool,
    width: int | None,
    **loading: Any,
) -> None:
    """Show which components wrote a token: a waterfall that sums to the model's own logit.

    TOKEN is the exact text of one token, like " Paris"; without it, the token that the model puts
    first is attributed.
    """
    if len(token) > 1:
        check_quotes([prompt, *token])
    paths = check_outputs(outputs, SUFFIXES)
    text = prompt_text(prompt)
    changes = edits_of(edits)
    model = load_model(source, **loading)
    found = model.attribute(
        text, token[0] if token else None, versus=versus, position=position, by=by,
        truncate=truncate, edits=changes,
    )  # fmt: skip
    from logitlens.view import waterfall

    show(found, paths, as_json, width, waterfall.render, top=bars)
