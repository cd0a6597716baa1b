"""`logitlens generate`: the text as it comes, each token tinted by the layer that settled it, then the grid."""

from __future__ import annotations

import json
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, Any

import click

from logitlens.cli.options import (
    SUFFIXES,
    Number,
    busy,
    check_outputs,
    color_option,
    edit_option,
    edits_of,
    grid_options,
    layers_option,
    load_model,
    model_options,
    output_console,
    reading_options,
    result_options,
    truncate_option,
    wrote,
)
from logitlens.cli.prompts import asked, chat_options, check_quotes
from logitlens.cli.read import save

if TYPE_CHECKING:
    from rich.live import Live

    from logitlens import LensModel, Reading
    from logitlens.model.prompt import Prompt

_LIVE_COLUMNS = 60  # more fit no terminal


@click.command("generate")
@click.argument("prompts", metavar="PROMPT|-", nargs=-1)
@chat_options
@click.option(
    "-n", "--max-new-tokens", type=click.IntRange(min=1), metavar="N",
    help="Tokens to write at most.  [default: 40, or what fits the context]",
)  # fmt: skip
@click.option(
    "--temperature", type=Number(min=0), default=0.0, show_default=True, metavar="T",
    help="0: the likeliest token; above: drawn.",
)  # fmt: skip
@click.option(
    "--top-p", type=Number(0, 1, min_open=True), metavar="P",
    help="Sample from the likeliest tokens with this total probability.",
)  # fmt: skip
@click.option(
    "--top-k", type=click.IntRange(min=1), metavar="K", help="Draw from the K likeliest tokens."
)
@click.option("--seed", type=int, metavar="N", help="Repeat a draw.")
@click.option("--stop", multiple=True, metavar="TEXT", help="End when this is written; repeatable.")
@model_options
@reading_options
@layers_option
@color_option(help="What the colour of the grid shows.")
@truncate_option
@edit_option
@result_options(SUFFIXES, lines=", one line for each token")
@click.option("--live", is_flag=True, help="Show the grid while it grows.")
@grid_options
def command(
    prompts: tuple[str, ...],
    chat: str | None,
    system: str | None,
    source: str,
    lenses: tuple[str, ...],
    top: int,
    track: tuple[str, ...],
    layers: str | None,
    color: str,
    truncate: bool,
    outputs: tuple[str, ...],
    as_json: bool,
    live: bool,
    quiet: bool,
    width: int | None,
    theme: str,
    max_new_tokens: int | None,
    temperature: float,
    top_p: float | None,
    top_k: int | None,
    seed: int | None,
    stop: tuple[str, ...],
    edits: tuple[str, ...],
    **loading: Any,
) -> None:
    """Continue a prompt, and show what the model would have said after every layer.

    PROMPT is text; - reads standard input (a final newline is dropped). The text appears as it is
    written, bright where a token was settled at an early layer; then the grid, of the last columns in
    a terminal. Ctrl-C stops it; the text so far is shown and saved.
    """
    if len(lenses) > 1:
        raise click.UsageError("expected one --lens: a generation is read through one")
    if (top_p or top_k) and not temperature:
        raise click.UsageError("--top-p and --top-k need a --temperature above 0, like 0.8")
    paths = check_outputs(outputs)
    check_quotes(prompts)
    (text,) = asked(prompts, chat, system)
    changes = edits_of(edits)
    model = load_model(source, **loading)
    shows = _Json() if as_json else _Shown(text, live=live, width=width, color=color, theme=theme)
    reading: Reading | None = None
    try:
        reading = _written(
            model, text, shows, max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p,
            top_k=top_k, seed=seed, stop=stop, lens=next(iter(lenses)), top=top, track=list(track),
            layers=layers, truncate=truncate, edits=changes,
        )  # fmt: skip
    except BaseException as error:
        reading = getattr(error, "reading", None)
        raise
    finally:
        if reading is not None:
            for path in paths:
                for written in save([[reading]], path, color):
                    wrote(written)
            if not (as_json or quiet):
                shows.grid(reading)


def _written(model: LensModel, prompt: Prompt, shows: _Json | _Shown, **options: Any) -> Reading:
    """What the model writes, shown as it comes; a spinner until the first token."""
    with closing(shows), ExitStack() as stack:
        progress = stack.enter_context(busy("reading the prompt"))

        def each(column: Reading) -> None:
            stack.close()  # the spinner's line is now the text's
            shows.column(column)

        return model.generate(prompt, each=each, progress=progress, **options)


class _Json:
    """One line of JSON for each token."""

    def column(self, column: Reading) -> None:
        written, token = column.meta["generation"], int(column.next_ids[0])
        line = {
            "position": column.positions[0] + 1,
            "id": token,
            "text": column.piece(token),
            "logprob": written["logprobs"][0],
            "sampled_logprob": written["sampled_logprobs"][0],
            "settled": column.settled().tolist()[0],
            "layers": dict(zip(column.layers, (words[0] for words in column.words))),
        }
        click.echo(json.dumps(line, ensure_ascii=True))

    def close(self) -> None:
        pass

    def grid(self, reading: Reading) -> None:
        pass


class _Shown:
    """The prompt, the text as it comes, and the grid."""

    def __init__(self, prompt: Prompt, *, live: bool, width: int | None, color: str, theme: Any):
        from logitlens.view import text as safe
        from logitlens.view.brush import Brush, map_for
        from logitlens.view.flow import Flow

        self.console = output_console(width)
        self.flow = Flow(Brush.of(self.console, map_for(theme)))
        self.options = {"color": color, "theme": theme}
        self.columns: list[Reading] = []
        self.live: Live | None = None
        self.wants_live = live and self.console.is_terminal
        # Of a chat, only the answer is shown.
        self.prompt = safe.flowing(prompt) if isinstance(prompt, str) else ""

    def column(self, column: Reading) -> None:
        if not self.columns:
            self.print(self.prompt, style="dim")
        self.columns = [*self.columns[-_LIVE_COLUMNS:], column]
        if self.wants_live:
            self.redraw(column)
        else:
            self.print(self.flow.next(column))

    def redraw(self, column: Reading) -> None:
        from rich.live import Live

        from logitlens.view import terminal
        from logitlens.view.flow import joined

        if self.live is None:
            self.print("\n")
            self.live = Live(console=self.console, auto_refresh=False, transient=True)
            self.live.start()
        self.live.update(terminal.render(joined(self.columns), **self.options), refresh=True)

    def print(self, what: Any, **options: Any) -> None:
        self.console.print(what, end="", soft_wrap=True, markup=False, **options)
        self.console.file.flush()

    def close(self) -> None:
        if self.live is not None:
            self.live.stop()
        elif self.columns:
            self.print(self.flow.end())
            self.print("\n")

    def grid(self, reading: Reading) -> None:
        from logitlens.view import terminal

        self.console.print()
        self.console.print(terminal.render(reading, **self.options))
