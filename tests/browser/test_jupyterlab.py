"""The page in JupyterLab itself, where that is installed: `pip install jupyterlab`, then `pytest -m slow`.

JupyterLab is not in the lock: it is large, and only these tests need it.
"""

from __future__ import annotations

import base64
import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest

from logitlens.view.page import notebook

pytestmark = [pytest.mark.browser, pytest.mark.slow]
pytest.importorskip("jupyterlab", reason="JupyterLab is not installed (pip install jupyterlab)")
nbformat = pytest.importorskip("nbformat")

READ = (
    "import logitlens\n"
    "model = logitlens.load()\n"
    "reading = model.read('The Eiffel Tower is in the city of', top=5, track=[' Paris'])\n"
)
TOKEN = "only-for-this-test"


class Lab:
    """A JupyterLab on the loopback, and tabs that show its notebooks."""

    def __init__(self, browser, folder, port):
        self.browser, self.folder, self.url = browser, folder, f"http://127.0.0.1:{port}"

    def write(self, name, *cells):
        """A notebook with these code cells, unless it is there; its path."""
        path = self.folder / name
        book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells])
        book.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
        nbformat.write(book, path)
        return path

    def open(self, name):
        context = self.browser.new_context(viewport={"width": 1500, "height": 1100})
        tab = context.new_page()
        tab.set_default_timeout(60_000)
        tab.goto(f"{self.url}/lab/tree/{name}?token={TOKEN}&reset")
        tab.locator(".jp-Notebook").wait_for()
        tab.locator(".jp-Notebook .jp-CodeCell").first.wait_for()
        # the kernel has to be there before a cell can run
        tab.wait_for_function(
            "() => jupyterapp.shell.currentWidget?.sessionContext?.session?.kernel?.status == 'idle'"
        )
        return tab

    @staticmethod
    def do(tab, command):
        tab.evaluate("c => jupyterapp.commands.execute(c)", command)

    def run(self, tab):
        """Run all cells, to the end, and save."""
        tab.evaluate("() => jupyterapp.commands.execute('notebook:run-all-cells')")
        tab.wait_for_function(
            "() => [...document.querySelectorAll('.jp-CodeCell .jp-InputArea-prompt')]"
            ".every(e => /\\d/.test(e.textContent))",
            timeout=180_000,
        )
        self.do(tab, "docmanager:save")


@pytest.fixture(scope="module")
def lab(chromium, tmp_path_factory):
    """A running JupyterLab with settings of its own."""
    folder = tmp_path_factory.mktemp("lab")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    homes = {f"JUPYTER_{n}_DIR": str(folder / n.lower()) for n in ("CONFIG", "DATA", "RUNTIME")}
    books = folder / "books"
    books.mkdir()
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"]
    command += ["--ip=127.0.0.1", f"--port={port}", f"--IdentityProvider.token={TOKEN}"]
    command += ["--LabApp.expose_app_in_browser=True", f"--ServerApp.root_dir={books}"]
    command += ["--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            command, env=os.environ | homes, cwd=books, stdout=log, stderr=subprocess.STDOUT
        )
        try:
            for _ in range(240):
                assert process.poll() is None, (folder / "log").read_text()
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/api?token={TOKEN}").close()
                    break
                except (urllib.error.URLError, ConnectionError):
                    time.sleep(0.25)
            yield Lab(chromium, books, port)
        finally:
            process.terminate()
            process.wait(30)


def frame_of(tab, n=0):
    return tab.locator(".jp-OutputArea iframe[title=logitlens]").nth(n).content_frame


def test_a_reading_is_the_page_and_obeys_mouse_and_keys(lab):
    lab.write("read.ipynb", READ + "reading")
    tab = lab.open("read.ipynb")
    lab.run(tab)
    frame = frame_of(tab)
    frame.locator(".sc").wait_for()
    frame.locator(".sc canvas").hover(position={"x": 200, "y": 60})
    assert "entropy" in frame.locator(".card").inner_text()
    frame.locator(".sc canvas").click(position={"x": 200, "y": 60})
    frame.locator(".card .pin").first.click()
    frame.locator(".chips .lab", has_text="Pinned").wait_for()
    tab.keyboard.press("Escape")
    cells = tab.locator(".jp-CodeCell").count()
    for key in ("ArrowDown", "ArrowRight", "a", "b", "d", "d", "End"):  # a, b, dd are JupyterLab's
        tab.keyboard.press(key)
    assert "position 9," in frame.locator("[aria-live=polite]").inner_text()
    assert tab.locator(".jp-CodeCell").count() == cells, "the page's keys are the page's"
    tab.context.close()


def test_a_cell_that_runs_again_shows_one_page(lab):
    lab.write("again.ipynb", READ + "reading")
    tab = lab.open("again.ipynb")
    for _ in range(3):
        lab.run(tab)
    frame_of(tab).locator(".sc").wait_for()
    assert tab.locator("iframe[title=logitlens]").count() == 1
    assert tab.locator(".jp-OutputArea table").count() == 0
    tab.context.close()


