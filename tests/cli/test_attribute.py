"""`logitlens attribute`: what is asked of the model, printed, written, refused."""

from __future__ import annotations

import json

import pytest

from logitlens import Attribution
from tests.test_attribution import made


def attributing(cli):
    def attribute(prompt, token, **options):
        cli.model.calls.append(("attribute", {"prompt": prompt, "token": token} | options))
        return made(4 if options["versus"] else None)

    cli.model.attribute = attribute


def test_a_waterfall_is_printed_and_written(cli, tmp_path):
    attributing(cli)
    out = tmp_path / "found.json"
    result = cli("attribute", "in", " Paris", "--versus", " Rome", "--by", "layer", "-o", str(out))
    assert result.exit_code == 0
    assert "sum    +1.125" in result.stdout
    assert "\x1b" not in result.stdout
    assert Attribution.load(out).equals(made())
    ((_, asked),) = cli.model.calls
    assert (asked["prompt"], asked["token"], asked["versus"]) == ("in", " Paris", " Rome")
    assert (asked["by"], asked["position"]) == ("layer", -1)


def test_files_have_as_many_bars_as_the_terminal(cli, tmp_path):
    pytest.importorskip("matplotlib")
    attributing(cli)
    outputs = [tmp_path / name for name in ("found.txt", "found.html", "found.svg", "found.json")]
    given = [word for path in outputs for word in ("-o", str(path))]
    result = cli("attribute", "in", "--bars", "1", *given)
    text, page, _, data = (path.read_text(encoding="utf-8") for path in outputs)
    for shown in (result.stdout, text, page):
        assert "3 others" in shown
        assert "0.mlp" not in shown
    assert outputs[2].stat().st_size < made(None).save(tmp_path / "all.svg").stat().st_size
    assert len(json.loads(data)["components"]) == 4


def test_without_a_token_none_is_asked_for_and_json_is_json(cli):
    attributing(cli)
    result = cli("attribute", "in", "--json")
    assert json.loads(result.stdout) == made(None).to_dict()
    assert cli.model.calls[0][1]["token"] is None


def test_a_file_that_cannot_be_written_is_refused_before_the_model_is_loaded(cli, tmp_path):
    result = cli("attribute", "in", "-o", str(tmp_path / "found.gif"))
    assert (result.exit_code, cli.loaded) == (2, [])
    assert "end it in .html .json .parquet" in result.stderr
