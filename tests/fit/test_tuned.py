"""Training a tuned lens: exact gradients, a falling loss, resuming, two processes as one."""

from __future__ import annotations

import errno
import math
import os
import signal
from pathlib import Path

import pytest
import torch

from logitlens.errors import FitError, PromptError
from logitlens.fit import checkpoint, tuned
from logitlens.fit.corpus import from_ids
from logitlens.fit.sequences import split
from logitlens.fit.tuned import Settings, TunedFit
from logitlens.lenses import open_lens, resolve
from tests.fit.corpora import repeating
from tests.fit.processes import run_two
from tests.lenses import tiny

SMALL = {"steps": 8, "tokens_per_step": 80, "length": 20, "holdout": 0.1}


def by_autograd(job: TunedFit, ids_BT):
    """The gradient of the mean loss of all maps, by autograd through the model's own modules."""
    model, maps = job.model, job.maps
    params = {n: p.detach().clone().requires_grad_(True) for n, p in maps.parameters.items()}
    out = model.hf(ids_BT, output_hidden_states=True)
    final = out.logits.log_softmax(-1).detach()
    residuals = [model.capture(row) for row in ids_BT]
    loss = 0.0
    for d in job.depths:
        h = torch.stack([r.h[d] for r in residuals])
        if maps.rank is None:
            y = h + h @ params[f"{d}.weight"].T + params[f"{d}.bias"]
        else:
            y = h + (h @ params[f"{d}.down"].T) @ params[f"{d}.up"].T + params[f"{d}.bias"]
        body = model.hf.base_model
        norm = body.ln_f if hasattr(body, "ln_f") else body.norm
        q = model.hf.lm_head(norm(y)).log_softmax(-1)
        loss = loss + (final.exp() * (final - q)).sum(-1).mean()
    return dict(zip(params, torch.autograd.grad(loss, list(params.values()))))


@pytest.mark.parametrize("make", [tiny.gpt2, tiny.llama])
@pytest.mark.parametrize("rank", [None, 3])
def test_gradients_equal_autograd(make, rank):
    model = make()
    job = TunedFit(model, repeating(), Settings(rank=rank, **SMALL))
    generator = torch.Generator().manual_seed(5)
    for p in job.maps.parameters.values():
        p.copy_(torch.randn(p.shape, generator=generator) * 0.05)
    ids_BT = job.schedule.step(0)
    truth = by_autograd(job, ids_BT)
    before = {n: p.requires_grad for n, p in model.hf.named_parameters()}
    job._pass(ids_BT, job.divergence, ids_BT.numel())
    for name, p in job.maps.parameters.items():
        torch.testing.assert_close(p.grad, truth[name], atol=2e-5, rtol=2e-4, msg=name)
    assert {n: p.requires_grad for n, p in model.hf.named_parameters()} == before
    assert all(p.grad is None for p in model.hf.parameters())


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "muon"])
def test_the_loss_falls_at_every_depth(optimizer, tmp_path):
    model = tiny.gpt2()
    lr = {"sgd": 0.3, "adamw": 0.01, "muon": 0.02}[optimizer]
    settings = Settings(optimizer=optimizer, lr=lr, **{**SMALL, "steps": 60})
    seen = []
    lens = tuned.fit(model, repeating(), settings, folder=tmp_path, report=seen.append)
    logit = lens.header.extra["logit_losses"]
    assert all(lens.header.losses[d] < 0.9 * logit[str(d)] for d in range(model.n_blocks))
    assert [p.step for p in seen] == list(range(1, 61))
    assert sum(p.heldout is not None for p in seen) == 10
    found = resolve(f"tuned:{tmp_path}", model)
    assert found.header == lens.header
    assert sorted(os.listdir(tmp_path)) == ["tuned.safetensors"]


def test_held_out_losses_are_those_of_the_reader():
    """What the header says equals the KL a reading of the held-out text shows."""
    model = tiny.llama()
    job = TunedFit(model, repeating(), Settings(**{**SMALL, "steps": 6}))
    lens = job.run()
    for name, kl in [("logit", job.logit), (lens, job.best)]:
        readings = [model.read(row, lens=name) for row in job.held_CT]
        for d in range(model.n_blocks):
            mean = sum(float(r.kl[d].mean()) for r in readings) / len(readings)
            assert mean == pytest.approx(kl[d], rel=1e-4)


def test_what_is_held_out_is_never_trained_on():
    model = tiny.gpt2()
    generator = torch.Generator().manual_seed(0)
    text = from_ids(torch.randint(tiny.VOCAB, (30, 20), generator=generator).tolist())
    settings = Settings(**{**SMALL, "holdout": 0.2})
    train, held = ({tuple(row) for row in part.tolist()} for part in split(model, text, settings))
    assert len(held) == round(0.2 * len(train | held))
    assert not train & held
    chunks = text.chunks(20, getattr(model.tokenizer, "eos_token_id", None))
    assert train | held == {tuple(row) for row in chunks.tolist()}
    job = TunedFit(model, text, settings)
    seen = {tuple(row) for step in range(20) for row in job.schedule.step(step).tolist()}
    assert seen == train


