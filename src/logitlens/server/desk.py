"""One model at a time: a queue of prompts, a worker thread, and words for what went wrong.

Models and residuals are large, so a single thread loads, reads and answers; everybody else waits in
line and hears how many are ahead. A job ends as done, error or cancelled, and the next one runs.
Whoever holds a job's id may cancel it: a waiting job ends immediately, a running one before the
model's next block, which leaves the model as it was.
"""

from __future__ import annotations

import contextlib
import gc
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from logitlens.errors import LogitLensError, PromptError, UnsupportedModel, out_of_memory
from logitlens.reading import Reading
from logitlens.server import work
from logitlens.server.history import History
from logitlens.server.order import Limits, Order, Patch, Question

Loader = Callable[[str], Any]
Event = dict[str, Any]

ENDINGS = ("done", "error", "cancelled")  # states that no other state follows
_EVENT_SECONDS = 0.1  # between two events of one phase
_PHASES = {"blocks": "block", "positions": "position", "layers": "layer"}


class Cancelled(Exception):
    """Raised in the worker's thread to end a cancelled job; the message says where."""


@dataclass(eq=False)
class Job:
    """An order in line; `tell` is called, from any thread, with each event.

    The id is a secret between the desk and the asker, who may cancel with it.
    """

    order: Order | Question | Patch
    tell: Callable[[Event], object]
    id: str = field(default_factory=lambda: secrets.token_urlsafe(12))
    cancelled: bool = False
    over: bool = False  # its ending was sent
    began: float = field(default_factory=time.monotonic)


