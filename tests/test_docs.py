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


def steps(page: Path) -> list[tuple[str, str]]:
    """What a page says that is run, in its order: Python blocks, and of bash blocks the lines that begin
    with `logitlens`; but for blocks marked no-run."""
    found = []
    for kind, skip, body in BLOCK.findall(page.read_text(encoding="utf-8")):
        if skip:
            continue
        lines = [body] if kind == "python" else body.replace("\\\n", " ").splitlines()
        found += [(kind, x) for x in lines if kind == "python" or x.startswith("logitlens ")]
    return found


def pages(found) -> list:
    """A parameter for each page on which there is something of the kind."""
    return [pytest.param(page, what, id=page.name) for page in PAGES if (what := found(page))]


def links(page: Path) -> list[str]:
    return LINK.findall(page.read_text(encoding="utf-8"))


def test_something_is_found_to_run_and_to_follow():
    kinds = [kind for kind, _ in steps(ROOT / "README.md")]
    assert kinds.count("python") >= 1
    assert kinds.count("bash") >= 3
    assert len(links(ROOT / "README.md")) >= 10
    assert len(pages(steps)) >= 6


@pytest.mark.parametrize(("page", "steps"), pages(steps))
def test_what_a_page_says_runs(page, steps, tmp_path, monkeypatch):
    """In order and in one empty folder: blocks in one namespace, and every command line exits 0."""
    from click.testing import CliRunner

    from logitlens.cli import main

    monkeypatch.chdir(tmp_path)
    namespace: dict = {"__name__": "__main__"}
    for kind, said in steps:
        if kind == "python":
            exec(compile(said, str(page), "exec"), namespace)
            continue
        arguments = shlex.split(said, comments=True)[1:]
        result = CliRunner().invoke(main, arguments, prog_name="logitlens")
        assert result.exit_code == 0, f"{said}\n{result.output}"


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


def test_what_surveys_tells_of_the_study_is_what_the_study_says():
    said = (ROOT / "docs" / "surveys.md").read_text(encoding="utf-8")
    paragraph = next(p for p in said.split("\n\n") if p.startswith("[study.md](study.md)"))
    study = (ROOT / "docs" / "study.md").read_text(encoding="utf-8")
    numbers = re.findall(r"\d\.\d\d", paragraph)
    assert len(numbers) == 5
    assert [n for n in numbers if n not in study.partition("**all**")[2]] == []


def test_generated_parts_are_up_to_date():
    done = subprocess.run(
        [sys.executable, str(ROOT / "docs" / "generate.py"), "--check"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
