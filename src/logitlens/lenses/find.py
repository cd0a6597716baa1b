"""From what a user names (`"tuned"`, `"tuned:PATH"`, a lens object) to a lens that fits the model.

A bare name is looked up beside the model, in the local lens folder, among the bundled lenses and on
the hub, in this order; the first that fits the model is taken.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

from logitlens import hub
from logitlens.anatomy.readable import Readable
from logitlens.errors import (
    FormatError,
    LensMismatch,
    LensNotAvailable,
    ModelNotAvailable,
    PromptError,
    UnknownLens,
)
from logitlens.lenses import interpretation, online, published, store
from logitlens.lenses.base import Lens, LogitLens
from logitlens.lenses.fitted import FittedLens
from logitlens.lenses.header import FORMAT

BUNDLED = Path(__file__).resolve().parents[1] / "demo" / "lenses"


def resolve(lens: str | Lens, model: Readable) -> Lens:
    """A name, `"tuned:PATH"`, `"jacobian:PATH"` or a lens object → a lens checked against `model`.

    PATH is a lens file, a published tuned-lens directory, a folder with a lens in it, or a hub
    repository `owner/name`. What a published file holds is tested when it is first used with a
    model, and its `describe()` says what was found. Raises LensNotAvailable (none found), LensMismatch
    (another model's), FormatError (not a lens), UnknownLens (no such kind), PromptError (no lens at all).
    """
    found = _by_name(lens, model) if isinstance(lens, str) else lens
    if not isinstance(found, Lens):
        raise PromptError(
            f"expected a lens name or an object with depths(), apply(), describe() and check_model(); "
            f"got {type(found).__name__}"
        )
    found.check_model(model)
    if isinstance(found, FittedLens) and found.header.source != FORMAT:
        found.verdict = interpretation.first_use(found, model)
    return found


def _by_name(spec: str, model: Readable) -> Lens:
    kind, path = parsed(spec)
    if kind == "logit":
        return LogitLens()
    return open_lens(path, kind) if path else find(kind, model)


def parsed(spec: str) -> tuple[str, str]:
    """The kind that a name says, and its PATH or nothing.

    Raises UnknownLens, and LensNotAvailable for a PATH that is neither here nor a name of the hub.
    """
    kind, colon, path = spec.partition(":")
    if kind not in ("logit", *store.KINDS) or (colon and (kind == "logit" or not path)):
        raise UnknownLens(
            f"no lens called {spec!r}: expected logit, tuned[:PATH] or jacobian[:PATH]"
        )
    if path and not Path(os.path.expanduser(path)).exists() and not _is_repository(path):
        raise _absent(path)
    return kind, path


def _is_repository(path: str | os.PathLike[str]) -> bool:
    return str(path).count("/") == 1 and hub.is_name(str(path))


def _absent(path: str | os.PathLike[str]) -> LensNotAvailable:
    return LensNotAvailable(
        f"no lens at {path}: expected a .safetensors or .pt file, a folder with a lens, or a hub "
        "repository owner/name"
    )


def open_lens(path: str | os.PathLike[str], kind: str | None = None) -> FittedLens:
    """A lens from a path or a hub repository; `kind` is "tuned", "jacobian" or None for either."""
    place = Path(os.path.expanduser(path))
    if place.is_file():
        lens = published.load_jacobian_pt(place) if place.suffix == ".pt" else store.load(place)
    elif place.is_dir():
        lens = _open_folder(place, kind)
    elif _is_repository(path):
        lens = open_lens(_pulled(str(path), kind), kind)
    else:
        raise _absent(path)
    if kind is not None and lens.kind != kind:
        raise LensMismatch(f"{path} is a {lens.kind} lens: say {lens.kind}:{path}")
    return lens


def _pulled(repository: str, kind: str | None) -> Path:
    try:
        found, why = online.pull(repository, kind), ""
    except ModelNotAvailable as error:
        found, why = None, f": {error}"
    if found is None:
        raise LensNotAvailable(
            f"no {kind or 'fitted'} lens in the hub repository {repository} (expected "
            f"{kind or 'tuned'}.safetensors){why}"
        )
    return found


def _open_folder(folder: Path, kind: str | None) -> FittedLens:
    files = [f for k in store.KINDS if kind in (None, k) for f in _files_of_kind(folder, k)]
    if kind in (None, "tuned") and (folder / "params.pt").is_file():
        files.append(folder)
    if not files:
        raise LensNotAvailable(
            f"no {kind or 'fitted'} lens in {folder}: expected {kind or 'tuned'}.safetensors, a "
            "*_jacobian_lens.pt, or config.json with params.pt"
        )
    if len(files) > 1:
        names = ", ".join(f.name for f in files)
        raise LensMismatch(f"{folder} has several lenses ({names}): name the file")
    return published.load_tuned_directory(files[0]) if files[0].is_dir() else open_lens(files[0])


def _files_of_kind(folder: Path, kind: str) -> list[Path]:
    named = folder / f"{kind}.safetensors"
    if named.is_file():
        return [named]
    if kind == "jacobian":
        return visible(folder, "*jacobian_lens*.pt") or visible(folder, "lens.pt")
    return []


def visible(folder: Path, pattern: str) -> list[Path]:
    """Files by a pattern, without hidden ones: those are what a killed write left behind."""
    found = sorted(folder.glob(pattern))
    return [f for f in found if not any(p.startswith(".") for p in f.relative_to(folder).parts)]


def stored() -> list[Path]:
    """The bundled lenses and those in the local lens folder: files, and folders of published tuned lenses."""
    folder = lens_folder()
    files = [
        f
        for pattern in ("*.safetensors", "*jacobian_lens*.pt")
        for f in visible(folder, f"*/{pattern}")
    ]
    tuned = [file.parent for file in visible(folder, "*/params.pt")]
    return [*sorted(BUNDLED.glob("*.safetensors")), *files, *tuned]


def find(kind: str, model: Readable) -> FittedLens:
    """A lens of `kind` that fits `model`. Raises LensNotAvailable, LensMismatch."""
    refused: LensMismatch | FormatError | None = None
    for place in candidates(kind, model):
        try:
            lens = open_lens(place, kind)
            lens.check_model(model)
            return lens
        except LensNotAvailable:
            continue
        except (LensMismatch, FormatError) as error:
            refused = refused or error
    try:
        on_hub, why = online.find(kind, model.name), ""
    except ModelNotAvailable as error:
        on_hub, why = None, f"; {error}"
    if on_hub is not None:
        return open_lens(on_hub, kind)
    if refused is not None:
        raise refused
    raise LensNotAvailable(
        f"no {kind} lens found for {model.name} (looked beside the model, in {lens_folder()}, in the "
        f"bundle and on the hub{why}): fit one with `logitlens fit {kind} CORPUS -m {model.name} -o "
        f"DIR`, or name one with --lens {kind}:PATH"
    )


def candidates(kind: str, model: Readable) -> Iterator[Path]:
    """Local files and folders that may hold a lens of `kind` for `model`, likeliest first."""
    beside = Path(os.path.expanduser(model.name))
    if beside.is_dir():
        yield from (f for d in (beside, beside / "lenses") for f in _files_of_kind(d, kind))
        yield from (d for d in (beside / "lenses" / kind,) if d.is_dir())
    named = lens_folder() / slug(model.name)
    yield from _files_of_kind(named, kind)
    if kind == "tuned" and (named / "params.pt").is_file():
        yield named
    for file in visible(lens_folder(), f"*/{kind}.safetensors"):
        if file.parent != named and _may_fit(file, model):
            yield file
    bundled = BUNDLED / f"{kind}.safetensors"
    if bundled.is_file() and _may_fit(bundled, model):
        yield bundled


def _may_fit(file: Path, model: Readable) -> bool:
    """Whether the header alone allows this lens for the model: others' files are skipped in silence."""
    try:
        header = store.read_header(file)
        header.check_model(model)
    except (FormatError, LensMismatch, LensNotAvailable):
        return False
    return header.unembedding is not None


def lens_folder() -> Path:
    """`$LOGITLENS_HOME/lenses`, or `logitlens/lenses` in the platform's cache folder."""
    home = os.environ.get("LOGITLENS_HOME")
    if home:
        return Path(os.path.expanduser(home)) / "lenses"
    if sys.platform == "win32":
        cache = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    else:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "logitlens" / "lenses"


def slug(model_name: str) -> str:
    """A folder name for a model: `openai-community/gpt2` → `openai-community--gpt2`."""
    path = Path(os.path.expanduser(model_name))
    name = path.resolve().name if path.is_dir() else model_name
    return name.strip("/").replace("/", "--").replace("\\", "--") or "model"
