"""A tiny model on the disk, and labelled prompts for it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

import logitlens
from logitlens.survey.plan import Settings
from logitlens.survey.run import run
from tests.models import tiny_gpt2, tiny_tokenizer

WORDS = ["The tower", "Paris is", "In the city", "The Eiffel Tower is in", "is there a"]


def records(count: int = 23) -> list[dict]:
    """Prompts of several lengths with right and wrong answers of one and several tokens."""
    out = []
    for i in range(count):
        words = " ".join(WORDS[(i + n) % len(WORDS)] for n in range(1 + i % 3))
        out.append(
            {
                "id": f"p{i // 2}",
                "prompt": words,
                "answer": [" Paris", " the tower of"] if i % 4 else " Paris",
                "wrong": " is there",
                "sets": {"end": [".", " Paris"]} if i % 5 else {},
                "order": "even" if i % 2 == 0 else "odd",
                "number": i,
            }
        )
    return out


def write_lines(path, items):
    path.write_text("".join(json.dumps(item) + "\n" for item in items), encoding="utf-8")
    return path


def still_running(folder: Path) -> list[str]:
    """The command lines of processes that work on a folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes()
        except OSError:  # it has just ended
            continue
        if os.fsencode(folder) in line:
            found.append(line.replace(b"\0", b" ").decode())
    return found


@pytest.fixture(scope="session")
def saved(tmp_path_factory):
    """A folder that `logitlens.load` and worker processes can load."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    tiny_gpt2().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def model(saved):
    return logitlens.load(str(saved))


@pytest.fixture(scope="module")
def s3():
    """The address of a bucket on an S3 server of this machine."""
    server = pytest.importorskip("moto.server").ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    fs = pytest.importorskip("s3fs").S3FileSystem
    server.start()
    with pytest.MonkeyPatch.context() as patched:
        host, port = server.get_host_and_port()
        patched.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patched.setenv(name, "testing")
        patched.setenv("AWS_DEFAULT_REGION", "us-east-1")
        fs().makedirs("surveys", exist_ok=True)  # servers of one process share what they hold
        yield "s3://surveys"
    fs.clear_instance_cache()
    server.stop()


@pytest.fixture
def unlooked(monkeypatch):
    """Surveys are planned as they were when prompts were first looked at while they are read."""
    monkeypatch.setattr("logitlens.survey.run.require_readable", lambda *given, **how: None)


@pytest.fixture
def survey(model, saved, tmp_path):
    """Runs a survey of some prompts: survey(items, folder="a", jobs=…, size=…, …)."""

    def go(
        items=None, folder="a", *, size=4, lenses=("logit",), bad="stop", name="prompts", **options
    ):
        path = tmp_path / f"{name}.jsonl"
        if items is not None or not path.exists():
            write_lines(path, records() if items is None else items)
        settings = Settings(shard_size=size, threads=1, bad=bad, token_budget=64)
        return run(
            path, tmp_path / folder, options.pop("model", model), source=str(saved), loading={},
            lenses=lenses, settings=settings, **options,
        )  # fmt: skip

    return SimpleNamespace(run=go, folder=tmp_path)
