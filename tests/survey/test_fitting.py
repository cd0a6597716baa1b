"""A Jacobian lens in shards: the whole fit's lens, whoever read the shards and whatever was killed."""

from __future__ import annotations

import os
import signal

import pytest
import torch
from click.testing import CliRunner

from logitlens import FitError
from logitlens.cli import fit as cli_fit
from logitlens.cli import main
from logitlens.fit import jacobian
from logitlens.fit.corpus import from_ids
from logitlens.lenses import open_lens
from logitlens.survey import fitting
from logitlens.survey.engines import local

SETTINGS = jacobian.Settings(skip_first=2, tokens_per_pass=40, dtype="float32", cotangents=8)


def corpus(count: int = 60):
    return from_ids([[1 + (7 * n + i * i) % 90 for i in range(8 + n % 9)] for n in range(count)])


@pytest.fixture(scope="module")
def whole(model):
    return jacobian.fit(model, corpus(), SETTINGS)


def fit(model, saved, folder, **options):
    return fitting.fit(
        model, options.pop("corpus", corpus()), options.pop("settings", SETTINGS), folder,
        source=str(saved), loading={}, threads=1, **options,
    )  # fmt: skip


def check(folder, lens, whole):
    """All prompts, the mean of the whole, and nothing left over. Returns the file's bytes."""
    assert os.listdir(folder) == [jacobian.FILE]
    assert lens.header.weight == whole.header.weight == 60
    assert lens.header.corpus == whole.header.corpus
    assert lens.header.settings == whole.header.settings
    for name, J_DD in whole.tensors.items():
        torch.testing.assert_close(lens.tensors[name], J_DD, atol=2e-5, rtol=1e-4)
    return (folder / jacobian.FILE).read_bytes()


def test_shards_add_up_to_the_whole_fit_and_go_on_where_they_were_left(
    model, saved, tmp_path, whole, monkeypatch
):
    together = check(tmp_path / "a", fit(model, saved, tmp_path / "a"), whole)
    read, honest = [], fitting.Worker.read

    def broken(self, shard):
        if len(read) == 3:
            raise OSError("No space left on device")
        read.append(shard)
        return honest(self, shard)

    monkeypatch.setattr(fitting.Worker, "read", broken)
    with pytest.raises(
        FitError, match="shards of the fit failed; shard 3: OSError: No space"
    ) as said:
        fit(model, saved, tmp_path / "b")
    assert "\n" not in str(said.value)
    monkeypatch.setattr(fitting.Worker, "read", honest)
    counts = []
    lens = fit(model, saved, tmp_path / "b", report=lambda p: counts.append(p.prompts))
    assert counts[-1] == 60
    assert len(counts) < len(set(range(60)))
    assert check(tmp_path / "b", lens, whole) == together


def test_another_corpus_or_setting_in_the_same_folder_is_refused(model, saved, tmp_path):
    def left(folder, shards):
        raise KeyboardInterrupt
        yield

    with pytest.raises(KeyboardInterrupt):
        fit(model, saved, tmp_path, engine=left)
    with pytest.raises(FitError, match="was made with corpus"):
        fit(model, saved, tmp_path, corpus=corpus(20))
    with pytest.raises(FitError, match="was made with in shards"):
        jacobian.fit(model, corpus(), SETTINGS, folder=tmp_path)
    assert fitting.planned_threads(tmp_path) == 1
    with torch.no_grad():
        other = fitting.Worker(str(tmp_path)).model
        other.hf.transformer.wte.weight.add_(1.0)
    with pytest.raises(FitError, match="has other weights"):
        fitting.Worker(str(tmp_path), other)


@pytest.mark.slow
def test_a_killed_process_loses_and_doubles_nothing(model, saved, tmp_path, whole, monkeypatch):
    started, honest = [], local._Worker.__init__

    def noted(self, *args):
        honest(self, *args)
        started.append(self)

    monkeypatch.setattr(local._Worker, "__init__", noted)

    def kill(progress):
        if progress.prompts >= 6 and len(started) == 2:
            os.kill(started[0].process.pid, signal.SIGKILL)

    lens = fit(model, saved, tmp_path / "killed", jobs=2, report=kill)
    assert len(started) == 3
    killed = check(tmp_path / "killed", lens, whole)
    assert check(tmp_path / "one", fit(model, saved, tmp_path / "one"), whole) == killed


def test_the_command_line_shares_a_jacobian_fit(saved, tmp_path):
    (tmp_path / "text.txt").write_text(
        "\n\n".join(["The Eiffel Tower is in the city of Paris"] * 6)
    )

    def run(*words):
        arguments = ["fit", *words[:1], str(tmp_path / "text.txt"), "-m", str(saved), *words[1:]]
        return CliRunner().invoke(main, arguments, prog_name="logitlens")

    out = str(tmp_path / "lens")
    done = run("jacobian", "-o", out, "-j", "1", "--skip-first", "2", "--evaluate")
    assert done.exit_code == 0, done.output
    assert "mean over 6 prompts" in done.stdout
    assert open_lens(out).header.weight == 6
    refused = run("jacobian", "-o", out, "--address", "auto")
    assert refused.exit_code == 2
    assert "add --engine ray" in refused.stderr


def test_where_others_fit_the_process_that_plans_puts_no_model_on_their_devices(
    saved, model, tmp_path, monkeypatch
):
    """One shard is left to the other process too; the lens is judged on the device, when it is free."""
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(["The Eiffel Tower is in the city of Paris"] * 6))
    given, began = [], []

    def loads(source, **options):
        given.append({name: options[name] for name in ("device_map", "dtype")})
        return model

    def elsewhere(folder, shards, jobs):
        began.append((jobs, len(shards)))
        return local.run_here(fitting.Worker(folder, model), shards)

    plans, honest = [], fitting._begun

    def noted(folder):
        plans.append(honest(folder))
        return plans[-1]

    monkeypatch.setattr(cli_fit, "load_model", loads)
    monkeypatch.setattr(local, "run", elsewhere)
    monkeypatch.setattr(fitting, "_begun", noted)
    words = ["fit", "jacobian", str(text), "-m", str(saved), "--device-map", "cuda"]
    for jobs, extra in (("1", []), ("2", ["--evaluate"])):
        out = ["-o", str(tmp_path / jobs), "--skip-first", "2", "--threads", "1"]
        done = CliRunner().invoke(main, [*words, *out, "-j", jobs, *extra], prog_name="logitlens")
        assert done.exit_code == 0, done.output
    there, planned = {"device_map": "cuda", "dtype": None}, {"device_map": None, "dtype": "auto"}
    assert given == [there, planned, there]
    assert began == [(2, 1)]
    assert all(plan["loading"] == {"device_map": "cuda"} for plan in plans)
    assert {plan["settings"]["tokens_per_pass"] for plan in plans} == {16384}
    one, two = (tmp_path / name / jacobian.FILE for name in ("1", "2"))
    assert one.read_bytes() == two.read_bytes()
