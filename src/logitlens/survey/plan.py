"""The plan of a survey: what is read, with what, in which shards. Written once, as DIR/plan.json.

Whoever works on a survey compares what they were asked to do with the plan; a model, an input or a
setting that differs is refused, so that all parts of a survey are of one kind.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch

from logitlens import edit
from logitlens.edit import Edit
from logitlens.errors import FormatError, MissingExtra, ModelNotAvailable, PromptError, SurveyError
from logitlens.lenses import resolve
from logitlens.model.edits import Prepared
from logitlens.model.lens_model import LensModel
from logitlens.model.provenance import display_name
from logitlens.schema import matches, parse_json
from logitlens.storage import is_remote
from logitlens.survey import documents
from logitlens.survey.bands import CELLS
from logitlens.survey.commit import Folder
from logitlens.survey.prompts import Prompts

FORMAT, VERSION = "logitlens.survey", 4
PLAN = "plan.json"
SAMPLE = 64  # numbers of every parameter that go into the model's hash
BYTES = 400_000  # of several labelled prompts in one shard, some 100,000 tokens
_SCHEMA = {
    "format": str, "version": int, "model": {str: object}, "lenses": [{str: object}],
    "settings": {str: object}, "input": {"path": str, "size": int, "sha256": str},
    "conditions": {str: str}, "sets": [str], "prompts": int, "answers?": int,
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


def make(
    model: LensModel,
    given: dict[str, Any],
    *,
    source: str,
    loading: Mapping[str, Any],
    lenses: Sequence[str],
    settings: Settings,
    edits: Sequence[Edit] = (),
) -> Plan:
    """The plan for an input (`of_prompts`, `of_corpus`). `source` and `loading` are how a worker loads
    the model.

    Raises what `resolve` raises.
    """
    if edits:
        given = {**given, "edits": {"model": display_name(model.name), **edit.to_data(edits)}}
    return Plan(
        {
            "format": FORMAT,
            "version": VERSION,
            "model": {
                "source": source if source == "demo" else _located(source),
                "loading": {k: v for k, v in loading.items() if v not in (None, False)},
                "name": model.name,
                "revision": model.revision,
                "class": type(model.hf).__name__,
                "weights": weights_hash(model),
                "tokenizer": documents.tokenizer_hash(model),
            },
            "lenses": [_lens(said, model) for said in lenses],
            "settings": asdict(settings),
            **given,
        }
    )


def _lens(said: str, model: LensModel) -> dict[str, Any]:
    """What a plan says of a lens, with its path from wherever the survey is gone on with."""
    kind, _, path = said.partition(":")
    at = f"{kind}:{_located(path)}" if path else said
    return {"said": said, **({"at": at} if at != said else {}), **resolve(said, model).describe()}


def of_prompts(prompts: Prompts, settings: Settings) -> dict[str, Any]:
    """What a plan says of labelled prompts."""
    sets = dict.fromkeys(name for item in prompts.items for name in item.sets)
    return {
        "input": {
            "path": _absolute(prompts.path),
            "size": prompts.size,
            "sha256": prompts.sha256,
        },
        "conditions": prompts.types,
        "sets": list(sets),
        "prompts": len(prompts.items),
        "answers": sum(bool(item.answers) for item in prompts.items),
        "skipped": prompts.skipped,
        "shards": _shards([item.size for item in prompts.items], settings.shard_size),
    }


def _shards(sizes: Sequence[int], most: int) -> list[list[int]]:
    """Ranges of up to `most` prompts, and up to BYTES where they are several."""
    cuts, held = [0], 0
    for n, size in enumerate(sizes):
        if n > cuts[-1] and (n - cuts[-1] == most or held + size > BYTES):
            cuts.append(n)
            held = 0
        held += size
    return [list(pair) for pair in itertools.pairwise([*cuts, len(sizes)])]


def of_corpus(
    folder: Folder,
    source: str,
    model: LensModel,
    settings: Settings,
    edits: Prepared | None = None,
) -> dict[str, Any]:
    """What a plan says of a corpus, whose token ids are written into the survey's folder.

    Raises what reading a corpus raises, PromptError where a window lacks a position that is edited,
    and SurveyError where the folder is not a survey's.
    """
    if not settings.overlap < settings.length:
        raise FormatError(
            f"an overlap of {settings.overlap} in windows of {settings.length} tokens: expected less"
        )
    if model.context is not None and settings.length > model.context:
        raise FormatError(
            f"windows of {settings.length} tokens; the model's context holds {model.context}"
        )
    made, size, sha256 = documents.made_of(source, model, settings.field, settings.bad == "skip")
    _only_a_survey(folder)
    if (there := _there(folder)) is not None:  # refused before its ids are overwritten
        if not there.is_corpus:
            raise SurveyError(_begun_with(folder, ["input: it was labelled prompts, now text"]))
        if (was := there.facts["input"])["sha256"] != sha256:
            other = f"input: it was {was['size']:,} bytes of text, now {size:,} of other text"
            raise SurveyError(_begun_with(folder, [other]))
        if (was := there.facts["corpus"]["made_of"]) != made:
            raise SurveyError(_begun_with(folder, _changes(was, made, "corpus")))
    facts = documents.tokenise(folder.place, source, model, made, own=(*CELLS, "prompt", "answer"))
    windows = documents.windows(folder.place, settings.length, settings.overlap)
    if edits is not None:
        try:
            edits.require(windows.shortest)
        except PromptError as error:
            raise PromptError(f"{error} (the shortest window)") from None
    shards = windows.shards(settings.shard_size)
    return {
        "input": {"path": _absolute(source), "size": size, "sha256": sha256},
        "conditions": facts["conditions"], "sets": [], "prompts": len(windows),
        "skipped": facts["skipped"], "shards": [list(shard) for shard in shards],
        "corpus": {k: v for k, v in facts.items() if k not in ("skipped", "conditions")},
    }  # fmt: skip


def _absolute(path: str | os.PathLike[str]) -> str:
    return str(path) if is_remote(path) else os.path.abspath(os.path.expanduser(path))


def _located(name: str) -> str:
    """The absolute path of what is on this disk; else the name, as of the hub."""
    path = os.path.expanduser(name)
    return os.path.abspath(path) if os.path.exists(path) else name


def weights_hash(model: LensModel) -> str:
    """16 hex digits of the SHA-256 of some numbers of every parameter, evenly spread."""
    digest = hashlib.sha256()
    for name, parameter in model.hf.named_parameters():
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode())
        weight = _held_elsewhere(model, name) if parameter.device.type == "meta" else parameter
        if weight is None or not weight.numel():
            continue
        flat = weight.detach().flatten()
        step = max(1, len(flat) // SAMPLE)
        digest.update(flat[::step].cpu().double().numpy().tobytes())
    return digest.hexdigest()[:16]


def _held_elsewhere(model: LensModel, name: str) -> torch.Tensor | None:
    """A parameter that accelerate keeps in main memory or on the disk until its module runs."""
    place, _, own = name.rpartition(".")
    hook = getattr(model.hf.get_submodule(place), "_hf_hook", None)
    for each in getattr(hook, "hooks", [hook]):
        if (weights := getattr(each, "weights_map", None)) is not None:
            return weights.get(own)
    return None


def settle(folder: Folder, plan: Plan) -> Plan:
    """Write the plan of a new survey, or find it equal to the one that is there, which is told where input,
    model and lenses are now, and that prompts that cannot be read are skipped from now on (what is
    committed has none).

    Raises SurveyError that says what changed, FormatError, OSError.
    """
    there = _there(folder)
    if there is None:
        _only_a_survey(folder)
        kept = folder.place.create(PLAN, _text(plan))
        there = _checked(kept, f"{folder.place.address}/{PLAN}")
    now, asked = _moved(there.facts, json.loads(json.dumps(plan.facts)))
    if not there.is_corpus and plan.settings.bad == "skip":
        now["settings"] = {**now["settings"], "bad": "skip"}
    changed = list(_changes(now, asked))
    if there.is_corpus and not plan.is_corpus:
        changed = ["input: it was text, now labelled prompts"]
    if changed:
        raise SurveyError(_begun_with(folder, changed))
    if now != there.facts:
        there = Plan(now)
        folder.place.write(PLAN, _text(there))
    return there


def _moved(facts: dict[str, Any], asked: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Both with the paths that are asked for: what is there is compared by what it holds."""
    now = {**facts, "input": {**facts["input"], "path": asked["input"]["path"]}}
    if all(os.path.isabs(each["model"]["source"]) for each in (facts, asked)):
        now["model"] = facts["model"] | {k: asked["model"][k] for k in ("source", "name")}
    if len(facts["lenses"]) == len(asked["lenses"]):
        pairs = [_moved_lens(*pair) for pair in zip(facts["lenses"], asked["lenses"])]
        now["lenses"] = [old for old, _ in pairs]
        asked = {**asked, "lenses": [new for _, new in pairs]}
    return now, asked


