"""A model that is not there: the command line is tested without torch doing any work."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from click.testing import CliRunner

import logitlens
from logitlens.cli import main
from tests.view.conftest import EIFFEL, make


class FakeModel:
    """Takes what LensModel takes, and writes down what it was asked."""

    def __init__(self):
        self.calls: list[tuple[str, dict]] = []
        self.name, self.revision, self.hf = "fake", None, SimpleNamespace()

    def capture(self, prompt, *, progress=None, **options):
        assert progress is None, "stderr is no terminal"
        self.calls.append(("capture", {"prompt": prompt} | options))
        return prompt

    def read(self, prompt, *, lens, progress=None, **options):
        assert progress is None, "stderr is no terminal"
        self.calls.append(("read", {"prompt": prompt, "lens": lens} | options))
        return self._reading(lens, options)

    def readout(self, residuals, *, lens, progress=None, **options):
        assert progress is None, "stderr is no terminal"
        self.calls.append(("readout", {"lens": lens} | options))
        return self._reading(lens, options)

    @staticmethod
    def _reading(lens, options):
        return make(
            EIFFEL, track=len(options["track"]), meta={"model": "fake", "lens": {"name": lens}}
        )


class Cli:
    """Runs the program with a fake model and remembers what was asked of it."""

    def __init__(self, monkeypatch):
        self.model = FakeModel()
        self.loaded: list[tuple] = []
        self.error: BaseException | None = None
        monkeypatch.setattr(logitlens, "load", self._load)

    def _load(self, *args, **options):
        self.loaded.append((args, options))
        if self.error:
            raise self.error
        return self.model

    def __call__(self, *arguments, **options):
        result = CliRunner().invoke(main, list(arguments), prog_name="logitlens", **options)
        assert "Traceback" not in result.output
        return result


@pytest.fixture
def cli(monkeypatch):
    monkeypatch.delenv("LOGITLENS_DEBUG", raising=False)
    monkeypatch.setenv("COLUMNS", "140")
    return Cli(monkeypatch)