class Desk:
    """Models by name, a line of jobs, and the history of their readings."""

    def __init__(
        self,
        models: Sequence[str],
        load: Loader,
        *,
        limits: Limits | None = None,
        preload: bool = False,
        changed: Callable[[History], object] = lambda history: None,
    ):
        """preload: load the first model now. changed: called, in any thread, after the readings changed."""
        self.models = list(models)
        self.history = History(changed)
        self._preload = preload
        self.limits = limits or Limits()
        self._load = load
        self._model: tuple[str, Any] | None = None
        self._line: deque[Job] = deque()
        self._running: Job | None = None
        self._loading: str | None = None
        self._sign = 0.0  # when the running model last gave a sign of life, and where that was
        self._where = ""
        self._changed = threading.Condition()  # guards everything above
        self._stopped = False
        self._worker = threading.Thread(target=self._work, name="logitlens-desk", daemon=True)
        self._worker.start()

    @property
    def loaded(self) -> str | None:
        """Name of the model in memory."""
        return self._model[0] if self._model else None

    def put(self, job: Job) -> None:
        """Join the line. Raises PromptError when it is full."""
        with self._changed:
            if len(self._line) >= self.limits.waiting:
                raise PromptError(
                    f"{len(self._line)} prompts are waiting already: try again in a moment"
                )
            if self._stopped:
                self._end(job, {"state": "error", "message": "the server has ended"})
                return
            self._line.append(job)
            self._tell_place(job, len(self._line) - 1)
            if self._loading and self._running is None:
                self._tell(job, {"state": "loading", "model": self._loading})
            self._changed.notify()

    def cancel(self, name: str) -> Literal["ended", "ending"] | None:
        """Cancel a job that waits or runs; None if there is no such job (any more).

        A waiting job has ended on return, and so has one whose model is being loaded (the loading goes
        on, for whoever comes next). A running one is "ending": it ends before the model's next block.
        """
        with self._changed:
            if self._running and self._running.id == name and not self._running.over:
                job = self._running
                job.cancelled = True
                if self._loading:
                    self._end(job, _cancelled(f"while {self._loading} was being loaded"))
                return "ended" if job.over else "ending"
            for place, job in enumerate(self._line):
                if job.id == name:
                    del self._line[place]
                    self._end(job, _cancelled("before its turn"))
                    self._tell_line()
                    return "ended"
            return None

    def stalled(self) -> str:
        """A sentence if the running model has given no sign of life for long; else empty."""
        with self._changed:
            seconds = time.monotonic() - self._sign
            if self._running is None or self._loading or seconds < self.limits.patience:
                return ""
            return (
                f"the model has not returned for {seconds:.0f} s, {self._where}; "
                "if it never does, restart the server"
            )

    def stop(self, wait: float = 0) -> bool:
        """Tell everybody that the server has ended, and end the worker's thread.

        Waits up to `wait` seconds for the running job to let go of the model; False if it has not.
        """
        with self._changed:
            self._stopped = True
            for job in [*self._line, *([self._running] if self._running else [])]:
                job.cancelled = True
                self._end(job, {"state": "error", "message": "the server has ended"})
            self._line.clear()
            self._changed.notify()
        self._worker.join(wait)
        return not self._worker.is_alive()

    # -- telling -------------------------------------------------------------------------------

    @staticmethod
    def _tell(job: Job, event: Event) -> None:
        """Tell a job's asker, who may have gone (and the event loop with them)."""
        if not job.over:
            with contextlib.suppress(RuntimeError):
                job.tell(event)

    def _end(self, job: Job, event: Event) -> None:
        """Send the ending; a job has one, whichever thread comes first."""
        with self._changed:
            self._tell(job, event)
            job.over = True

    def _tell_place(self, job: Job, place: int) -> None:
        ahead = place + (self._running is not None)
        self._tell(job, {"state": "waiting", "job": job.id, "ahead": ahead})

    def _tell_line(self) -> None:
        for place, job in enumerate(self._line):
            self._tell_place(job, place)

    # -- the worker's thread --------------------------------------------------------------------

    def _work(self) -> None:
        if self._preload:
            with contextlib.suppress(BaseException):  # whoever asks for it will hear why
                self._put_in(self.models[0])
        while True:
            with self._changed:
                while not self._line and not self._stopped:
                    self._changed.wait()
                if self._stopped:
                    return
                job = self._running = self._line.popleft()
                self._seen("before its first block")
                self._tell_line()
            self._end(job, self._answer(job))
            with self._changed:
                self._running = None

    def _answer(self, job: Job) -> Event:
        """Read; whatever happens becomes the job's ending, and the thread goes on."""
        try:
            return self._read(job)
        except Cancelled as where:
            return _cancelled(str(where))
        except BaseException as error:
            return {"state": "error", "message": self._failure(error)}

    def _failure(self, error: BaseException) -> str:
        """Words for an error. A model that failed is dropped: its state cannot be trusted."""
        if out_of_memory(error):
            self._drop()
            return "out of memory: shorten the prompt or choose a smaller model"
        if isinstance(error, LogitLensError):
            if isinstance(error, UnsupportedModel) and error.__cause__:
                self._drop()  # its forward raised
            return _line(error)
        self._drop()
        return f"the model failed ({type(error).__name__}: {_line(error)}); it will be loaded again"

    def _read(self, job: Job) -> Event:
        order = job.order
        model = self._get(order.model, job)
        if isinstance(order, Question):
            return self._done(job, attribution=work.attribute(order, model))
        if isinstance(order, Patch):
            progress = self._progress(job, {"tokens": 0, "lens": ""})
            return self._done(job, grid=work.patch(order, model, progress))
        tokens = work.tokens_of(model, order.prompt, self.limits)
        progress = self._progress(job, {"tokens": tokens, "lens": ", ".join(order.lenses)})
        if order.replaces:
            made = [
                (order, work.follow(order, self.history.reading(order.replaces), model, progress))
            ]
        else:
            if isinstance(order.prompt, tuple) and isinstance(order.prompt[0], int):
                order = _as_text(order, model)
            writing = {
                "tell": lambda event: self._tell(job, event),
                "stopped": lambda: job.cancelled,
            }
            try:
                made = list(work.read(order, model, progress=progress, **writing))
            except Exception as error:
                written = getattr(error, "reading", None)
                if written is None:
                    raise
                self.history.add([(replace(order, lenses=order.lenses[:1]), written)], self.limits)
                error.add_note("what was written until then is kept")
                raise
        return self._keep(job, made)

    def _progress(self, job: Job, facts: Event) -> Callable[[str, int, int], None]:
        """A callback for the model: reports to the asker now and then, and ends a cancelled job."""
        reported: tuple[str, float] = ("", 0)

        def progress(phase: str, done: int, total: int) -> None:
            nonlocal reported
            where = f"{_PHASES.get(phase, phase)} {done:,} of {total:,}"
            if job.cancelled:
                raise Cancelled(f"at {where}")
            now = self._seen(f"after {where}")
            if phase != reported[0] or now - reported[1] >= _EVENT_SECONDS:
                reported = phase, now
                event = {"state": "running", "phase": phase, "done": done, "total": total}
                self._tell(job, event | facts)

        return progress

    def _seen(self, where: str) -> float:
        """Note a sign of life of the model."""
        with self._changed:
            self._sign, self._where = time.monotonic(), where
            return self._sign

    def _keep(self, job: Job, made: Sequence[tuple[Order, Reading]]) -> Event:
        """Add readings to the history, which makes their job done. Raises Cancelled."""
        with self._changed:
            # a text that was stopped is kept as far as it came
            if job.cancelled and not any("generation" in reading.meta for _, reading in made):
                raise Cancelled("at the last moment")
        entries = self.history.add(made, self.limits)
        return self._done(job, **entries[0], entries=entries)

    def _done(self, job: Job, **found: Any) -> Event:
        seconds = round(time.monotonic() - job.began, 3)
        event = {"state": "done", "seconds": seconds, **found}
        self._end(job, event)
        return event

    def _get(self, name: str, job: Job) -> Any:
        """The model, loaded in place of another if necessary. Raises Cancelled."""
        if not self._model or self._model[0] != name:
            with self._changed:
                if job.cancelled:
                    raise Cancelled("before its model was loaded")
                self._loading = name
                self._tell(job, {"state": "loading", "model": name})
            self._put_in(name)
        if job.cancelled:
            raise Cancelled("before the model ran")
        assert self._model is not None
        return self._model[1]

    def _put_in(self, name: str) -> None:
        """Load a model in place of the one in memory."""
        self._loading = name
        try:
            self._drop()
            self._model = (name, self._load(name))
        finally:
            self._seen("before its first block")
            self._loading = None

    def _drop(self) -> None:
        """Free the model, and its memory on the device."""
        self._model = None
        gc.collect()
        import torch

        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _as_text(order: Order, model: Any) -> Order:
    """An order of ids as one of text, where that is the same."""
    text = model.tokens.text(list(order.prompt))
    try:
        same = bool(text) and model.tokens.encode(text) == list(order.prompt)
    except PromptError:
        same = False
    return replace(order, prompt=text) if same else order


def _cancelled(where: str) -> Event:
    return {"state": "cancelled", "message": f"cancelled {where}"}


def _line(error: BaseException) -> str:
    notes = getattr(error, "__notes__", [])
    return "; ".join([" ".join(str(error).split())[:500], *notes])