def test_the_page_and_the_widget_follow_the_theme(lab):
    widget = "from logitlens.view.page.widget import PageWidget\nPageWidget([reading])"
    lab.write("dark.ipynb", READ + "reading", widget)
    tab = lab.open("dark.ipynb")
    for theme in ("Dark", "Light"):
        tab.evaluate(
            "theme => jupyterapp.commands.execute('apputils:change-theme', {theme})",
            f"JupyterLab {theme}",
        )
        tab.locator(f"body[data-jp-theme-name='JupyterLab {theme}']").wait_for(state="attached")
        if theme == "Dark":
            lab.run(tab)
        for page in (frame_of(tab), tab.locator(".jp-OutputArea")):
            page.locator(f".ll[data-theme={theme.lower()}]").wait_for()
    tab.context.close()


def test_an_untrusted_notebook_shows_the_table(lab):
    path = lab.write("trusted.ipynb", READ + "reading")
    tab = lab.open("trusted.ipynb")
    lab.run(tab)
    frame_of(tab).locator(".sc").wait_for()
    book = wait_for_outputs(path)
    tab.context.close()
    tab = lab.open("trusted.ipynb")
    frame_of(tab).locator(".sc").wait_for()  # trusted, without running anything
    tab.context.close()
    # as if a stranger had written it: its signature is not known
    book["metadata"]["note"] = "changed by another hand"
    (lab.folder / "foreign.ipynb").write_text(json.dumps(book))
    tab = lab.open("foreign.ipynb")
    table = tab.locator(".jp-OutputArea table")
    table.wait_for()
    assert "␣Paris" in table.inner_text()
    assert tab.locator("iframe[title=logitlens]").count() == 0
    tab.context.close()


def wait_for_outputs(path):
    """The saved notebook, once its last cell has outputs in it."""
    for _ in range(120):
        book = json.loads(path.read_text())
        if book["cells"][-1].get("outputs"):
            return book
        time.sleep(0.25)
    raise AssertionError("the notebook was not saved with its outputs")


def test_the_widget_shows_and_goes_away(lab):
    pytest.importorskip("anywidget")
    code = "from logitlens.view.page.widget import PageWidget\n"
    code += "other = model.read('The Colosseum is in the city of', top=5)\n"
    lab.write("widget.ipynb", READ + code + "PageWidget([reading, other], color='entropy')")
    tab = lab.open("widget.ipynb")
    lab.run(tab)
    tab.locator(".jp-OutputArea .ll .sc").first.wait_for()
    assert tab.locator(".jp-OutputArea .sc").count() == 2
    assert tab.locator("select[aria-label=Colour]").input_value() == "entropy"
    tab.locator(".sc canvas").first.hover(position={"x": 100, "y": 60})
    assert tab.locator(".pop section").count() == 2
    lab.run(tab)
    tab.locator(".jp-OutputArea .ll .sc").first.wait_for()
    assert tab.locator(".jp-OutputArea .sc").count() == 2, "the one before is gone"
    tab.context.close()


def test_a_foreign_notebook_shows_tables_for_widgets(lab):
    widget = "from logitlens.view.page.widget import PageWidget\nPageWidget([reading, reading])"
    path = lab.write("shown.ipynb", READ, widget)
    tab = lab.open("shown.ipynb")
    lab.run(tab)
    tab.locator(".jp-OutputArea .ll .sc").first.wait_for()
    book = wait_for_outputs(path)
    tab.context.close()
    book["metadata"]["note"] = "changed by another hand"
    (lab.folder / "foreign-widget.ipynb").write_text(json.dumps(book))
    tab = lab.open("foreign-widget.ipynb")
    tab.locator(".jp-OutputArea table").first.wait_for()
    assert tab.locator(".jp-OutputArea table").count() == 2
    tab.context.close()


def test_ten_readings_keep_a_notebook_light(lab):
    prompts = ["The capital of France is", "Two and two is", "Once upon a time"]
    cells = [f"model.read({prompts[i % 3] + ' ' + str(i)!r}, top=5)" for i in range(10)]
    path = lab.write("ten.ipynb", READ, *cells)
    tab = lab.open("ten.ipynb")
    lab.run(tab)
    frame_of(tab).locator(".sc").wait_for()
    book = wait_for_outputs(path)
    pages = [c["outputs"][0]["data"]["text/html"] for c in book["cells"][1:]]
    scripts = [script_of("".join(p)) for p in pages]
    assert max(scripts) <= notebook.SCRIPT_LIMIT, scripts
    assert path.stat().st_size < 10 * 70_000, path.stat().st_size
    tab.context.close()


def script_of(cell: str) -> int:
    """Bytes of script in a cell: all but the table, the style, and the reading's own data."""
    frame = json.loads(re.search(r"f\.srcdoc=(\".*\");e\.replaceChildren", cell, re.S)[1])
    blocks = re.findall(r'data-ll="([^"]+)">([^<]*)</script>', frame)
    packed = dict(blocks)["js"]
    assert packed == base64.b64encode(notebook.packed_script()).decode()
    return len(packed) + len(notebook._UNPACK) + len(notebook._HOST)
