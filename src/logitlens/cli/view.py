"""`logitlens view`: stored readings as a page, or converted."""

from __future__ import annotations

import tempfile
import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING

import click

from logitlens.cli.options import check_outputs, errors, wrote

if TYPE_CHECKING:
    from logitlens.reading import Reading


@click.command("view")
@click.argument("files", nargs=-1, required=True, metavar="FILE…")
@click.option(
    "-o", "--output", metavar="FILE",
    help="Write .html (all readings on one page), or convert one reading to .png, .svg, .pdf, .txt, "
    ".json or .parquet. Default: a page in the temporary folder.",
)  # fmt: skip
@click.option("--title", metavar="TEXT", help="Title of the page. Default: the prompts.")
@click.option(
    "--open/--no-open", "open_browser", default=None,
    help="Open the page in the browser. Default: only without -o.",
)  # fmt: skip
def command(
    files: tuple[str, ...], output: str | None, title: str | None, open_browser: bool | None
) -> None:
    """Open stored readings as a page, or convert them.

    FILE is a .json, .parquet or .html file that logitlens wrote. Several are shown side by side, with
    their tokens aligned. Neither the model nor torch is needed.
    """
    targets = check_outputs([output]) if output else []
    readings = [reading for file in files for reading in load(Path(file))]
    if targets and targets[0].suffix.lower() != ".html":
        if len(readings) != 1:
            raise click.UsageError(
                f"{targets[0].name} holds one reading, {len(readings)} were given: "
                "write a page (.html), or convert them one by one"
            )
        readings[0].save(targets[0])
        wrote(targets[0])
        return
    open_page(readings, targets[0] if targets else None, title, open_browser)


def load(path: Path) -> list[Reading]:
    """The readings of a file: one of .json and .parquet, all of a page. Raises UsageError for another
    suffix, FormatError, OSError."""
    from logitlens.reading import Reading

    suffix = path.suffix.lower()
    if suffix in (".html", ".htm"):
        from logitlens.view import page

        return page.load(path)
    if suffix not in (".json", ".parquet"):
        raise click.UsageError(
            f"cannot view {path}: expected a .json, .parquet or .html file that logitlens wrote"
        )
    return [Reading.load(path)]


def open_page(
    readings: list[Reading],
    target: Path | None,
    title: str | None,
    open_browser: bool | None,
    color: str = "prob",
) -> None:
    """Write the page (without `target`, to a temporary file), print its path, and open it if asked."""
    from logitlens.view import page

    if open_browser is None:
        open_browser = target is None
    if target is None:
        target = Path(tempfile.mkdtemp(prefix="logitlens-")) / "page.html"
    page.save(readings, target, title=title, color=color)
    click.echo(str(target))
    if open_browser and not webbrowser.open(target.resolve().as_uri()):
        errors().print("no browser could be opened; open the file above yourself", markup=False)
