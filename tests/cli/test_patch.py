"""`logitlens patch`: what is asked of the model, printed, written."""

from __future__ import annotations

import json

from logitlens import PatchGrid
from tests.test_patch_grid import made


def test_a_grid_is_printed_and_written(cli, tmp_path):
    def patch_grid(*prompts, **options):
        cli.model.calls.append(("patch", {"prompts": prompts} | options))
        return made()

    cli.model.patch_grid = patch_grid
    out = tmp_path / "grid.json"
    result = cli("patch", "a", "b", "--token", " Paris", "--versus", " Rome", "-o", str(out))
    assert result.exit_code == 0
    assert "+0.25" in result.stdout
    assert PatchGrid.load(out).to_dict() == made().to_dict()
    assert cli.model.calls[0][1]["prompts"] == ("a", "b", " Paris", " Rome")
    printed = cli("patch", "a", "b", "--token", " Paris", "--json")
    assert json.loads(printed.stdout) == made().to_dict()
    assert cli("patch", "a", "b").exit_code == 2


def test_prompts_that_do_not_differ_are_one_line_and_no_file(cli, tmp_path):
    same = made(corrupted=made().clean)
    cli.model.patch_grid = lambda *prompts, **options: same
    out = tmp_path / "grid.json"
    for flags in ([], ["--json"], ["-o", str(out)]):
        result = cli("patch", "a", "a", "--token", " Paris", *flags)
        assert (result.exit_code, result.stdout) == (2, "")
        assert result.stderr.count("\n") == 1
        assert "the same logit of ' Paris' minus that of ' Rome', +3.000" in result.stderr
    assert not out.exists()
