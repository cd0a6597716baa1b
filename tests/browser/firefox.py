"""Firefox as the distribution ships it, driven by its own WebDriver BiDi.

Playwright drives a Firefox of its own, which it downloads.
"""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

KEYS = {
    "Enter": "\ue007", "Escape": "\ue00c", "Tab": "\ue004", "Home": "\ue011", "End": "\ue010",
    "ArrowLeft": "\ue012", "ArrowUp": "\ue013", "ArrowRight": "\ue014", "ArrowDown": "\ue015",
    "Control": "\ue009", "Shift": "\ue008",
}  # fmt: skip
PATIENCE = 180.0  # seconds


class Firefox:
    """One window of a real Firefox; `problems` holds what its pages asked for or complained of."""

    def __init__(self) -> None:
        import websocket

        self.problems: list[str] = []
        self._allowed = ("file:", "data:", "blob:", "about:", "moz-extension:")
        self._profile = tempfile.mkdtemp()
        program = shutil.which("firefox-esr") or shutil.which("firefox") or ""
        command = [program, "--headless", "--remote-debugging-port=0", "--profile", self._profile]
        log = Path(self._profile, "log")  # a pipe that nobody reads would fill up
        with log.open("w") as file:
            self._process = subprocess.Popen(command, stderr=file)
        end = time.monotonic() + PATIENCE
        while not (found := re.search(r"WebDriver BiDi listening on (\S+)", log.read_text())):
            assert self._process.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.05)
        self._socket = websocket.create_connection(
            found[1] + "/session", timeout=PATIENCE, suppress_origin=True
        )
        self._number = 0
        self.send("session.new", capabilities={})
        self.send("session.subscribe", events=["log.entryAdded", "network.beforeRequestSent"])
        self.tab = self.send("browsingContext.getTree")["contexts"][0]["context"]

    def close(self) -> None:
        self.send("browser.close")
        self._socket.close()
        self._process.wait(PATIENCE)
        shutil.rmtree(self._profile, ignore_errors=True)

    def send(self, method: str, **parameters: Any) -> Any:
        """A command of the protocol and its result; events on the way are looked at."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        self._socket.send(json.dumps(message))
        while True:
            answer = json.loads(self._socket.recv())
            if answer.get("id") == self._number:
                assert answer["type"] == "success", answer
                return answer["result"]
            self._look_at(answer.get("method"), answer.get("params"))

    def _look_at(self, event: str, found: dict[str, Any]) -> None:
        if event == "log.entryAdded" and found["level"] in ("warn", "error"):
            self.problems.append(found["text"])
        elif event == "network.beforeRequestSent":
            url = found["request"]["url"]
            if not url.startswith(self._allowed):
                self.problems.append(f"request: {url}")

    def open(self, url: str, *, width: int = 1280, height: int = 900) -> None:
        self._allowed = (*self._allowed, url.partition("?")[0])
        size = {"width": width, "height": height}
        self.send("browsingContext.setViewport", context=self.tab, viewport=size)
        self.send("browsingContext.navigate", context=self.tab, url="about:blank", wait="complete")
        self.send("browsingContext.navigate", context=self.tab, url=url, wait="complete")

    def js(self, expression: str) -> Any:
        """The value of an expression in the page, once drawn: what JSON can hold."""
        drawn = "new Promise(d => requestAnimationFrame(() => requestAnimationFrame(d)))"
        result = self.send(
            "script.evaluate",
            expression=f"{drawn}.then(() => JSON.stringify(({expression}) ?? null))",
            target={"context": self.tab},
            awaitPromise=True,
        )
        assert result["type"] == "success", result["exceptionDetails"]["text"]
        return json.loads(result["result"]["value"])

    def text(self, selector: str) -> str:
        return self.js(f"document.querySelector({json.dumps(selector)})?.innerText ?? ''")

    def wait(self, expression: str) -> Any:
        """Until an expression is true."""
        end = time.monotonic() + PATIENCE
        while not (value := self.js(expression)):
            assert time.monotonic() < end, f"never true: {expression}\n{self.text('body')[:2000]}"
        return value

    def press(self, *keys: str) -> None:
        """Keys one after the other; "Control+End" holds the first."""
        actions = []
        for key in keys:
            held = [KEYS.get(part, part) for part in re.split(r"(?<=.)\+", key)]
            actions += [{"type": "keyDown", "value": part} for part in held]
            actions += [{"type": "keyUp", "value": part} for part in reversed(held)]
        source = {"type": "key", "id": "keys", "actions": actions}
        self.send("input.performActions", context=self.tab, actions=[source])

    def point(self, x: float, y: float, *, click: bool = False) -> None:
        actions: list[dict[str, Any]] = [{"type": "pointerMove", "x": round(x), "y": round(y)}]
        if click:
            actions += [{"type": "pointerDown", "button": 0}, {"type": "pointerUp", "button": 0}]
        source = {"type": "pointer", "id": "mouse", "actions": actions}
        self.send("input.performActions", context=self.tab, actions=[source])

    def click(self, selector: str) -> None:
        """The middle of the first element that fits."""
        found = f"document.querySelector({json.dumps(selector)})"
        self.js(f"{found}.scrollIntoView({{block: 'nearest'}})")
        box = self.js(f"(({found}).getBoundingClientRect().toJSON())")
        self.point(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2, click=True)

    def screenshot(self, path: str | Path) -> None:
        data = self.send("browsingContext.captureScreenshot", context=self.tab)["data"]
        Path(path).write_bytes(base64.b64decode(data))
