"""Fixtures shared by all tests."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test but those marked `hub` may reach for it
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Tiny models run faster on one thread than two threads take to meet; must come before torch.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TRITON_INTERPRET", "1")  # tests need no GPU; must come before triton

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """`make test` runs two processes, which must give every test the same name. Tests that may take
    long come first: the last one would leave the other process without work."""
    for item in items:
        if " at 0x" in item.nodeid:
            raise pytest.UsageError(
                f"{item.nodeid} is named by an address: give its parameter an id"
            )
    items.sort(key=_limit, reverse=True)


def _limit(item: pytest.Item) -> float:
    """Seconds that a test may take; those without a limit of their own have the shortest."""
    marker = item.get_closest_marker("timeout")
    return max(300.0, marker.args[0]) if marker else 300.0


def pytest_collection_finish() -> None:
    """What torch, transformers and thousands of tests have made stays until the end: looking at it
    again and again for garbage takes a seventh of the time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real text, tokenizer and model that some checkouts have beside them."""
    if not SHARED.is_dir():
        pytest.skip("../shared/data is not beside this checkout")
    return SHARED
