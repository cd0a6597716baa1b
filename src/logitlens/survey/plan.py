"""The plan of a survey: what is read, with what, in which shards. Written once, as DIR/plan.json.

Whoever works on a survey compares what they were asked to do with the plan; a model, an input or a
setting that differs is refused, so that all parts of a survey are of one kind.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from logitlens.errors import FormatError, MissingExtra, ModelNotAvailable, SurveyError
from logitlens.files import write_text
from logitlens.lenses import resolve
from logitlens.model.lens_model import LensModel
from logitlens.schema import matches, parse_json
from logitlens.survey.prompts import Prompts

FORMAT, VERSION = "logitlens.survey", 1
SAMPLE = 64  # numbers of every parameter that go into the model's hash
_SCHEMA = {
    "format": str, "version": int, "model": {str: object}, "lenses": [{str: object}],
    "settings": {str: object}, "input": {"path": str, "size": int, "sha256": str},
    "conditions": {str: str}, "sets": [str], "prompts": int, "skipped": [str], "shards": [[int]],
}  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """What decides the numbers besides model and lenses.

    token_budget   tokens of one forward pass, padding included
    shard_size     prompts of one shard
    threads        of torch, in every worker: sums depend on how work is divided
    bad            "stop" at lines and prompts that cannot be read, or "skip" and count them
    """

    layers: str | None = None
    token_budget: int = 4096
    shard_size: int = 256
    threads: int = 1
    bad: str = "stop"


@dataclass(frozen=True)
class Plan:
    """DIR/plan.json. `facts` is its content; a worker needs nothing else."""

    facts: dict[str, Any]

    @property
    def settings(self) -> Settings:
        return Settings(**self.facts["settings"])

    @property
    def shards(self) -> list[tuple[int, int]]:
        """The prompts of each shard: from, to."""
        return [(a, b) for a, b in self.facts["shards"]]


def make(
    model: LensModel,
    prompts: Prompts,
    *,
    source: str,
    loading: Mapping[str, Any],
    lenses: Sequence[str],
    settings: Settings,
) -> Plan:
    """The plan for labelled prompts. `source` and `loading` are how a worker loads the model.

    Raises what `resolve` raises.
    """
    size, count = settings.shard_size, len(prompts.items)
    sets = dict.fromkeys(name for item in prompts.items for name in item.sets)
    return Plan(
        {
            "format": FORMAT,
            "version": VERSION,
            "model": {
                "source": source,
                "loading": {k: v for k, v in loading.items() if v not in (None, False)},
                "name": model.name,
                "revision": model.revision,
                "class": type(model.hf).__name__,
                "weights": weights_hash(model),
            },
            "lenses": [{"said": said, **resolve(said, model).describe()} for said in lenses],
            "settings": asdict(settings),
            "input": {
                "path": os.path.abspath(prompts.path),
                "size": prompts.size,
                "sha256": prompts.sha256,
            },
            "conditions": prompts.types,
            "sets": list(sets),
            "prompts": count,
            "skipped": prompts.skipped,
            "shards": [[a, min(count, a + size)] for a in range(0, count, size)],
        }
    )


def weights_hash(model: LensModel) -> str:
    """16 hex digits of the SHA-256 of some numbers of every parameter, evenly spread."""
    digest = hashlib.sha256()
    for name, parameter in model.hf.named_parameters():
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode())
        if parameter.device.type == "meta" or not parameter.numel():
            continue
        flat = parameter.detach().flatten()
        step = max(1, len(flat) // SAMPLE)
        digest.update(flat[::step].double().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def settle(folder: Path, plan: Plan) -> Plan:
    """Write the plan of a new survey, or find it equal to the one that is there.

    Raises SurveyError that says what changed, FormatError, OSError.
    """
    path = folder / "plan.json"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        if any(not file.name.startswith(".plan.json.") for file in folder.iterdir()):
            raise SurveyError(f"{folder} is not empty and holds no survey: choose another folder")
        write_text(path, json.dumps(plan.facts, indent=1, ensure_ascii=False) + "\n")
        return plan
    there = load(folder)
    changed = list(_changes(there.facts, json.loads(json.dumps(plan.facts))))
    if changed:
        raise SurveyError(
            f"the survey in {folder} was begun with another {'; '.join(changed)}. "
            "Ask for the same again, or choose another folder"
        )
    return there


def _changes(old: dict[str, Any], new: dict[str, Any], at: str = "") -> list[str]:
    """What differs, in words; where an input moved to is not a difference."""
    out = []
    for name in dict.fromkeys([*old, *new]):
        a, b = old.get(name), new.get(name)
        where = f"{at} {name}".strip()
        if a == b or where in ("input path", "shards", "prompts"):
            continue
        if isinstance(a, dict) and isinstance(b, dict):
            out += _changes(a, b, where)
        elif isinstance(a, list) and isinstance(b, list) and len(a) == len(b) and a:
            pairs = [(x, y) for x, y in zip(a, b) if x != y]
            if all(isinstance(x, dict) and isinstance(y, dict) for x, y in pairs):
                out += [change for x, y in pairs for change in _changes(x, y, where)]
            else:
                out.append(f"{where}: {_short(a)}, now {_short(b)}")
        else:
            out.append(f"{where}: {_short(a)}, now {_short(b)}")
    return out


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "…"


def load(folder: str | Path) -> Plan:
    """The plan of a survey. Raises ModelNotAvailable, FormatError."""
    path = Path(folder) / "plan.json"
    if not path.is_file():
        raise ModelNotAvailable(f"no survey in {folder}: expected a plan.json there")
    facts = parse_json(path.read_bytes(), str(path))
    matches(facts, {"format": object, "version": object}, str(path))
    if facts["format"] != FORMAT:
        raise FormatError(
            f"{path}: expected format {FORMAT!r}, found {str(facts['format'])[:40]!r}"
        )
    if facts["version"] != VERSION:
        raise FormatError(
            f"{path} is of version {facts['version']}; this logitlens reads {VERSION}"
        )
    matches(facts, _SCHEMA, str(path))
    return Plan(facts)


def set_threads(plan: Plan) -> None:
    """Divide the work of this process as every worker of the survey does."""
    torch.set_num_threads(plan.settings.threads)


def needs_pyarrow() -> None:
    """Raise MissingExtra where the tables of a survey cannot be written."""
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        raise MissingExtra("pyarrow", "survey", "a survey") from None
