"""`logitlens serve`: the page on 127.0.0.1, with a prompt box."""

from __future__ import annotations

import contextlib
import html
import os
import tempfile
import threading
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from logitlens.cli.options import errors, load_model, loading_options

INTERRUPTED = 130  # the only way it ends


def _named(ctx: click.Context, param: click.Parameter, value: str) -> str:
    if not value.strip():  # a socket would take it for every address
        raise click.BadParameter("it is empty: expected an address, or 0.0.0.0 for all of them")
    return value


def _there(ctx: click.Context, param: click.Parameter, value: tuple[str, ...]) -> tuple[str, ...]:
    """Look at lenses before the browser opens. Raises UnknownLens, LensNotAvailable."""
    if value:
        from logitlens.lenses.find import parsed

        for name in value:
            parsed(name)
    return value


@click.command("serve")
@click.option(
    "-m", "--model", "models", multiple=True, default=("demo",), show_default=True, metavar="MODEL",
    help="Hub name or directory; repeat it to offer several, one in memory at a time.",
)  # fmt: skip
@click.option(
    "--lens", "extra_lenses", multiple=True, metavar="LENS", callback=_there,
    help="Offer tuned:PATH or jacobian:PATH besides logit, tuned and jacobian; repeatable.",
)  # fmt: skip
@click.option(
    "--host", default="127.0.0.1", show_default=True, metavar="ADDRESS", callback=_named,
    help="Address to listen on. Other addresses admit anyone with the URL, unencrypted.",
)  # fmt: skip
@click.option(
    "--port", default=8765, show_default=True, type=click.IntRange(0, 65535),
    help="Port; 0 takes any free one.",
)  # fmt: skip
@click.option(
    "--allow-host", "allow_hosts", multiple=True, metavar="NAME",
    help="Answer to this name as well, as behind a proxy; repeatable.",
)  # fmt: skip
@click.option(
    "--max-tokens", default=4096, show_default=True, type=click.IntRange(min=1),
    help="Longest prompt that is read.",
)  # fmt: skip
@click.option(
    "--share", metavar="DIR", type=click.Path(file_okay=False, path_type=Path),
    help="Keep the readings as pages in a folder, with a list of them: a static gallery.",
)  # fmt: skip
@click.option(
    "--open/--no-open", "open_browser", default=True, show_default=True, help="Open the browser."
)
@loading_options
def command(
    models: tuple[str, ...],
    extra_lenses: tuple[str, ...],
    host: str,
    port: int,
    allow_hosts: tuple[str, ...],
    max_tokens: int,
    share: Path | None,
    open_browser: bool,
    **loading: Any,
) -> int:
    """Explore prompts in the browser.

    Type a prompt and watch it being read; compare readings and export any view as one offline file.
    The printed address ends in a secret word. Ctrl-C ends the server, even while a model runs; the
    exit code is then 130.
    """
    from logitlens.server.order import Limits
    from logitlens.server.run import serve

    shared: dict[str, Any] = {}
    if share is not None:
        from logitlens.server.gallery import Gallery

        shared["changed"] = Gallery(share)

    with contextlib.ExitStack() as until_the_end:

        def ready(url: str, local: bool) -> None:
            if not local:
                errors().print(
                    f"listening on {host}: anyone who learns the address below can use the model, "
                    "over a connection that is not encrypted",
                    markup=False,
                    soft_wrap=True,
                )
            click.echo(url)
            if open_browser:
                page = until_the_end.enter_context(redirecting(url))
                # a browser may take its time, and asks for the page meanwhile
                threading.Thread(target=open_page, args=(page,), daemon=True).start()

        try:
            ended = serve(
                list(dict.fromkeys(models)),
                lambda name: load_model(name, **loading),
                lenses=["logit", "tuned", "jacobian", *extra_lenses],
                host=host,
                port=port,
                allow_hosts=allow_hosts,
                limits=Limits(tokens=max_tokens),
                ready=ready,
                **shared,
            )
        except KeyboardInterrupt:  # a second one, while the model had its time to end
            ended = False
    errors().print("stopped")
    if not ended:
        # Native code cannot be interrupted, and the interpreter would abort over its thread.
        os._exit(INTERRUPTED)
    return INTERRUPTED


@contextmanager
def redirecting(url: str) -> Iterator[Path]:
    """A file of this user's own that opens `url`.

    Every user of the machine can read the arguments that a browser is started with, and the URL holds
    the secret word.
    """
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    descriptor, name = tempfile.mkstemp(  # mode 600
        prefix="logitlens-", suffix=".html", dir=runtime if os.access(runtime, os.W_OK) else None
    )
    page = Path(name)
    try:
        with open(descriptor, "w", encoding="utf-8") as file:
            address = html.escape(url)
            file.write(
                '<!doctype html><meta charset="utf-8"><title>logitlens</title>'
                f'<meta http-equiv="refresh" content="0;url={address}"><a href="{address}">logitlens</a>\n'
            )
        yield page
    finally:
        page.unlink(missing_ok=True)


def open_page(page: Path) -> None:
    """Open the browser, or say that there is none."""
    if not webbrowser.open(page.as_uri()):
        errors().print("no browser could be opened; open the address yourself", markup=False)
