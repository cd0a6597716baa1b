"""Routes of the local page: prompts in; progress, page data and files out.

GET  /                         the page
GET  /assets/NAME              its scripts and style sheets
GET  /api/start                models, lenses, limits, history
GET  /api/readings             history, and the number of its version
POST /api/readings/ID          {"name": …}: name a reading
DELETE /api/readings/ID        delete it
POST /api/read                 an order → progress, one JSON object per line
POST /api/attribute            who wrote a token of a reading → the same
POST /api/patch                a grid of patches → the same
DELETE /api/read/JOB           cancel it; JOB is in the first of those lines
GET  /api/page/IDS             manifest of one or several readings (r1,r2)
GET  /api/page/IDS/BLOCK       one of its blocks
GET  /api/export/IDS           the same as one offline file
"""

from __future__ import annotations

import asyncio
import json
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import replace
from importlib import resources
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import (
    HTMLResponse,
    JSONResponse,
    PlainTextResponse,
    Response,
    StreamingResponse,
)
from starlette.routing import Route

from logitlens.errors import LogitLensError, PromptError
from logitlens.reading import Reading
from logitlens.server.desk import ENDINGS, Desk, Job
from logitlens.server.guard import TooLarge
from logitlens.server.order import Order, Patch, Question
from logitlens.view import page

ASSETS = {
    "page.js": "text/javascript",
    "page.css": "text/css",
    "serve.js": "text/javascript",
    "serve.css": "text/css",
}
Shown = tuple[dict[str, Any], dict[str, bytes], list[Reading]]  # manifest, blocks, whose they are
_COMPARED = 8  # readings on one page
_PAGES_KEPT = 8

