"""What the page says about a reading: its name, its lens, its check, and how to make it again."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np

from logitlens.reading import Reading
from logitlens.select import EMBED, layer_number

_LENSES = {
    "logit": (
        "logit lens",
        "the model's own final norm and unembedding, with no fitted map in between (the logit lens)",
    ),
    "tuned": (
        "tuned lens",
        "a map fitted for each layer and then the model's own final norm and unembedding (a tuned lens)",
    ),
    "jacobian": (
        "Jacobian lens",
        "the average Jacobian from that layer to the last and then the model's own final norm and "
        "unembedding (a Jacobian lens)",
    ),
}
_STREAMS = {
    "resid": "the residual stream after block i in row i (in row embed, before the first block)",
    "mid": "the residual stream between a block's attention and its MLP",
    "attn": "what a block's attention adds to the residual stream",
    "mlp": "what a block's MLP adds to the residual stream",
    "head": "what each attention head adds to the residual stream",
}
CANDIDATES = 5  # of a reading that was asked for no other number
ZERO_WIDTH_JOINER = "\u200d"  # holds emoji together
_SPECIAL = re.compile(r"<\|.*\|>|</?s>|<(bos|eos|pad|unk|cls|sep|mask|start_of_turn|end_of_turn)>")
_ROLE_OPENERS = ("<|im_start|>", "<|start_header_id|>", "<start_of_turn>", "<|start|>")
_ROLES_ALONE = {"<|user|>": "user", "<|assistant|>": "assistant", "<|system|>": "system"}


def label(reading: Reading) -> str:
    """A short name of the reading: the beginning of its prompt, on one line, nothing invisible."""
    text = "".join(
        c if unicodedata.category(c)[0] != "C" or c == ZERO_WIDTH_JOINER else " "
        for c in reading.prompt
    )
    text = " ".join(text.split())
    return text if len(text) <= 120 else text[:119] + "…"


def lens_words(reading: Reading) -> tuple[str, str]:
    """(badge, phrase) for the reading's lens."""
    name = reading.lens_name
    return _LENSES.get(name, (f"{name} lens", f"the lens “{name}” and then the model's own head"))


def edited(reading: Reading) -> str:
    """The edits under which the model ran, in words; empty where there were none."""
    edits = reading.meta.get("edits") or ()
    return "; ".join(
        str(e.get("text") or "in a way unknown") for e in edits if isinstance(e, Mapping)
    )


def about(reading: Reading) -> dict[str, Any]:
    """The badges of the page and the three sentences under “What am I looking at?”."""
    badge, phrase = lens_words(reading)
    lens = reading.meta.get("lens")
    digest = str(lens.get("sha256") or lens.get("hash") or "") if isinstance(lens, Mapping) else ""
    if digest:
        badge += f" {digest[:8]}"
    model = str(reading.meta.get("model", "model unknown"))
    stream = str(reading.meta.get("stream", "resid"))
    if stream != "resid":
        badge += f" of {stream}"
    revision = str(reading.meta.get("revision") or "")
    ok, check = reading.check_text()
    return {
        "model": model + (f" @{revision[:8]}" if revision else ""),
        "lens": badge,
        "note": "no fitted map" if reading.lens_name == "logit" else "",
        "edited": edited(reading),
        "ok": ok,
        "check": check,
        "text": [
            "Each column is a position of the prompt; each row is a layer of the model, "
            f"{_STREAMS.get(stream, stream)}, read as a guess of the next token.",
            f"{model} is read here through {phrase}.",
            f"The last row is the model's own output. Check: {check}.",
        ],
        "code": code(reading),
    }


def _track(reading: Reading) -> list[Any]:
    """Tracked ids, and sets of ids by name, as `model.read` takes them."""
    sets = reading.meta.get("track_sets") or {}
    return [
        {reading.piece(i): sets[str(i)]} if str(i) in sets else i
        for i in reading.track_ids.tolist()
    ]


def code(reading: Reading) -> str:
    """Python that makes the reading again: the same model, prompt, layers and positions."""
    meta = reading.meta
    lens = meta.get("lens")
    file = lens.get("file") if isinstance(lens, Mapping) else None
    bundled = meta.get("model") in (None, "demo")
    facts = {
        "top": reading.shape[2],
        **({"candidates": C} if (C := reading.candidate_ids.shape[1]) != CANDIDATES else {}),
        "lens": f"{reading.lens_name}:{file}" if file and not bundled else reading.lens_name,
        **({"track": _track(reading)} if len(reading.track_ids) else {}),
        **_part(reading),
    }
    written, imports = meta.get("generation"), "import logitlens\n"
    if isinstance(written, Mapping):
        facts |= _settings(written)
        if "generation_config" in facts:
            imports += "from transformers import GenerationConfig\n"
    if meta.get("edits"):
        facts["edits"] = _Code("edit.load('edited.json')")
        imports += "from logitlens import edit\n"
    load = {k: meta[k] for k in ("revision", "dtype") if meta.get(k)}
    if bundled and load.get("dtype") == "float32":
        del load["dtype"]
    source = [] if bundled else [repr(meta["model"])]
    prompt, note = meta.get("prompt") or meta.get("messages"), ""
    if not prompt:
        prompt = reading.ids[~reading.generated].tolist()
        if "positions" in facts:
            note = "  # put in the whole prompt's ids: the reading holds only these"
    if meta.get("edits"):
        note += "  # edited.json: this reading, saved as JSON, which keeps the vectors of its edits"
    return (
        f"{imports}\nmodel = logitlens.load({', '.join(source + _arguments(load))})\n"
        f"reading = model.{'generate' if isinstance(written, Mapping) else 'read'}("
        f"{', '.join([repr(prompt), *_arguments(facts)])}){note}"
    )


