"""How a model is called: what interrupts a pass is passed on, compiled models run as they are written."""

from __future__ import annotations

import contextlib
import signal
import threading

import pytest
import torch

import logitlens
from logitlens.anatomy.forward import as_found, interrupted
from logitlens.errors import UnsupportedModel
from tests.models import tiny_llama

IDS = [5, 60, 7, 82, 9, 110, 11]


class TookTooLong(Exception):
    """What a user's timeout raises."""


def too_long(number, frame):
    raise TookTooLong


class Handler:
    def __call__(self, number, frame):
        raise TookTooLong

    def method(self, number, frame):
        raise TookTooLong


@pytest.fixture
def handled():
    before = signal.getsignal(signal.SIGUSR1)
    yield lambda handler: signal.signal(signal.SIGUSR1, handler)
    signal.signal(signal.SIGUSR1, before)


class Act:
    """Does something in the middle of the next passes, as many as are `left`."""

    def __init__(self, hf, act):
        self.act, self.left = act, 0
        hf.model.layers[1].mlp.register_forward_pre_hook(self)

    def __call__(self, module, args):
        if self.left:
            self.left -= 1
            self.act()


def raising(error):
    raise error


@pytest.mark.parametrize(
    "handler", [too_long, Handler(), Handler().method], ids=["function", "object", "method"]
)
def test_what_a_signal_handler_raises_is_passed_on(handled, handler):
    handled(handler)
    hf = tiny_llama()
    ring = Act(hf, lambda: signal.raise_signal(signal.SIGUSR1))
    model = logitlens.load(hf)
    for read in (lambda: model.read(IDS), lambda: logitlens.load(hf)):
        ring.left = 1
        with pytest.raises(TookTooLong):
            read()
        read()


@pytest.mark.parametrize("error", [TimeoutError("slow"), KeyboardInterrupt()], ids=repr)
def test_timeouts_and_interrupts_are_passed_on(error):
    hf = tiny_llama()
    act = Act(hf, lambda: raising(error))
    model = logitlens.load(hf)
    act.left = 1
    with pytest.raises(type(error)):
        model.read(IDS)
    assert model.read(IDS).meta["check"]["ok"]


def test_an_interrupted_question_is_asked_again():
    """Whether pads or chunks change anything is asked once; a timeout is no answer."""
    hf = tiny_llama()
    act = Act(hf, lambda: raising(TimeoutError("slow")))
    model = logitlens.load(hf)
    for read in (lambda: model.read_batch([IDS, IDS[:3]]), lambda: model.read(IDS, chunk=3)):
        act.left = 1
        with pytest.raises(TimeoutError):
            read()
        read()
    assert model._pads_change_nothing


def test_the_models_own_errors_are_refusals():
    hf = tiny_llama()
    act = Act(hf, lambda: raising(ValueError("not\nso")))
    model = logitlens.load(hf)
    act.left = 1
    with pytest.raises(UnsupportedModel, match="raises ValueError on 1 × 7 tokens: not so"):
        model.read(IDS)
    assert not interrupted(ValueError())


def test_a_timeout_of_a_packages_own_is_a_timeout():
    """Packages that stop a thread raise a class of their own in it, derived from Exception."""
    for name in ("TimeoutException", "FunctionTimedOut", "CallTimedOut"):
        assert interrupted(type(name, (Exception,), {})())


# -- compiled -------------------------------------------------------------------------------------


def whole_forward(hf):
    hf.forward = torch.compile(hf.forward, backend="eager")


def the_decoder(hf):
    hf.model = torch.compile(hf.model, backend="eager")


def each_block(hf):
    for block in hf.model.layers:
        block.forward = torch.compile(block.forward, backend="eager")


@pytest.mark.timeout(120)
@pytest.mark.parametrize("compiled", [whole_forward, the_decoder, each_block])
def test_compiled_parts_are_watched_without_tracing(compiled):
    """Tracing into the hooks takes minutes; run once before, the compiled code is there."""
    plain = logitlens.load(tiny_llama()).read(IDS)
    hf = tiny_llama()
    compiled(hf)
    with torch.no_grad():
        hf(input_ids=torch.tensor([IDS]))
    reading = logitlens.load(hf).read(IDS)
    assert reading.meta["check"]["ok"]
    assert abs(reading.top_logprobs - plain.top_logprobs).max() < 1e-4


# -- turns ----------------------------------------------------------------------------------------


def test_passes_of_one_model_take_turns_also_in_training_mode():
    """Evaluation mode is the model's, not the thread's: another pass must not end it in between."""
    hf = tiny_llama().train()
    for block in hf.model.layers:
        block.mlp.register_forward_pre_hook(lambda module, args: seen.append(module.training))
    seen: list[bool] = []
    model = logitlens.load(hf)
    expected = model.read(IDS)
    failures = []

    def work():
        for _ in range(5):
            reading = model.read(IDS)
            if abs(reading.top_logprobs - expected.top_logprobs).max() > 1e-4:
                failures.append(reading)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert not any(seen)
    assert all(module.training for module in hf.modules())


def test_a_pass_leaves_gradient_mode_and_training_flags_as_they_were():
    hf = tiny_llama().train()
    hf.model.norm.eval()
    flags = [module.training for module in hf.modules()]
    with torch.enable_grad():
        with contextlib.suppress(ZeroDivisionError), as_found(hf):
            assert not torch.is_grad_enabled()
            assert not any(module.training for module in hf.modules())
            raise ZeroDivisionError
        assert torch.is_grad_enabled()
        logitlens.load(hf).read(IDS)
        assert torch.is_grad_enabled()
    assert [module.training for module in hf.modules()] == flags