def _moved_lens(old: dict[str, Any], new: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The same, of a lens; what the table calls it stays."""
    if {**old, "said": "", "at": ""} != {**new, "said": "", "at": ""}:
        return old, new
    at = new.get("at", new["said"])
    moved = {k: v for k, v in old.items() if k != "at"} | ({"at": at} if at != old["said"] else {})
    return moved, moved


def _text(plan: Plan) -> bytes:
    return (json.dumps(plan.facts, indent=1, ensure_ascii=False) + "\n").encode()


def _begun_with(folder: Folder, changed: list[str]) -> str:
    return (
        f"the survey in {folder.place.address} is another: {'; '.join(changed)}. "
        "Run it with the same settings, or choose another folder"
    )


def _only_a_survey(folder: Folder) -> None:
    own = (PLAN, *documents.FILES)
    names = folder.place.names()
    if PLAN not in names and any(
        name not in own and not name.startswith(tuple(f".{each}." for each in own))
        for name in names
    ):
        raise SurveyError(
            f"{folder.place.address} is not empty and holds no survey: choose another folder"
        )


def _changes(old: dict[str, Any], new: dict[str, Any], at: str = "") -> list[str]:
    """What differs, in words; where an input moved to is not a difference."""
    out = []
    for name in dict.fromkeys([*old, *new]):
        a, b = old.get(name), new.get(name)
        where = f"{at} {name}".strip()
        if a == b or where in ("shards", "prompts", "skipped"):
            continue
        if where == "edits":
            was, now = (_edited(each) for each in (a, b))
            out.append(
                f"edits: {was}, now {now}" if was != now else f"edits: {now}, with other vectors"
            )
            continue
        if isinstance(a, dict) and isinstance(b, dict):
            out += _changes(a, b, where)
        elif isinstance(a, list) and isinstance(b, list) and len(a) == len(b) and a:
            pairs = [(x, y) for x, y in zip(a, b) if x != y]
            if where == "lenses" and any(x["said"] != y["said"] for x, y in pairs):
                old_lenses, new_lenses = (
                    [entry["said"] for entry in entries] for entries in (a, b)
                )
                out.append(f"lenses: {_short(old_lenses)}, now {_short(new_lenses)}")
            elif all(isinstance(x, dict) and isinstance(y, dict) for x, y in pairs):
                out += [change for x, y in pairs for change in _changes(x, y, where)]
            else:
                out.append(f"{where}: {_short(a)}, now {_short(b)}")
        else:
            out.append(f"{where}: {_short(a)}, now {_short(b)}")
    return out


def _edited(data: dict[str, Any] | None) -> str:
    return "; ".join(row["text"] for row in data["edits"]) if data else "none"


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "…"


def load(folder: str | os.PathLike[str]) -> Plan:
    """The plan of a survey. Raises ModelNotAvailable, FormatError."""
    if (there := _there(Folder(folder))) is None:
        raise ModelNotAvailable(f"no survey in {folder}: expected a {PLAN} there")
    return there


def _there(folder: Folder) -> Plan | None:
    try:
        return _checked(folder.place.read(PLAN), f"{folder.place.address}/{PLAN}")
    except (FileNotFoundError, NotADirectoryError):
        return None


def _checked(data: bytes, path: str) -> Plan:
    facts = parse_json(data, path)
    matches(facts, {"format": object, "version": object}, path)
    if facts["format"] != FORMAT:
        raise FormatError(
            f"{path}: expected format {FORMAT!r}, found {str(facts['format'])[:40]!r}"
        )
    if facts["version"] != VERSION:
        raise FormatError(
            f"{path} is of version {facts['version']}; this logitlens reads {VERSION}"
        )
    matches(facts, _SCHEMA, path)
    return Plan(facts)


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
