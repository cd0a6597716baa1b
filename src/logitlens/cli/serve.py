"""`logitlens serve`: the page on 127.0.0.1, with a prompt box."""

from __future__ import annotations

import os
import threading
import webbrowser
from typing import Any

import click

from logitlens.cli.options import errors, load_model, loading_options

INTERRUPTED = 130  # the only way it ends


@click.command("serve")
@click.option(
    "-m", "--model", "models", multiple=True, default=("demo",), show_default=True, metavar="MODEL",
    help="Hub name or directory; repeat it to offer several, one in memory at a time.",
)  # fmt: skip
@click.option(
    "--lens", "extra_lenses", multiple=True, metavar="LENS",
    help="Offer tuned:PATH or jacobian:PATH besides logit, tuned and jacobian; repeatable.",
)  # fmt: skip
@click.option(
    "--host", default="127.0.0.1", show_default=True, metavar="ADDRESS",
    help="Address to listen on. Anything else than this machine's own lets others in who know the "
    "secret word, over a connection that is not encrypted.",
)  # fmt: skip
@click.option(
    "--port", default=8765, show_default=True, type=click.IntRange(0, 65535),
    help="Port; 0 takes any free one.",
)  # fmt: skip
@click.option(
    "--allow-host", "allow_hosts", multiple=True, metavar="NAME",
    help="Answer to this name too, as behind a proxy; repeatable.",
)  # fmt: skip
@click.option(
    "--max-tokens", default=4096, show_default=True, type=click.IntRange(min=1),
    help="Longest prompt that is read.",
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
    open_browser: bool,
    **loading: Any,
) -> int:
    """Open the page on 127.0.0.1.

    Type a prompt in the browser and watch it being read; compare readings and export any view as
    one offline file. The printed address ends in a secret word. Ctrl-C ends it, also while a model
    runs; the exit code is then 130.
    """
    from logitlens.server.order import Limits
    from logitlens.server.run import serve

    if host not in ("127.0.0.1", "localhost", "::1"):
        errors().print(
            f"listening on {host}: whoever learns the address below can use the model"
            + (" (with this machine's own name in it)" if host in ("0.0.0.0", "::") else "")
            + "; the connection is not encrypted",
            markup=False,
            soft_wrap=True,
        )

    def ready(address: str) -> None:
        click.echo(address)
        if open_browser:
            # a browser may take its time, and asks for the page meanwhile
            threading.Thread(target=open_page, args=(address,), daemon=True).start()

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
        )
    except KeyboardInterrupt:  # a second one, while the model had its time to end
        ended = False
    errors().print("stopped")
    if not ended:
        # Native code cannot be interrupted, and the interpreter would abort over its thread.
        os._exit(INTERRUPTED)
    return INTERRUPTED


def open_page(address: str) -> None:
    """Open the browser, or say that there is none."""
    if not webbrowser.open(address):
        errors().print("no browser could be opened; open the address yourself", markup=False)
