"""The readings that a server keeps: the latest, with the orders they were asked with and people's names.

Any thread may look, rename and forget; the worker's adds.
"""

from __future__ import annotations

import itertools
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from logitlens.errors import PromptError
from logitlens.reading import Reading
from logitlens.server.order import Limits, Order, Question, before
from logitlens.view.page import words

Event = dict[str, Any]


class History:
    """Readings by id, oldest first."""

    def __init__(self, changed: Callable[[History], object] = lambda history: None):
        """changed: called, in any thread, after the readings changed."""
        self.readings: OrderedDict[str, Reading] = OrderedDict()
        self.orders: dict[str, Order] = {}
        self.names: dict[str, str] = {}  # that people gave
        self.version = 0  # counts changes
        self.changed = changed
        self._numbers = itertools.count(1)
        self._lock = threading.RLock()  # guards the dictionaries

    def add(self, made: Sequence[tuple[Order, Reading]], limits: Limits) -> list[Event]:
        """Add readings, for which the oldest go. Those that are followed take the place of their own."""
        with self._lock:
            names = []
            for order, reading in made:
                name = order.replaces or f"r{next(self._numbers)}"
                names.append(name)
                self.orders[name], self.readings[name] = replace(order, replaces=""), reading
            for oldest in [name for name in self.readings if name not in names]:
                if len(self.readings) <= limits.history and (self._bytes() <= limits.history_bytes):
                    break
                del self.readings[oldest], self.orders[oldest]
                self.names.pop(oldest, None)
            entries = [self._entry(name, self.readings[name]) for name in names]
        self._change()
        return entries

    def find(self, name: str) -> Reading | None:
        """An earlier reading, if it is still kept."""
        with self._lock:
            return self.readings.get(name)

    def order_of(self, data: Event) -> Event:
        """JSON in which what refers to an earlier reading is filled in.

        {"again": id, "track": …}    that reading with more tokens tracked, in its place
        {"from": {"id", "position", "token"}, …}   its ids up to a position, and a token: the prompt, for
                                                   its model

        Raises PromptError if the reading is no longer kept.
        """
        if "again" in data:
            order = self.order(str(data["again"]))
            more = data.get("track", [])
            track = [*order.track, *more] if isinstance(more, list) else more
            return order.plain() | {"track": track}
        if "from" in data:
            start = data["from"] if isinstance(data["from"], dict) else {}
            reading = self.reading(str(start.get("id")))
            ids = before(reading, start.get("position"))
            prompt = [*ids, *([start["token"]] if "token" in start else [])]
            return data | {"model": self.order(str(start["id"])).model, "prompt": prompt}
        return data

    def question(self, data: Event) -> Question:
        """A question about a cell of a reading. Raises PromptError."""
        name = str(data.get("id"))
        return Question.of(data, self.reading(name), self.order(name))

    def order(self, name: str) -> Order:
        """What a reading was asked with. Raises PromptError if it is no longer kept."""
        with self._lock:
            self.reading(name)
            return self.orders[name]

    def reading(self, name: str) -> Reading:
        """One of the readings. Raises PromptError if it is no longer kept."""
        reading = self.find(name)
        if reading is None:
            raise PromptError(f"no reading {name[:40]!r} here any more: read the prompt again")
        return reading

    def rename(self, name: str, label: str) -> None:
        """Name a reading. Raises PromptError if it is no longer kept."""
        label = label.encode("utf-8", "replace").decode()  # half a surrogate pair is no text
        with self._lock:
            self.reading(name)
            self.names[name] = " ".join(label.split())[:120]
        self._change()

    def forget(self, name: str) -> None:
        """Delete a reading. Raises PromptError if it is no longer kept."""
        with self._lock:
            self.reading(name)
            for kept in (self.readings, self.orders, self.names):
                kept.pop(name, None)
        self._change()

    def _change(self) -> None:
        self.version += 1
        self.changed(self)

    def entries(self) -> list[Event]:
        """The readings kept, newest first."""
        with self._lock:
            kept = reversed(self.readings.items())
            return [self._entry(name, reading) for name, reading in kept]

    def _entry(self, name: str, reading: Reading) -> Event:
        about = words.about(reading)
        notes = [about["lens"], *([about["edited"]] if about["edited"] else [])]
        if written := reading.meta.get("generation"):
            count = len(written["ids"])
            notes.append(f"{count} token{'s' * (count != 1)} written")
        return {
            "id": name,
            "label": self.names.get(name) or words.label(reading),
            "model": about["model"],
            "lens": " · ".join(notes),
            "shape": list(reading.shape),
            "text": reading.prompt,
            "order": self.orders[name].plain(),
        }

    def _bytes(self) -> int:
        arrays = (vars(reading).values() for reading in self.readings.values())
        return sum(getattr(value, "nbytes", 0) for values in arrays for value in values)
