"""The settings of a generation, as transformers takes them: checked, and watched while they are used."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import GenerationConfig
from transformers.generation.logits_process import LogitsProcessorList
from transformers.generation.stopping_criteria import StoppingCriteriaList

from logitlens.errors import PromptError
from logitlens.model.tokens import whole

if TYPE_CHECKING:
    from logitlens.model.lens_model import LensModel

LENGTH = 40  # tokens to write where nobody says how many
# Settings of transformers that write something else than one sequence by one model, and the values
# at which they do not.
ONE_SEQUENCE: dict[str, tuple[Any, ...]] = {
    "num_beams": (1,),
    "num_return_sequences": (1,),
    "prompt_lookup_num_tokens": (),
    "assistant_early_exit": (),
    "use_mtp": (),
    "penalty_alpha": (0,),
    "dola_layers": (),
    "guidance_scale": (1,),
    "constraints": (),
    "force_words_ids": (),
    "token_healing": (),
}
# What ended a generation, by the criterion of transformers that says so.
_REASONS = {
    "EosTokenCriteria": "eos",
    "StopStringCriteria": "stop",
    "MaxTimeCriteria": "max_time",
    "MaxLengthCriteria": "max_new_tokens",
}
_SILENT = (
    "_", "assistant_", "bos_", "disable_compile", "max_length", "num_assistant_", "pad_", "target_",
    "temperature", "top_", "transformers_version", "use_cache",
)  # fmt: skip


def settings_of(
    model: LensModel,
    given: GenerationConfig | None,
    *,
    max_new_tokens: int | None,
    temperature: float | None,
    top_p: float | None,
    top_k: int | None,
    stop: str | Sequence[str],
) -> GenerationConfig:
    """The settings for transformers. Raises PromptError for a value that means nothing.

    What neither the arguments nor `given` name is the model's own default, as in `hf.generate`;
    but without `given` the likeliest token is taken unless a temperature is named.
    """
    if given is not None and not isinstance(given, GenerationConfig):
        raise PromptError(
            f"generation_config: expected a transformers GenerationConfig, got {type(given).__name__}"
        )
    settings = copy.deepcopy(given) if given is not None else GenerationConfig(num_beams=1)
    if temperature is None and given is None:
        temperature = 0.0
    _choose(settings, temperature, top_p, top_k)
    if max_new_tokens is not None:
        settings.max_new_tokens, settings.max_length = max_new_tokens, None
    for name in ("max_new_tokens", "max_length"):
        if (value := getattr(settings, name)) is not None:
            setattr(settings, name, _from_one(name, value, "at least 1"))
    if not (texts := _texts(stop)):
        texts = _texts(stop := settings.stop_strings or ())
    if not all(isinstance(text, str) and text and _is_text(text) for text in texts):
        raise _refusal("stop", stop, "texts that end the generation")
    if texts and model.tokenizer is None:
        raise PromptError(f"stop={stop!r} needs a tokenizer: load the model with tokenizer=…")
    settings.stop_strings = texts or None
    # Nothing of a pass is kept but its rows; no compiled graph, which would not see the hooks.
    settings.return_dict_in_generate = settings.output_scores = settings.output_logits = False
    settings.output_attentions = settings.output_hidden_states = False
    settings.disable_compile = True
    return settings


def _choose(
    settings: GenerationConfig, temperature: float | None, top_p: float | None, top_k: int | None
) -> None:
    """Put into the settings how a token is chosen. Raises PromptError."""
    if temperature is not None:
        if not _is_number(temperature) or not 0 <= temperature <= sys.float_info.max:
            raise _refusal("temperature", temperature, "0 (the likeliest token) or more, like 0.8")
        settings.do_sample = temperature > 0
        settings.temperature = float(temperature) if temperature else 1.0
    if top_p is not None and not (_is_number(top_p) and 0 < top_p <= 1):
        raise _refusal("top_p", top_p, "a probability above 0, up to 1")
    if top_k is not None:
        top_k = _from_one("top_k", top_k, "1 or more tokens to choose from")
    if not settings.do_sample:
        for name, value in (("top_p", top_p), ("top_k", top_k)):
            if value is not None:
                raise PromptError(
                    f"{name}={value!r} changes nothing where the likeliest token is taken: give a "
                    "temperature above 0 too"
                )
        settings.top_p, settings.top_k = 1.0, 50  # else transformers warns of the model's own
    if top_p is not None:
        settings.top_p = float(top_p)
    if top_k is not None:
        settings.top_k = top_k


def _refusal(name: str, value: object, expected: str) -> PromptError:
    return PromptError(f"{name}={value!r:.60}: expected {expected}")


def _from_one(name: str, value: Any, expected: str) -> int:
    """A whole number from 1. Raises PromptError."""
    if (number := whole(value)) is None or number < 1:
        raise _refusal(name, value, expected)
    return number


def _texts(stop: Any) -> list[Any]:
    return (
        list(stop) if isinstance(stop, Iterable) and not isinstance(stop, (str, bytes)) else [stop]
    )


def _is_number(value: Any) -> bool:
    return not isinstance(value, (bool, str)) and isinstance(value, (int, float))


def _is_text(text: str) -> bool:
    """Whether it can be written as UTF-8: half a character is no text."""
    return text == text.encode("utf-8", "ignore").decode()


def with_length(settings: GenerationConfig, tokens: int, context: int | None) -> GenerationConfig:
    """The settings with a number of tokens to write that fits behind a prompt of so many tokens.

    Raises PromptError where what was asked for does not fit.
    """
    room = None if context is None else context - tokens
    asked = settings.max_new_tokens
    if asked is None and settings.max_length is not None:
        asked = max(1, settings.max_length - tokens)
    if room is not None and (asked or 1) > room:
        raise PromptError(
            f"the prompt has {tokens} tokens and the model's context holds {context}: expected "
            f"max_new_tokens of at most {max(room, 0)}, got {asked or LENGTH}; ask for fewer, or "
            "shorten the prompt (truncate=True, --truncate)"
        )
    settings.max_new_tokens = asked or min(LENGTH, room or LENGTH)
    settings.max_length = None
    return settings


def refuse_several(settings: GenerationConfig) -> None:
    """Raises PromptError for what writes something else than one sequence by one model."""
    for name, plain_values in ONE_SEQUENCE.items():
        value = getattr(settings, name, None)
        if value is not None and value is not False and value not in plain_values:
            raise PromptError(
                f"{name}={value!r}: expected one sequence written by one model, greedy or sampled"
            )


def plain(settings: GenerationConfig) -> dict[str, Any]:
    """The settings that say something: those that change the scores or the end, and the usual ones."""
    usual = ("do_sample", "max_new_tokens")
    if settings.do_sample:
        usual += ("temperature", "top_p", "top_k")
    stated = {
        name: value
        for name, value in settings.to_diff_dict().items()
        if value not in (None, False, 0, 1) and not name.startswith(_SILENT)
    }
    return stated | {name: getattr(settings, name, None) for name in usual}


def seed_of(given: int | None) -> int | None:
    """A seed that torch takes. Raises PromptError."""
    seed = whole(given)
    if given is not None and (seed is None or not -(1 << 63) <= seed < 1 << 64):
        raise _refusal("seed", given, "a whole number of 64 bits")
    return seed


@contextmanager
def seeded(seed: int | None, device: torch.device) -> Iterator[None]:
    """Inside, random numbers are those of the seed; outside, as if none had been drawn."""
    if seed is None:
        yield
        return
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def pad_of(hf: Any) -> int | None:
    """The id that a model pads with: its own, its end, or 0."""
    own = getattr(hf, "generation_config", None)
    pad, eos = getattr(own, "pad_token_id", None), getattr(own, "eos_token_id", None)
    if pad is not None:
        return pad
    return (eos[0] if isinstance(eos, list) else eos) or 0


class WatchedProcessors(LogitsProcessorList):
    """Those that transformers prepared; `scored` sees the logits (1, V) of every pass, and what became
    of them."""

    def __init__(self, processors: LogitsProcessorList, scored: Callable[[Tensor, Tensor], object]):
        super().__init__(processors)
        self.scored = scored

    def __call__(self, input_ids: Any, scores: Any, **options: Any) -> Any:
        before = scores.clone() if len(self) else scores  # some work in place
        after = super().__call__(input_ids, scores, **options)
        self.scored(before, after)
        return after


class WatchedCriteria(StoppingCriteriaList):
    """Those that transformers prepared; `chosen` sees every token and why it is the last, if it is, and
    says whether the generation ends."""

    def __init__(self, criteria: StoppingCriteriaList, chosen: Callable[[int, str], bool]):
        super().__init__(criteria)
        self.chosen = chosen

    def __call__(self, input_ids: Any, scores: Any, **options: Any) -> Any:
        asked = [type(c).__name__ for c in self if bool(c(input_ids, scores, **options).all())]
        reasons = [reason for name, reason in _REASONS.items() if name in asked]
        ends = self.chosen(int(input_ids[0, -1]), next(iter(reasons + asked), ""))
        return input_ids.new_full((1,), ends, dtype=torch.bool)
