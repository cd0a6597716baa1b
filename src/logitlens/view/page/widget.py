"""The page as a Jupyter widget (extra `notebook`): data as binary buffers, no frame.

    from logitlens.view.page.widget import PageWidget
    PageWidget([before, after], color="kl")

A Reading at the end of a cell needs no widget. The widget needs no base64, and is a part of the
notebook's own document, as high as its content.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Unpack

from logitlens.errors import MissingExtra
from logitlens.reading import Reading
from logitlens.view import page
from logitlens.view.options import PageOptions
from logitlens.view.page.notebook import HEIGHT, static_table

try:
    import anywidget
    import traitlets
except ImportError as error:  # the module is imported on purpose, so it says what it needs
    raise MissingExtra("anywidget", "notebook", "the widget") from error

# The widget's own part: the host's theme, and the data from Jupyter's buffers.
_RENDER = """
const theme = ({ dataset, className } = document.body, jp = dataset.jpThemeLight) =>
  jp ? (jp == "true" ? "light" : "dark") : /vscode-(dark|light)/.exec(className)?.[1] ?? dataset.theme ?? "auto"
export default {
  async render({ model, el }) {
    const blocks = model.get("blocks"), watch = new MutationObserver(() => postMessage(theme(), "*"))
    const read = name => { const b = blocks[name]; return b.buffer.slice(b.byteOffset, b.byteOffset + b.byteLength) }
    const close = await logitlens.mount(el, { manifest: model.get("manifest"), read }, { theme: theme() })
    watch.observe(document.body, { attributes: true })
    return () => { watch.disconnect(); close() }
  },
}
"""  # noqa: E501


class PageWidget(anywidget.AnyWidget):
    """Readings side by side, as in `page.html`; the same options."""

    _esm = page.script() + _RENDER
    _css = page.style()
    manifest = traitlets.Dict().tag(sync=True)
    blocks = traitlets.Dict().tag(sync=True)

    def __init__(self, readings: Sequence[Reading], **options: Unpack[PageOptions]):
        options.setdefault("height", HEIGHT)
        head, blocks = page.manifest(readings, **options)
        super().__init__(manifest=head, blocks=blocks)
        self._tables = "".join(map(static_table, readings))

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict, dict] | None:
        """With the static table, for places that have no widgets: GitHub, untrusted notebooks."""
        bundle = super()._repr_mimebundle_(**kwargs)
        return bundle and ({**bundle[0], "text/html": self._tables}, bundle[1])