def test_going_on_equals_never_having_stopped(tmp_path):
    model, corpus = tiny.gpt2(), repeating()
    settings = Settings(optimizer="adamw", lr=0.01, checkpoint_every=1, **SMALL)
    whole = tuned.fit(model, corpus, settings)

    class Stop(Exception):
        pass

    def stop(progress):
        if progress.step == 5:
            raise Stop

    with pytest.raises(Stop):
        tuned.fit(model, corpus, settings, folder=tmp_path, report=stop)
    assert (tmp_path / checkpoint.NAME).is_file()
    steps = []
    rest = tuned.fit(
        model, corpus, settings, folder=tmp_path, report=lambda p: steps.append(p.step)
    )
    assert steps == [6, 7, 8]
    for name in whole.tensors:
        torch.testing.assert_close(rest.tensors[name], whole.tensors[name])
    assert rest.header.losses == whole.header.losses
    assert not (tmp_path / checkpoint.NAME).exists()


def test_a_checkpoint_of_another_fit_is_refused(tmp_path):
    model = tiny.gpt2()
    settings = Settings(checkpoint_every=1, **SMALL)

    def stop(progress):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tuned.fit(model, repeating(), settings, folder=tmp_path, report=stop)
    cases = [
        (repeating(seed=1), settings, "corpus"),
        (
            repeating(),
            Settings(checkpoint_every=1, **{**SMALL, "tokens_per_step": 40}),
            "tokens_per",
        ),
    ]
    for corpus, other, what in cases:
        with pytest.raises(FitError, match=what) as error:
            tuned.fit(model, corpus, other, folder=tmp_path)
        assert "\n" not in str(error.value)
        assert "--fresh" in str(error.value)
    tuned.fit(model, repeating(seed=1), settings, folder=tmp_path, fresh=True)
    with pytest.raises(FitError, match="is a finished lens: choose another folder.* --fresh"):
        tuned.fit(model, repeating(), settings, folder=tmp_path)
    (tmp_path / checkpoint.NAME).write_bytes(b"torn")
    with pytest.raises(FitError, match="not a checkpoint"):
        tuned.fit(model, repeating(), settings, folder=tmp_path)


def test_a_loss_that_is_no_number_stops_and_keeps_what_was_good(tmp_path, monkeypatch):
    model = tiny.gpt2()
    settings = Settings(checkpoint_every=1, **SMALL)
    update = TunedFit._update

    def poisoned(self):
        if self.step == 3:
            self.maps.parameters["1.weight"].fill_(math.nan)
        return update(self)

    monkeypatch.setattr(TunedFit, "_update", poisoned)
    with pytest.raises(FitError, match=r"loss at depth 1 is nan at step 4") as error:
        tuned.fit(model, repeating(), settings, folder=tmp_path)
    assert str(tmp_path / checkpoint.NAME) in str(error.value)
    kept = torch.load(tmp_path / checkpoint.NAME, weights_only=True)["state"]
    assert kept["step"] == 3
    assert all(t.isfinite().all() for t in kept["maps"].values())


def test_ctrl_c_saves_first(tmp_path):
    model = tiny.gpt2()
    before = signal.getsignal(signal.SIGINT)

    def press(progress):
        if progress.step == 2:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        tuned.fit(model, repeating(), Settings(**SMALL), folder=tmp_path, report=press)
    kept = torch.load(tmp_path / checkpoint.NAME, weights_only=True)["state"]
    assert kept["step"] == 3
    assert signal.getsignal(signal.SIGINT) is before


class Evil:
    def __reduce__(self):
        return (print, ("code ran",))


def test_a_checkpoint_with_code_is_refused_and_never_run(tmp_path, capsys):
    torch.save({"identity": {}, "state": Evil()}, tmp_path / checkpoint.NAME)
    with pytest.raises(FitError, match="not a checkpoint of a fit"):
        tuned.fit(tiny.gpt2(), repeating(), Settings(**SMALL), folder=tmp_path)
    assert "code ran" not in capsys.readouterr().out


@pytest.mark.parametrize("clip", [1e-4, 1e9])
def test_the_gradients_together_are_clipped(clip):
    job = TunedFit(tiny.gpt2(), repeating(), Settings(**SMALL, clip=clip))
    job._update()
    norm = float(torch.stack([g.norm() for g in job.maps.gradients()]).norm())
    assert norm == pytest.approx(1e-4, rel=1e-3) if clip < 1 else norm > 1e-3


