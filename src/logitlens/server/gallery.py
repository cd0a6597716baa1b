"""`--share DIR`: the readings kept, as files that any web server or file browser shows.

DIR/index.html lists them, and each is a page of its own. The folder follows the list: a reading that
is deleted goes from it too. Nothing else in the folder is touched.
"""

from __future__ import annotations

import html
import threading
from pathlib import Path

from logitlens.files import write_text
from logitlens.reading import Reading
from logitlens.server.guard import complain
from logitlens.server.history import History
from logitlens.view import page

_INDEX = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<meta name="color-scheme" content="light dark">
<title>Readings · logitlens</title>
<style>body{{font:15px/1.6 system-ui,sans-serif;max-width:760px;margin:32px auto;padding:0 16px}}
li{{margin:6px 0}}small{{opacity:.7}}</style>
<h1>Readings</h1>
<ol reversed>
{items}
</ol>
<p><small>Made with logitlens; each page works without a network.</small></p>
</html>
"""


class Gallery:
    """Keeps a folder in step with a server's readings."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._lock = threading.Lock()
        self._written: dict[str, tuple[Reading, str]] = {}
        folder.mkdir(parents=True, exist_ok=True)
        self._write(None)

    def __call__(self, history: History) -> None:
        """Write what has changed; a folder that cannot be written stops no reading, and is said."""
        try:
            self._write(history)
        except OSError as error:
            complain(f"--share: {error}", error)

    def _write(self, history: History | None) -> None:
        """Write what has changed, each file whole or not at all. Raises OSError."""
        with self._lock:
            entries = history.entries() if history else []
            items = []
            for entry in entries:
                name, label = entry["id"], entry["label"]
                reading = history.find(name) if history else None
                if reading is None:
                    continue
                if self._written.get(name) != (reading, label):
                    write_text(self.folder / f"{name}.html", page.html([reading], title=label))
                    self._written[name] = reading, label
                source = f"{entry['model']} · {entry['lens']}"
                items.append(
                    f'<li><a href="{name}.html">{html.escape(label)}</a> '
                    f"<small>{html.escape(source)}</small></li>"
                )
            write_text(self.folder / "index.html", _INDEX.format(items="\n".join(items)))
            kept = {f"{entry['id']}.html" for entry in entries}
            for name in [name for name in self._written if f"{name}.html" not in kept]:
                (self.folder / f"{name}.html").unlink(missing_ok=True)
                del self._written[name]
