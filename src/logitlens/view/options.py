"""The options of the views, as types: what `Reading.figure(…)`, `save(…)` and the views accept."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypedDict

if TYPE_CHECKING:
    from matplotlib.colors import Colormap

    from logitlens.select import Selection

Theme = Literal["auto", "dark", "light"]


class GridOptions(TypedDict, total=False):
    """Of the terminal's grid; see `logitlens.view.terminal.render`."""

    color: str
    layers: Selection
    positions: Selection
    width: int | None
    height: int | None
    top: int | None
    values: bool | None
    theme: Theme


class FigureOptions(TypedDict, total=False):
    """Of the heatmap; see `logitlens.view.figure.figure`."""

    color: str
    layers: Selection
    positions: Selection
    cmap: str | Colormap | None
    title: str | None
    caption: bool
    spaces: bool
    words: bool | None
    fontsize: float | None
    figsize: tuple[float, float] | None


class PageOptions(TypedDict, total=False):
    """Of the page; see `logitlens.view.page.html`."""

    color: str
    title: str | None
    theme: Theme
    height: int | None
    state: str


class FileOptions(FigureOptions, PageOptions, total=False):
    """Of a file: those of the view that its suffix names."""

    dpi: int
    width: int | None
    values: bool | None
