"""The recipe of the study: it still runs, at a small scale, and the committed page is one that it writes."""

from __future__ import annotations

import html
import importlib.util
import itertools
import json
import re
import shlex
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
from matplotlib.image import imread

from logitlens.survey.summary import table
from tests.survey.conftest import write_lines

ROOT = Path(__file__).resolve().parents[2]
EACH = {"capital": 14, "landmark_city": 12, "month_after": 10}


@pytest.fixture(scope="module")
def recipe():
    spec = importlib.util.spec_from_file_location("study", ROOT / "recipes" / "study" / "make.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def read(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def parts(recipe, page):
    """What a page says where the recipe's text leaves room. Fails where another sentence differs."""
    pattern = "".join(
        f"(?P<{part}>.+)" if n % 2 else re.escape(part)
        for n, part in enumerate(re.split(r"\{(\w+)[^}]*\}", recipe.TEXT))
    )
    found = re.fullmatch(pattern, page, re.DOTALL)
    assert found, "study.md and the TEXT of recipes/study/make.py differ: run `make study`"
    return SimpleNamespace(**found.groupdict())


def rows(recipe, said, facts):
    """relation (None: all) → the cells of the table, which has every relation of `facts` and no other."""
    names = [recipe.NAMES[lens] for lens in recipe.LENSES]
    head, rule, *lines = said.table.splitlines()
    assert head == " | ".join(
        ["| relation | facts | right at the last layer", *(f"settled, {n} lens" for n in names)]
    ) + " |"  # fmt: skip
    assert rule == "|" + " --- |" * (3 + len(names))
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    counted = Counter(fact["relation"].replace("_", " ") for fact in facts)
    assert {name: n for name, n, *_ in cells[:-1]} == {k: f"{n:,}" for k, n in counted.items()}
    counts = [counted[name] for name, *_ in cells[:-1]]
    assert counts == sorted(counts, reverse=True)
    assert cells[-1][:2] == ["**all**", f"{len(facts):,}"]
    assert cells[-1][2] == said.right
    return {None if name == "**all**" else name: rest for name, _, *rest in cells}


def agrees(recipe, page, facts):
    """That the title, the table and the sentences below it tell of the same facts. Returns the rows."""
    said = parts(recipe, page)
    assert said.title == recipe.TITLE.format(total=len(facts))
    found = rows(recipe, said, facts)
    means = {}
    for name, (right, *settled) in found.items():
        assert 0 <= int(right.removesuffix("%")) <= 100
        for lens, cell in zip(recipe.LENSES, settled, strict=True):
            mean, low, high = map(float, re.fullmatch(r"(\S+) \[(\S+), (\S+)\]", cell).groups())
            assert -1 <= low <= mean <= high <= 7
            means[name, lens] = mean
    for line, lens in zip(said.findings.splitlines(), recipe.LENSES, strict=True):
        mine = {name: mean for (name, x), mean in means.items() if x == lens}
        every = mine.pop(None)
        first, last = re.findall(r"\*(.+?)\*", line)
        assert (mine[first], mine[last]) == (min(mine.values()), max(mine.values()))
        assert line == (
            f"- Through the {recipe.NAMES[lens]} lens, facts settle at layer {every:.2f} on average: "
            f"first *{first}* ({mine[first]:.2f}), last *{last}* ({mine[last]:.2f})."
        )
    return found


def test_the_committed_study_is_one_that_the_recipe_writes(recipe):
    page = (ROOT / "docs" / "study.md").read_text(encoding="utf-8")
    agrees(recipe, page, read(recipe.FACTS))
    title = html.escape(parts(recipe, page).title)
    for name, more in (("study", ""), ("study_relations", ", by relation")):
        shown = (ROOT / "docs" / "images" / f"{name}.html").read_text(encoding="utf-8")
        assert f'<h1 id="top">{title}{more}</h1>' in shown
    for link in re.findall(r"\]\(([^)]+)\)", page):
        assert (ROOT / "docs" / link).is_file()


@pytest.mark.slow
def test_the_recipe_runs_on_some_facts_of_a_few_relations(recipe, tmp_path):
    facts = [
        fact
        for relation, n in EACH.items()
        for fact in itertools.islice(
            (f for f in read(recipe.FACTS) if f["relation"] == relation), n
        )
    ]
    docs, folder = tmp_path / "docs", tmp_path / "survey"
    recipe.main(folder, write_lines(tmp_path / "facts.jsonl", facts), docs)
    assert sorted(str(p.relative_to(docs)) for p in docs.rglob("*") if p.is_file()) == [
        "images/study.html", "images/study.png", "images/study_relations.html", "study.md",
    ]  # fmt: skip

    page = (docs / "study.md").read_text(encoding="utf-8")
    found = agrees(recipe, page, facts)
    frame = table(folder)
    assert set(frame["lens"]) == set(recipe.LENSES)
    for name, (right, *settled) in found.items():
        mine = frame[frame["relation"] == name.replace(" ", "_")] if name else frame
        last = mine[mine["block"] == mine["block"].max()]
        assert right == f"{(last['rank'] == 1).mean():.0%}"
        for lens, cell in zip(recipe.LENSES, settled, strict=True):
            at = mine[mine["lens"] == lens]
            off = at[~at["agree"].astype(bool)].groupby("prompt_index")["block"].max()
            mean = (off.reindex(at["prompt_index"].unique(), fill_value=-2) + 1).mean()
            assert cell.startswith(f"{mean:.2f} [")

    picture = imread(docs / "images" / "study.png")
    tall, wide, _ = picture.shape
    assert wide > 3 * tall  # one row of panels
    assert len({*map(tuple, picture[:, wide // 8])}) > 5  # and something is drawn in the first

    prompts = {fact["prompt"] for fact in facts}
    title = html.escape(parts(recipe, page).title)
    for name, more in (("study", ""), ("study_relations", ", by relation")):
        shown = (docs / "images" / f"{name}.html").read_text(encoding="utf-8")
        assert f'<h1 id="top">{title}{more}</h1>' in shown
        assert set(re.findall(r'href="#([^"]+)"', shown)) <= set(re.findall(r'id="([^"]+)"', shown))
        commands = [shlex.split(html.unescape(c)) for c in re.findall(r"<code>(.*?)</code>", shown)]
        assert {command[-1] for command in commands} <= prompts
        assert {command[command.index("--lens") + 1] for command in commands} == set(recipe.LENSES)
        grids = re.findall(r'<table class="grid">(.*?)</table>', shown)
        assert len(grids) == (0 if more else len(commands))
        for relation in EACH if more else ():
            assert f"logit · {relation} · layer 7: " in shown
