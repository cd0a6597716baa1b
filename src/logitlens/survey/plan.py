"""The plan of a survey: what is read, with what, in which shards. Written once, as DIR/plan.json.

`planning` makes one, `settle` compares it with the one in the folder: a model, an input or a setting
that differs is refused, so that all parts of a survey are of one kind.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from logitlens import edit
from logitlens.edit import Edit
from logitlens.errors import FormatError, MissingExtra, SurveyError
from logitlens.model.lens_model import LensModel
from logitlens.schema import matches, parse_json
from logitlens.survey.commit import Folder

FORMAT, VERSION = "logitlens.survey", 7
PLAN = "plan.json"
SAMPLE = 64  # numbers of every parameter, or more, that go into the model's hash
_UNTOLD = (
    "_name_or_path", "_commit_hash", "_attn_implementation_autoset", "transformers_version",
    "architectures", "dtype", "torch_dtype", "use_cache", "return_dict", "output_attentions",
    "output_hidden_states",
)  # fmt: skip
_SCHEMA = {
    "format": str, "version": int, "model": {str: object}, "lenses": [{str: object}],
    "settings": {str: object}, "input": {"path": str, "size": int, "sha256": str},
    "conditions": {str: str}, "sets": [str], "prompts": int, "answers?": int, "joined?": int,
    "skipped": [str], "shards": [[int]],
    "edits?": {"model": str, "edits": [{str: object}], "vectors": {str: object}},
    "corpus?": {
        "documents": int, "tokens": int, "sha256": str, "bad": int, "made_of": {str: object},
        "left_out": {str: str},
    },
}  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """What decides the numbers besides model and lenses.

    token_budget   tokens of one forward pass, padding included
    shard_size     prompts of one shard, fewer where they are long
    threads        of torch, in every worker: sums depend on how work is divided
    bad            "stop" at lines and prompts that cannot be read, or "skip" and count them

    Of a corpus, where shard_size counts tokens (None: a default of each kind):

    length, overlap    tokens of a window, and how many of them the window before has counted
    field              the JSONL field or Parquet column that holds the text
    cells, top         keep every position × layer, with so many top tokens
    """

    layers: str | None = None
    token_budget: int = 4096
    shard_size: int = 256
    threads: int = 1
    bad: str = "stop"
    length: int = 0
    overlap: int = 0
    field: str = "text"
    cells: bool = False
    top: int = 5


@dataclass(frozen=True)
class Plan:
    """DIR/plan.json. `facts` is its content; a worker needs nothing else."""

    facts: dict[str, Any]

    @property
    def settings(self) -> Settings:
        return Settings(**self.facts["settings"])

    @property
    def edits(self) -> list[Edit]:
        """What is changed in the stream while the model runs. Raises FormatError."""
        return edit.from_data(self.facts.get("edits", {}))

    @property
    def lenses(self) -> dict[str, str]:
        """What each lens is called in the table, by its kind where that is free, and where it is."""
        every, out = {entry["said"] for entry in self.facts["lenses"]}, {}
        for entry in self.facts["lenses"]:
            kind, said = entry["name"], entry["said"]
            free = kind not in out and (kind == said or kind not in every)
            out[kind if free else said] = entry.get("at", said)
        return out

    @property
    def is_corpus(self) -> bool:
        """Whether windows of running text are read, not labelled prompts."""
        return "corpus" in self.facts

    @property
    def unit(self) -> str:
        """What a shard counts."""
        return "windows" if self.is_corpus else "prompts"

    @property
    def shards(self) -> list[tuple[int, int]]:
        """The prompts, or windows, of each shard: from, to."""
        return [(a, b) for a, b in self.facts["shards"]]


def load(folder: str | os.PathLike[str]) -> Plan:
    """The plan of a survey. Raises SurveyError where there is none, FormatError."""
    if (there := find(Folder(folder))) is None:
        raise SurveyError(f"no survey in {folder}: expected a {PLAN} there")
    return there


def find(folder: Folder) -> Plan | None:
    """The plan in a folder, if there is one. Raises FormatError."""
    try:
        return parse(folder.place.read(PLAN), f"{folder.place.address}/{PLAN}")
    except (FileNotFoundError, NotADirectoryError):
        return None


def parse(data: bytes, path: str) -> Plan:
    """The plan in a file's bytes. Raises FormatError."""
    facts = parse_json(data, path)
    matches(facts, {"format": object, "version": object}, path)
    if facts["format"] != FORMAT:
        raise FormatError(
            f"{path}: expected format {FORMAT!r}, found {str(facts['format'])[:40]!r}"
        )
    if facts["version"] != VERSION:
        raise FormatError(
            f"{path} is of version {facts['version']}; this logitlens reads {VERSION}: begin the survey "
            "in another folder"
        )
    matches(facts, _SCHEMA, path)
    return Plan(facts)


def text(plan: Plan) -> bytes:
    """The file's bytes."""
    return (json.dumps(plan.facts, indent=1, ensure_ascii=False) + "\n").encode()


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Divide torch's work as every worker does; afterwards it is divided as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def needs_pyarrow() -> None:
    """Raise MissingExtra where the tables of a survey cannot be written."""
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        raise MissingExtra("pyarrow", "survey", "a survey") from None


def weights_hash(model: LensModel) -> str:
    """16 hex digits of the SHA-256 of some numbers of every parameter, evenly spread: of a matrix at least one
    of every row, so that a token's row which is edited or added shows."""
    digest = hashlib.sha256()
    for name, parameter in model.hf.named_parameters():
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode())
        weight = _held_elsewhere(model, name) if parameter.device.type == "meta" else parameter
        if weight is None or not weight.numel():
            continue
        flat = weight.detach().flatten()
        step = max(1, len(flat) // SAMPLE)
        has_rows = weight.ndim > 1 and weight.shape[-1] > 2 and weight.is_floating_point()
        if has_rows:  # and is not packed: a step shorter than a row misses none
            step = min(step, weight.shape[-1] - 1)
        digest.update(flat[::step].cpu().double().numpy().tobytes())
    return digest.hexdigest()[:16]


def config_hash(model: LensModel) -> str:
    """16 hex digits of what a model's configuration says beyond its class's defaults, which may grow with
    transformers, but for what tells where it came from, how it is loaded, and what it gives besides logits.
    """

    def told(facts: Any) -> Any:
        if isinstance(facts, Mapping):
            return {str(k): told(v) for k, v in facts.items() if k not in _UNTOLD}
        if isinstance(facts, (set, frozenset)):
            return sorted(map(str, facts))
        return [told(v) for v in facts] if isinstance(facts, (list, tuple)) else facts

    def name(value: Any) -> str:
        return str(value) if isinstance(value, torch.dtype) else type(value).__qualname__

    config = model.hf.config
    if not hasattr(config, "to_dict"):  # a model that is not of transformers
        return "none"
    facts = told(config.to_dict())
    try:
        usual = told(type(config)().to_dict())
    except Exception:  # one that is made of other configurations
        usual = {}
    facts = {k: v for k, v in facts.items() if k == "model_type" or k not in usual or usual[k] != v}
    text = json.dumps(facts, sort_keys=True, default=name)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _held_elsewhere(model: LensModel, name: str) -> torch.Tensor | None:
    """A parameter that accelerate keeps in main memory or on the disk until its module runs."""
    place, _, own = name.rpartition(".")
    hook = getattr(model.hf.get_submodule(place), "_hf_hook", None)
    for each in getattr(hook, "hooks", [hook]):
        if (weights := getattr(each, "weights_map", None)) is not None:
            return weights.get(own)
    return None