@pytest.mark.parametrize(
    ("options", "factors"),
    [
        ({}, [1, 0.75, 0.5, 0.25]),
        ({"decay": False}, [1, 1, 1, 1]),
        ({"warmup": 2}, [1 / 3, 2 / 3, 1, 0.5]),
    ],
)
def test_the_learning_rate_warms_up_and_decays(options, factors):
    settings = Settings(**{**SMALL, "steps": 4}, lr=2.0, momentum=0.5, **options)
    seen = []
    tuned.fit(tiny.gpt2(), repeating(), settings, report=lambda p: seen.append(p.lr))
    assert seen == pytest.approx([2.0 * (1 - 0.5) * factor for factor in factors])


def test_a_full_disk_loses_nothing(tmp_path, monkeypatch):
    model = tiny.gpt2()
    settings = Settings(checkpoint_every=1, **SMALL)

    def stop(progress):
        if progress.step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tuned.fit(model, repeating(), settings, folder=tmp_path, report=stop)
    good = (tmp_path / checkpoint.NAME).read_bytes()

    def full(*args, **kwargs):
        Path(args[1]).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="cannot write") as error:
        tuned.fit(model, repeating(), settings, folder=tmp_path)
    assert "\n" not in str(error.value)
    assert (tmp_path / checkpoint.NAME).read_bytes() == good
    assert os.listdir(tmp_path) == [checkpoint.NAME]


def test_early_stop():
    model = tiny.gpt2()
    settings = Settings(
        steps=50, lr=0.0, evaluate_every=2, patience=2, tokens_per_step=40, length=20
    )
    seen = []
    lens = tuned.fit(model, repeating(), settings, report=seen.append)
    assert seen[-1].step == 4  # two judgements without a gain
    assert lens.header.losses == pytest.approx(
        {int(d): loss for d, loss in lens.header.extra["logit_losses"].items()}
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"length": 5000}, "too short"),
        ({"steps": 0}, "steps=0"),
        ({"rank": 0}, "rank=0"),
        ({"rank": 33}, "rank=33: expected at most 32, the model's width"),
        ({"optimizer": "adam"}, "expected sgd, adamw, muon"),
        ({"holdout": 1.0}, "holdout=1.0"),
        ({"precision": "half"}, "precision='half'"),
        ({"dtype": "int8"}, "dtype='int8'"),
        ({"lr": -0.1}, "lr=-0.1: expected a finite number, 0 or more"),
        ({"clip": float("nan")}, "clip=nan: expected a finite number, above 0"),
        ({"weight_decay": -1.0}, "weight_decay=-1.0: expected a finite number, 0 or more"),
        ({"warmup": -1}, "warmup=-1"),
        ({"patience": 0}, "patience=0"),
    ],
)
def test_bad_settings_are_one_line(change, message):
    model = tiny.gpt2()
    with pytest.raises(PromptError, match=message) as error:
        tuned.fit(model, repeating(documents=2), Settings(**{**SMALL, **change}))
    assert "\n" not in str(error.value)


WORKER = """
from logitlens.fit import tuned
settings = tuned.Settings(
    steps=5, tokens_per_step=100, length=20, holdout=0.15, optimizer="sgd", lr=0.3
)
tuned.fit(tiny.gpt2(), repeating(), settings, folder=Path(sys.argv[1]))
"""


@pytest.mark.slow
def test_two_processes_are_one(tmp_path):
    """Five sequences a step and three held out, so that the two have unequal shares."""
    model = tiny.gpt2()
    settings = Settings(
        steps=5, tokens_per_step=100, length=20, holdout=0.15, optimizer="sgd", lr=0.3
    )
    alone = tuned.fit(model, repeating(), settings, folder=tmp_path / "one")
    run_two(WORKER, tmp_path / "two")
    assert os.listdir(tmp_path / "two") == [tuned.FILE]
    together = open_lens(tmp_path / "two")
    assert together.header.losses == pytest.approx(alone.header.losses, rel=1e-4)
    stored = open_lens(tmp_path / "one")
    for name, tensor in stored.tensors.items():
        torch.testing.assert_close(
            together.tensors[name].float(), tensor.float(), atol=2e-4, rtol=2e-3
        )


def test_two_fits_never_write_to_one_folder(tmp_path):
    """The second is refused while the first runs; what a killed one left does not matter."""
    (tmp_path / ".lock-0").touch()
    model, corpus, settings = tiny.gpt2(), repeating(), Settings(**SMALL)
    refused = []

    def meanwhile(progress):
        if not refused:
            with pytest.raises(FitError, match="another fit is writing to") as caught:
                tuned.fit(model, corpus, settings, folder=tmp_path, fresh=True)
            refused.append(caught.value)

    tuned.fit(model, corpus, settings, folder=tmp_path, report=meanwhile)
    assert refused
    assert [path.name for path in tmp_path.iterdir()] == ["tuned.safetensors"]


def test_maps_that_are_not_finite_are_never_saved(tmp_path):
    job = TunedFit(tiny.gpt2(), repeating(), Settings(**SMALL), folder=tmp_path)
    next(iter(job.maps.parameters.values())).data.fill_(float("inf"))
    with pytest.raises(FitError, match="the maps are no longer finite"):
        job._save()
    assert not list(tmp_path.iterdir())
