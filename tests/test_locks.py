"""The lock files agree with one another and with pyproject.toml, and reading installs nothing else."""

from __future__ import annotations

import importlib.metadata
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
CORE = PROJECT["project"]["dependencies"]
EXTRAS = PROJECT["project"]["optional-dependencies"]


def pins(lock: str) -> dict[str, str]:
    """Package → version; every line of a lock is a pin."""
    lines = (ROOT / "requirements" / lock).read_text(encoding="utf-8").splitlines()[1:]
    return {canonicalize_name(n): v for n, _, v in (line.partition("==") for line in lines)}


def required(requirements: list[str]) -> set[str]:
    """The packages that requirements name, with what these require in turn, as installed here."""
    found: set[str] = set()
    waiting = [Requirement(r) for r in requirements]
    while waiting:
        one = waiting.pop()
        name = canonicalize_name(one.name)
        if name in found or (one.marker and not one.marker.evaluate({"extra": ""})):
            continue
        found.add(name)
        waiting += [Requirement(r) for r in importlib.metadata.requires(name) or []]
    return found


def test_reading_installs_the_core_and_nothing_else():
    assert set(pins("read.lock")) <= required(CORE)


def test_the_two_locks_pin_the_same_versions():
    assert pins("read.lock").items() <= pins("dev.lock").items()


@pytest.mark.parametrize(
    ("lock", "asked"),
    [
        ("read.lock", CORE),
        ("dev.lock", [r for name in EXTRAS for r in EXTRAS[name] if name != "all"]),
    ],
    ids=["core", "extras"],
)
def test_every_dependency_is_locked_within_its_range(lock, asked):
    locked = pins(lock)
    for requirement in map(Requirement, asked):
        assert requirement.specifier.contains(locked[canonicalize_name(requirement.name)])


def test_the_extra_all_is_all_of_them():
    [everything] = map(Requirement, EXTRAS["all"])
    assert everything.extras == EXTRAS.keys() - {"all"}


def test_every_extra_that_a_message_names_exists():
    """A missing package is reported as `pip install 'logitlens[EXTRA]'`, and the extra brings it."""
    import ast

    named = []
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "MissingExtra":
                texts = [a.value for a in node.args[:2] if isinstance(a, ast.Constant)]
                named += [tuple(texts)] if len(texts) == 2 else []
    assert named
    for packages, extra in named:
        brought = {Requirement(r).name for r in EXTRAS[extra]}
        assert set(packages.split(" and ")) <= brought, f"the extra {extra} lacks {packages}"