class _Code(str):
    """An argument that is not a value."""

    __repr__ = str.__str__


class _Config(dict[str, Any]):
    """Settings that `generate` has no arguments for."""

    def __repr__(self) -> str:
        return f"GenerationConfig({', '.join(_arguments(self))})"


def _settings(written: Mapping[str, Any]) -> dict[str, Any]:
    """What `generate` was asked to write, as its arguments."""
    settings = dict(written.get("settings") or {})
    stop, drawn = settings.pop("stop_strings", None), settings.get("do_sample")
    if written.get("stopped") not in ("eos", "stop", "max_new_tokens"):  # it was ended from outside
        settings["max_new_tokens"] = len(written.get("ids") or ())
    plain = {
        k: v
        for k, v in settings.items()
        if k in ("max_new_tokens", "temperature", "top_p", "top_k")
    }
    own = len(plain) + 1 == len(settings) and (plain.get("top_k") or not drawn)
    return {
        **(plain if own else {"generation_config": _Config(settings)}),
        **({"seed": written.get("seed")} if drawn else {}),
        **({"stop": stop} if stop else {}),
    }


def _arguments(facts: Mapping[str, Any]) -> list[str]:
    return [f"{name}={value!r}" for name, value in facts.items()]


def _part(reading: Reading) -> dict[str, Any]:
    """What `read` was asked to leave out, as its arguments."""
    meta, out = reading.meta, {}
    stream = meta.get("stream", "resid")
    # under what sublayers add, the model's own row comes without being asked for
    labels = reading.layers if stream == "resid" else reading.layers[:-1]
    if len(labels) < meta.get("n_blocks", 0) + (stream == "resid"):
        blocks = _selection([n for n in map(layer_number, labels) if n is not None])
        out["layers"] = blocks if EMBED not in labels else _with_embed(blocks)
    positions, ran = meta.get("positions"), meta.get("prompt_tokens")
    written = meta.get("generation")
    if positions and isinstance(written, Mapping):  # of the prompt: what is written is always kept
        ran = written.get("prompt_tokens", len(positions))
        positions = [p for p in positions if p < ran]
    of_all = ran is None or (positions and len(positions) == ran)  # a file may say any number
    if positions and not (of_all and positions == list(range(len(positions)))):
        out["positions"] = _selection(positions)
    if meta.get("truncated"):
        out["truncate"] = True
    if stream != "resid":
        out["stream"] = stream
    return out


def _with_embed(blocks: str | list[int]) -> str | list[int | str]:
    return f"{EMBED},{blocks}" if isinstance(blocks, str) else [EMBED, *blocks]


def _selection(numbers: list[int]) -> str | list[int]:
    """Numbers as `first:stop:step` where they are evenly apart."""
    step = numbers[1] - numbers[0] if len(numbers) > 1 else 1
    even = range(numbers[0], numbers[-1] + 1, step) if step > 0 else range(0)
    if len(even) != len(numbers) or list(even) != numbers:
        return numbers
    return f"{numbers[0]}:{numbers[-1] + 1}" + (f":{step}" if step > 1 else "")


def special_ids(reading: Reading) -> set[int]:
    """Input ids that are special tokens: as recorded, else by the look of their pieces."""
    known = reading.meta.get("special_ids")
    if known is not None:
        return {int(i) for i in known}
    return {int(i) for i, p in reading.vocab.items() if _SPECIAL.fullmatch(p)} | {
        int(i) for i, p in zip(reading.ids, reading.pieces) if _SPECIAL.fullmatch(p)
    }


def roles(reading: Reading) -> list[list[Any]]:
    """[[start, stop, role], …] of a chat: as recorded, else from its template's special tokens."""
    starts: list[tuple[int, str]] = []
    pieces = reading.pieces
    if (reading.role != "").any():
        edges = [0, *(np.flatnonzero(reading.role[1:] != reading.role[:-1]) + 1), len(pieces)]
        runs = [[int(a), int(b), str(reading.role[a])] for a, b in pairwise(edges)]
        return [run for run in runs if run[2]]
    for i, piece in enumerate(pieces):
        if piece in _ROLES_ALONE:
            starts.append((i, _ROLES_ALONE[piece]))
        elif piece in _ROLE_OPENERS and i + 1 < len(pieces):
            role = pieces[i + 1].strip()
            if role.isalpha() and len(role) <= 12:
                starts.append((i, role))
    stops = [start for start, _ in starts[1:]] + [len(pieces)]
    return [[start, stop, role] for (start, role), stop in zip(starts, stops)]
