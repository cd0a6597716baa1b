"""Disks that are really full, and workers that really run out of memory."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import GPT2Config, GPT2LMHeadModel

import logitlens
from logitlens.survey.plan import Settings
from logitlens.survey.run import run, status
from tests.models import VOCAB, tiny_tokenizer
from tests.survey.conftest import records, write_lines

pytestmark = pytest.mark.slow


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 192 kB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=192k", "tmpfs", str(folder)]
    if os.name != "posix" or os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount a tmpfs")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_fails_shards_and_the_survey_ends_when_there_is_room(
    small_disk, survey, model, saved
):
    items = records(60)
    survey.run(items, folder="whole")
    whole = (survey.folder / "whole" / "survey.parquet").read_bytes()
    ballast = small_disk / "s" / ".plan.json.ballast"  # not the survey's: it takes the room

    def go():
        return run(
            survey.folder / "prompts.jsonl", small_disk / "s", model, source=str(saved), loading={},
            settings=Settings(shard_size=4, threads=1, token_budget=64),
        )  # fmt: skip

    (small_disk / "s").mkdir()
    ballast.write_bytes(bytes(120 << 10))
    found = go()
    assert found.failed
    assert all("No space left" in why for why in found.failed.values())
    assert found.records
    left = [p for p in (small_disk / "s").rglob("*") if "tmp" in p.name]
    assert not left
    ballast.unlink()
    subprocess.run(["mount", "-o", "remount,size=4m", str(small_disk)], check=True)
    assert go().done
    assert (small_disk / "s" / "survey.parquet").read_bytes() == whole


LIMITED = """
import resource, sys
import pyarrow.compute, pyarrow.parquet  # a library needs room of its own
from pathlib import Path
from logitlens.survey import worker

class Limited(worker.Worker):
    def read(self, shard):
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + (int(sys.argv[2]) << 20),) * 2)
        return super().read(shard)

worker.Worker = Limited
worker.main()
"""


# Arrow's own allocator and glibc's arenas reserve tens of megabytes at a time.
PLAIN = {"ARROW_DEFAULT_MEMORY_POOL": "system", "MALLOC_ARENA_MAX": "1"}


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
def test_a_worker_that_runs_out_of_memory_halves_its_batches_and_says_so(tmp_path):
    config = GPT2Config(vocab_size=VOCAB, n_embd=512, n_layer=2, n_head=4, n_positions=64)
    wide = GPT2LMHeadModel(config)
    folder = tmp_path / "model"
    wide.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    items = [{"prompt": [1 + (i + n) % 90 for n in range(50)]} for i in range(200)]
    path = write_lines(tmp_path / "p.jsonl", items)
    settings = Settings(shard_size=200, threads=1, token_budget=10_000)
    run(path, tmp_path / "s", logitlens.load(str(folder)), source=str(folder), loading={},
        settings=settings, share=(1, 2))  # fmt: skip
    source = str(Path(logitlens.__file__).parents[1])
    for megabytes in (75, 100, 125, 150):  # products of different processors take different room
        done = subprocess.run(
            [sys.executable, "-c", LIMITED, str(tmp_path / "s"), str(megabytes)], input="0\n",
            text=True, capture_output=True, env={**os.environ, **PLAIN, "PYTHONPATH": source},
        )  # fmt: skip
        found = status(tmp_path / "s")
        if found.done:
            break
    assert found.done, done.stdout + done.stderr
    assert "were read in halves" in found.records[0]["remarks"][0]
    assert found.total("prompts") == 200
    assert "out of memory" in (tmp_path / "s" / "logs" / "00000.txt").read_text()
    assert resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY
