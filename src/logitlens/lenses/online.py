"""Lenses on the hub: published ones, found by the model's name, and ours, in any repository.

Published: the space `AlignmentResearch/tuned-lens` (folder `lens/MODEL`) and the repository
`neuronpedia/jacobian-lens` (`…/MODEL_jacobian_lens*.pt`). Ours: any model repository that holds
`tuned.safetensors` or `jacobian.safetensors`. The cache is always searched first.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path

from logitlens import hub
from logitlens.errors import LensNotAvailable
from logitlens.lenses import store

TUNED_REPO = "AlignmentResearch/tuned-lens"
JACOBIAN_REPO = "neuronpedia/jacobian-lens"

Get = Callable[[str, str, str], Path | None]  # repository, name, its type → the file


def find(kind: str, model_name: str) -> Path | None:
    """The published lens of `kind` for a model: a file (Jacobian) or a folder (tuned), or None.

    Raises ModelNotAvailable where the cache has none and the hub cannot be asked.
    """
    if os.path.isdir(os.path.expanduser(model_name)) or not hub.is_name(model_name):
        return None
    name = model_name.rpartition("/")[2]
    if kind == "tuned":
        names = dict.fromkeys([model_name, name])
        return _tuned(hub.cached_file, names) or hub.ask(lambda asked: _tuned(asked.file, names))
    cached = [file.as_posix() for file in hub.cached_names(JACOBIAN_REPO, "*.pt")]
    best = best_jacobian(cached, name)
    if best is not None:
        return Path(best)

    def ask(asked: hub.Hub) -> Path | None:
        best = best_jacobian(asked.files(JACOBIAN_REPO), name)
        return asked.file(JACOBIAN_REPO, best) if best else None

    return hub.ask(ask)


def _tuned(get: Get, names: Iterable[str]) -> Path | None:
    for name in names:
        params = get(TUNED_REPO, f"lens/{name}/params.pt", "space")
        config = params and get(TUNED_REPO, f"lens/{name}/config.json", "space")
        if params and config and params.parent == config.parent:
            return params.parent
    return None


def best_jacobian(files: Iterable[str], model_name: str) -> str | None:
    """The file of `MODEL_jacobian_lens[_nNUMBER].pt` fitted on most prompts, else the unnumbered."""
    pattern = re.compile(rf"{re.escape(model_name)}_jacobian_lens(?:_n(\d+))?\.pt", re.IGNORECASE)
    found = [(m, f) for f in files if (m := pattern.fullmatch(f.rpartition("/")[2]))]
    if not found:
        return None
    return max(found, key=lambda pair: (int(pair[0][1] or 0), pair[1]))[1]


def pull(repository: str, kind: str | None = None) -> Path | None:
    """A lens in the repository `owner/name`: ours, or a `lens.pt`; None where it has none.

    Raises ModelNotAvailable where there is no such repository, or the hub cannot be asked.
    """
    kinds = [kind] if kind else list(store.KINDS)
    names = [f"{k}.safetensors" for k in kinds] + (["lens.pt"] if "jacobian" in kinds else [])

    def first(get: Get) -> Path | None:
        return next((file for n in names if (file := get(repository, n, "model"))), None)

    return first(hub.cached_file) or hub.ask(lambda asked: first(asked.file))


def push(path: Path, repository: str, *, private: bool = False) -> str:
    """Upload a lens file of ours to `owner/name` (made where missing); returns its address.

    Raises LensNotAvailable where the hub cannot be reached or refuses.
    """
    from huggingface_hub import HfApi

    header = store.read_header(path)
    try:
        hub.probe()
        api = HfApi()
        api.create_repo(repository, private=private, exist_ok=True)
        info = api.upload_file(
            path_or_fileobj=str(path),
            path_in_repo=f"{header.kind}.safetensors",
            repo_id=repository,
            commit_message=f"Add the {header.kind} lens of {header.model}",
        )
    except hub.Away as away:
        raise LensNotAvailable(f"cannot push {path}: {away}") from None
    except Exception as error:
        raise LensNotAvailable(
            f"the hub refused {repository} ({hub.short(error)}); sign in with `hf auth login`"
        ) from None
    return str(info)
