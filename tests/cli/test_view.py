"""`logitlens view`: stored readings as a page, or converted; no model, no torch."""

import random
import subprocess
import sys
import webbrowser
from pathlib import Path

import pytest

from logitlens import Reading
from logitlens.view import page
from tests.view.conftest import EIFFEL, make


@pytest.fixture
def stored(tmp_path):
    paths = [tmp_path / "a.json", tmp_path / "b.json"]
    for seed, path in enumerate(paths):
        make(EIFFEL, seed=seed).save(path)
    return [str(path) for path in paths]


@pytest.fixture
def opened(monkeypatch):
    addresses: list[str] = []
    monkeypatch.setattr(webbrowser, "open", lambda address: addresses.append(address) or True)
    return addresses


def test_readings_become_one_page_in_the_browser(cli, stored, opened):
    result = cli("view", *stored)
    path = Path(result.stdout.strip())
    assert result.exit_code == 0
    assert opened == [path.as_uri()]
    assert len(page.load(path)) == 2
    path.unlink()
    path.parent.rmdir()


def test_with_a_file_the_browser_stays_closed(cli, stored, opened, tmp_path):
    out = tmp_path / "page.html"
    assert cli("view", *stored, "-o", str(out), "--title", "A & B").exit_code == 0
    assert opened == []
    assert "<title>A &amp; B · logitlens</title>" in out.read_text("utf-8")
    again = tmp_path / "again.html"
    assert cli("view", str(out), stored[0], "-o", str(again), "--open").exit_code == 0
    assert len(page.load(again)) == 3, "pages can be put together again"
    assert opened == [again.as_uri()]


def test_one_reading_is_converted(cli, stored, tmp_path):
    out = tmp_path / "copy.json"
    assert cli("view", stored[0], "-o", str(out)).exit_code == 0
    assert Reading.load(out).equals(Reading.load(stored[0]))
    several = cli("view", *stored, "-o", str(out))
    assert several.exit_code == 2
    assert "copy.json holds one reading, 2 were given" in several.stderr


@pytest.mark.parametrize(
    ("content", "name", "words"),
    [
        (None, "none.json", "no reading at"),
        (None, "none.html", "No such file"),
        ("<p>", "other.html", "not a page of logitlens"),
        ("{", "cut.json", "is not JSON, or is cut short"),
        ("x", "x.txt", "expected a .json, .parquet or .html file that logitlens wrote"),
        ("\xff", "bytes.html", "not a page of logitlens (it is not UTF-8)"),
        (
            '<script type="application/json" data-ll="manifest">[]</script>',
            "a.html",
            "found None None",
        ),
    ],
)
def test_what_is_not_a_reading_is_one_line(cli, tmp_path, content, name, words, opened):
    if content is not None:
        (tmp_path / name).write_text(content, "latin-1")
    result = cli("view", str(tmp_path / name))
    assert result.exit_code == (2 if name.endswith(".txt") else 1)
    assert words in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert opened == []


@pytest.mark.parametrize("stored_as", ["json", "parquet", "html"])
@pytest.mark.parametrize("suffix", ["html", "png", "svg", "pdf", "txt", "json", "parquet"])
def test_every_format_is_read_and_written(cli, tmp_path, stored_as, suffix):
    source, out = tmp_path / f"a.{stored_as}", tmp_path / f"b.{suffix}"
    make(EIFFEL).save(source)
    result = cli("view", str(source), "-o", str(out))
    assert (result.exit_code, out.stat().st_size > 200) == (0, True)
    if suffix in ("json", "parquet"):
        assert (Reading.load(out).top_ids == make(EIFFEL).top_ids).all()


def test_a_damaged_page_is_one_line(cli, tmp_path):
    path, rng = tmp_path / "page.html", random.Random(0)
    page.save([make(EIFFEL)], path)
    whole = path.read_text("utf-8")
    start = whole.index('type="text/plain"')
    end = whole.rindex("<script>")
    refused = 0
    for _ in range(40):
        at = rng.randrange(start, end)
        path.write_text(whole[:at] + "AAAAA" + whole[at + 6 :], "utf-8")
        result = cli("view", str(path), "-o", str(tmp_path / "out.html"))
        assert "unexpected" not in result.stderr
        refused += result.exit_code
    assert refused > 20
    for lost in ('"shape"', '"readings"', '"fields"'):
        path.write_text(whole.replace(lost, '"x"'), "utf-8")
        result = cli("view", str(path))
        assert (result.exit_code, "damaged" in result.stderr) == (1, True)
        assert str(path) in result.stderr


def test_without_a_browser_the_file_is_there_to_be_opened(cli, stored, monkeypatch):
    monkeypatch.setattr(webbrowser, "open", lambda address: False)
    result = cli("view", *stored)
    assert result.exit_code == 0
    assert result.stderr == "no browser could be opened; open the file above yourself\n"
    path = Path(result.stdout.strip())
    assert len(page.load(path)) == 2
    path.unlink()
    path.parent.rmdir()


def test_torch_is_not_loaded(stored, tmp_path):
    code = (
        "import sys\nfrom logitlens.cli import main\n"
        f"code = main(['view', {stored[0]!r}, '-o', {str(tmp_path / 'x.html')!r}], standalone_mode=False)\n"
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
