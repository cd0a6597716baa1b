"""README and docs run: every Python block, every `logitlens` line, every relative link."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import logitlens

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "benchmarks" / "README.md",
    ROOT / "src" / "logitlens" / "demo" / "README.md",
]
BLOCK = re.compile(r"^```(python|bash)( no-run)?\n(.*?)^```", re.MULTILINE | re.DOTALL)
NAMED = re.compile(r"`([\w./-]+(?:\.(?:py|md|toml|lock|sh)|/))`")
LINK = re.compile(r"\]\((?!https?:|#|mailto:)([^)#\s]+)")


def blocks(page: Path, language: str) -> list[str]:
    """A page's blocks of `language` that are not marked no-run."""
    found = BLOCK.findall(page.read_text(encoding="utf-8"))
    return [body for kind, skip, body in found if kind == language and not skip]


def commands(page: Path) -> list[str]:
    """The lines of its bash blocks that begin with `logitlens`."""
    joined = "\n".join(blocks(page, "bash")).replace("\\\n", " ")
    return [line for line in joined.splitlines() if line.strip().startswith("logitlens ")]


def pages(found) -> list:
    """A parameter for each page on which there is something of the kind."""
    return [pytest.param(page, what, id=page.name) for page in PAGES if (what := found(page))]


def links(page: Path) -> list[str]:
    return LINK.findall(page.read_text(encoding="utf-8"))


def test_something_is_found_to_run_and_to_follow():
    assert len(blocks(ROOT / "README.md", "python")) >= 1
    assert len(commands(ROOT / "README.md")) >= 3
    assert len(links(ROOT / "README.md")) >= 10
    for found in (lambda page: blocks(page, "python"), commands):
        assert len(pages(found)) >= 3


@pytest.mark.parametrize(("page", "code"), pages(lambda page: blocks(page, "python")))
def test_python_blocks_run(page, code, tmp_path, monkeypatch):
    """The blocks of a page run one after the other in one namespace, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    namespace: dict = {"__name__": "__main__"}
    for block in code:
        exec(compile(block, str(page), "exec"), namespace)


@pytest.mark.parametrize(("page", "lines"), pages(commands))
def test_command_lines_run(page, lines, tmp_path, monkeypatch):
    """Every line that begins with `logitlens` exits 0, in order, in one empty folder."""
    from click.testing import CliRunner

    from logitlens.cli import main

    monkeypatch.chdir(tmp_path)
    for line in lines:
        arguments = shlex.split(line, comments=True)[1:]
        result = CliRunner().invoke(main, arguments, prog_name="logitlens")
        assert result.exit_code == 0, f"{line}\n{result.output}"


@pytest.mark.parametrize(("page", "targets"), pages(links))
def test_relative_links_lead_somewhere(page, targets):
    for target in targets:
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_every_file_that_contributing_names_exists():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = set(NAMED.findall(text)) - {".bench/"}
    assert {"statistics.py", "lenses/base.py", ".ci/"} & named
    places = (ROOT, ROOT / "src" / "logitlens")
    assert [n for n in sorted(named) if not any((p / n).exists() for p in places)] == []


def test_the_version_and_its_date_are_the_same_everywhere():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert cited["version"] == logitlens.__version__
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.findall(r"^## \[(.+)\]( - .+)?$", changes, re.MULTILINE)[:2] == [
        ("Unreleased", ""),
        (logitlens.__version__, f" - {cited['date-released']}"),
    ]


def test_generated_parts_are_up_to_date():
    done = subprocess.run(
        [sys.executable, str(ROOT / "docs" / "generate.py"), "--check"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
