"""The widget's module in a browser, with what anywidget hands to it: a model of traits and buffers."""

from __future__ import annotations

import base64

import pytest

from tests.view import page_synthetic as synthetic

pytestmark = pytest.mark.browser
pytest.importorskip("anywidget")


def test_a_place_without_widgets_shows_the_tables():
    from logitlens.view.page.widget import PageWidget

    readings = [synthetic.plausible(T=6), synthetic.plausible(T=6, lens="tuned")]
    data, _ = PageWidget(readings)._repr_mimebundle_()
    assert data["text/html"].count("<table") == 2
    assert "tuned lens" in data["text/html"]
    assert "application/vnd.jupyter.widget-view+json" in data


@pytest.mark.slow
def test_buffers_become_a_page(chromium):
    from logitlens.view.page.widget import PageWidget

    widget = PageWidget([synthetic.plausible(T=6)], color="entropy")
    blocks = {name: base64.b64encode(data).decode() for name, data in widget.blocks.items()}
    tab = chromium.new_page()
    tab.set_content(f"<body data-jp-theme-light='false'><style>{widget._css}</style><div></div>")
    tab.evaluate(
        """async ([esm, manifest, data]) => {
        const url = URL.createObjectURL(new Blob([esm], {type: 'text/javascript'}))
        const module = await import(url), blocks = {}
        for (const name in data) {
          // as Jupyter does: each buffer is a view into a larger one
          const bytes = Uint8Array.from(atob(data[name]), c => c.charCodeAt(0))
          const whole = new Uint8Array(bytes.length + 7)
          whole.set(bytes, 3)
          blocks[name] = new DataView(whole.buffer, 3, bytes.length)
        }
        const traits = {manifest, blocks}, el = document.querySelector('div')
        window.away = await module.default.render({model: {get: k => traits[k]}, el})
        }""",
        [
            str(widget._esm),
            widget.manifest,
            blocks,
        ],
    )
    tab.wait_for_function(
        "document.querySelectorAll('[role=columnheader]').length == 6"
    )  # a frame later
    assert tab.locator("select[aria-label=Colour]").input_value() == "entropy"
    # The answer forms in the layers before the last, which a cut grid shows first.
    left = "sc => sc.scrollHeight - sc.clientHeight - sc.scrollTop"
    assert tab.locator(".sc").evaluate("sc => sc.scrollTop") > 0
    assert tab.locator(".sc").evaluate(left) < 2
    assert tab.locator(".ll").get_attribute("data-theme") == "dark"
    tab.keyboard.press("?")
    assert tab.locator("dialog[open]").count() == 0, "the notebook keeps its own keys"
    tab.evaluate("document.body.dataset.jpThemeLight = 'true'")
    tab.locator(".ll[data-theme=light]").wait_for()
    tab.evaluate("window.away()")
    assert tab.locator(".sc").count() == 0
    tab.close()