_SHELL = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<meta name="color-scheme" content="light dark">
<title>logitlens</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="assets/page.css">
<link rel="stylesheet" href="assets/serve.css">
<main id="serve"></main>
<script src="assets/page.js"></script>
<script src="assets/serve.js"></script>
</html>
"""


def create(desk: Desk, lenses: Sequence[str]) -> Starlette:
    """The application for a desk; wrap it in a Guard before it listens anywhere."""
    routes = Routes(desk, lenses)
    return Starlette(
        routes=[
            Route("/", routes.shell),
            Route("/assets/{name}", routes.asset),
            Route("/api/start", routes.start),
            Route("/api/readings", routes.history),
            Route("/api/readings/{id}", routes.rename, methods=["POST"]),
            Route("/api/readings/{id}", routes.forget, methods=["DELETE"]),
            Route("/api/read", routes.read, methods=["POST"]),
            Route("/api/attribute", routes.attribute, methods=["POST"]),
            Route("/api/patch", routes.patch, methods=["POST"]),
            Route("/api/read/{job}", routes.cancel, methods=["DELETE"]),
            Route("/api/page/{ids}", routes.manifest),
            Route("/api/page/{ids}/{block}", routes.block),
            Route("/api/export/{ids}", routes.export),
        ],
        exception_handlers={
            LogitLensError: _saying(400),
            NotJson: _saying(415, "expected JSON"),
            TooLarge: _saying(413, "the request is too large"),
            404: _saying(404, "nothing here"),
            500: _saying(500, "this request failed on the server; the others go on"),
        },
    )


class Routes:
    """The handlers. The latest pages are kept, so that blocks match their manifest."""

    def __init__(self, desk: Desk, lenses: Sequence[str]):
        self.desk = desk
        self.lenses = list(lenses)
        # by the identities of readings: one that was read again has another
        self.pages: OrderedDict[
            tuple[int, ...], tuple[dict[str, Any], dict[str, bytes], list[Reading]]
        ] = OrderedDict()

    async def shell(self, request: Request) -> Response:
        return HTMLResponse(_SHELL)

    async def asset(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in ASSETS:
            return _plain("no such file", 404)
        text = resources.files("logitlens.view.page").joinpath("assets", name).read_text("utf-8")
        return Response(text, media_type=ASSETS[name])

    async def start(self, request: Request) -> Response:
        desk = self.desk
        limits = {"characters": desk.limits.characters, "tokens": desk.limits.tokens}
        return JSONResponse(
            {
                "models": desk.models,
                "loaded": desk.loaded,
                "lenses": self.lenses,
                "limits": limits | {"top": desk.limits.top, "written": desk.limits.written},
                "history": desk.history.entries(),
                "version": desk.history.version,
            }
        )

    async def history(self, request: Request) -> Response:
        """The readings; only the version where that is the one the asker has."""
        version = self.desk.history.version
        if request.query_params.get("version") == str(version):
            return JSONResponse({"version": version})
        return JSONResponse({"version": version, "history": self.desk.history.entries()})

    async def rename(self, request: Request) -> Response:
        name = (await _json(request)).get("name")
        if not isinstance(name, str):
            raise PromptError("expected a name")
        await asyncio.to_thread(self.desk.history.rename, request.path_params["id"], name)
        return Response(status_code=204)

    async def forget(self, request: Request) -> Response:
        await asyncio.to_thread(self.desk.history.forget, request.path_params["id"])
        return Response(status_code=204)

    async def read(self, request: Request) -> Response:
        """Read a prompt; the answer is a stream of progress that ends in an ending.

        Closing it earlier cancels the prompt.
        """
        data = await _json(request)
        order = Order.of(
            self.desk.history.order_of(data), self.desk.models, self.lenses, self.desk.limits
        )
        if "again" in data:
            order = replace(order, replaces=str(data["again"]))
        return self._put(order)

    async def attribute(self, request: Request) -> Response:
        return self._put(self.desk.history.question(await _json(request)))

    async def patch(self, request: Request) -> Response:
        return self._put(Patch.of(await _json(request), self.desk.models, self.desk.limits))

    def _put(self, order: Order | Question | Patch) -> Response:
        """Join the line; the answer is what happens to the order, one JSON object on each line."""
        loop = asyncio.get_running_loop()
        events: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        job = Job(order, lambda event: loop.call_soon_threadsafe(events.put_nowait, event))
        self.desk.put(job)

        async def lines() -> AsyncIterator[bytes]:
            event: dict[str, Any] = {"state": ""}
            while event["state"] not in ENDINGS:
                try:
                    said = event = await asyncio.wait_for(
                        events.get(), self.desk.limits.patience if event["state"] else None
                    )
                except TimeoutError:  # nothing new: the last event again, unless the model hangs
                    words = self.desk.stalled()
                    said = {"state": "stalled", "message": words} if words else event
                yield json.dumps(said).encode() + b"\n"

        return Progress(lines(), lambda: self.desk.cancel(job.id))

    async def cancel(self, request: Request) -> Response:
        """204: it has ended; 202: it will, before the model's next block."""
        found = self.desk.cancel(request.path_params["job"])
        if not found:
            return _plain("no such prompt waits or runs here: it has ended", 404)
        return Response(status_code=204 if found == "ended" else 202)

    async def manifest(self, request: Request) -> Response:
        head, _ = await self._page(request)
        return Response(page.script_json(head), media_type="application/json")

    async def block(self, request: Request) -> Response:
        _, blocks = await self._page(request)
        data = blocks.get(request.path_params["block"])
        return _plain("no such block", 404) if data is None else Response(data)

    async def export(self, request: Request) -> Response:
        """The readings as an offline file, in the state that the query names."""
        readings = self._readings(request.path_params["ids"])
        state = request.query_params.get("state", "")[:5000]
        text = await asyncio.to_thread(page.html, readings, state=state)
        return HTMLResponse(
            text,
            headers={
                "content-disposition": 'attachment; filename="logitlens.html"',
                # the file carries its own policy, with the hash of its script
                "content-security-policy": "sandbox",
            },
        )

    async def _page(self, request: Request) -> tuple[dict[str, Any], dict[str, bytes]]:
        ids = request.path_params["ids"]
        readings = self._readings(ids)
        key = tuple(map(id, readings))
        if key not in self.pages:
            head, blocks = await asyncio.to_thread(page.manifest, readings)
            self.pages[key] = head, blocks, readings  # which keeps their identities
            while len(self.pages) > _PAGES_KEPT:
                self.pages.popitem(last=False)
        self.pages.move_to_end(key)
        return self.pages[key][:2]

    def _readings(self, ids: str) -> list[Reading]:
        names = ids.split(",")
        if len(names) > _COMPARED:
            raise PromptError(f"{len(names)} readings on one page; at most {_COMPARED}")
        readings = []
        for name in names:
            reading = self.desk.history.find(name)
            if reading is None:
                raise PromptError(
                    f"no reading {name[:40]!r} here any more: the server keeps the latest, and "
                    "forgets all when it ends"
                )
            readings.append(reading)
        return readings


class Progress(StreamingResponse):
    """JSON lines; `closed` is called when they end, even if the client has left."""

    def __init__(self, lines: AsyncIterator[bytes], closed: Callable[[], object]):
        super().__init__(lines, media_type="application/x-ndjson")
        self.closed = closed

    async def __call__(self, *args: Any) -> None:
        try:
            await super().__call__(*args)
        finally:
            self.closed()


async def _json(request: Request) -> dict[str, Any]:
    """The object of a request. Raises PromptError, and NotJson for what was not sent as JSON."""
    if request.headers.get("content-type", "").partition(";")[0] != "application/json":
        raise NotJson
    try:
        data = json.loads(await request.body())
    except ValueError as error:
        raise PromptError(f"not JSON: {error}") from error
    except RecursionError:
        raise PromptError("not JSON: nested too deeply") from None
    if not isinstance(data, dict):
        raise PromptError("expected a JSON object with the prompt")
    return data


class NotJson(Exception):
    """A request that was not sent as JSON."""


def _plain(words: str, status: int) -> Response:
    return PlainTextResponse(words + "\n", status)


def _saying(status: int, words: str = "") -> Callable[..., Awaitable[Response]]:
    """A handler of exceptions: it answers in these words, or in the exception's own."""

    async def answer(request: Request, error: Exception) -> Response:
        return _plain(words or " ".join(str(error).split()), status)

    return answer
