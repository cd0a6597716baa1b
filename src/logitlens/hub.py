"""A hub name → a directory: the cache first, one short probe of the network, then a download.

With a dead name server one look-up of the hub takes half a minute before it fails; so nothing here
asks the network before the cache has been searched, and the probe runs under a limit of its own.
Honours HF_HOME, HF_HUB_CACHE, HF_TOKEN, HF_ENDPOINT and HF_HUB_OFFLINE.
"""

from __future__ import annotations

import os
import re
import sys
import threading
from pathlib import Path
from typing import Any

from logitlens.errors import ModelNotAvailable

PROBE_SECONDS = 3.0
WANTED = ["*.json", "*.model", "*.txt", "*.jinja", "*.tiktoken", "*.py"]
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


def looks_like_name(source: str) -> bool:
    """Whether `source` could be a repository: "gpt2" or "openai-community/gpt2"."""
    return bool(_NAME.fullmatch(source)) and ".." not in source


def fetch(name: str, revision: str | None = None) -> Path:
    """The directory of a model, from the cache or the hub.

    Raises ModelNotAvailable with one message: where it was looked for, the bundled model, and the
    command that would fetch it.
    """
    found = cached(name, revision)
    if found is not None:
        return found
    if offline():
        raise not_available(name, "and HF_HUB_OFFLINE is set")
    if not reachable():
        raise not_available(name, f"and {endpoint()} gave no answer in {PROBE_SECONDS:.0f} s")
    return download(name, revision)


def cached(name: str, revision: str | None = None) -> Path | None:
    """The cached snapshot, where it is whole: a configuration and every shard of weights."""
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(name, "config.json", revision=revision)
    if not isinstance(config, str):
        return None
    folder = Path(config).parent
    return folder if weight_files(folder) else None


def weight_files(folder: Path) -> list[str]:
    """Names of the weight files of a model directory; empty where one is missing."""
    import json

    for index in ("model.safetensors.index.json", "pytorch_model.bin.index.json"):
        if (folder / index).is_file():
            try:
                shards = sorted(
                    set(json.loads((folder / index).read_text())["weight_map"].values())
                )
            except (ValueError, KeyError, AttributeError, OSError):
                return []
            return shards if all((folder / shard).is_file() for shard in shards) else []
    for single in ("model.safetensors", "pytorch_model.bin"):
        if (folder / single).is_file():
            return [single]
    return []


def offline() -> bool:
    """HF_HUB_OFFLINE, as huggingface_hub reads it; or set since it was imported."""
    from huggingface_hub import constants

    value = os.environ.get("HF_HUB_OFFLINE", os.environ.get("TRANSFORMERS_OFFLINE", ""))
    return bool(constants.HF_HUB_OFFLINE) or value.upper() in {"1", "ON", "YES", "TRUE"}


def endpoint() -> str:
    from huggingface_hub import constants

    return constants.ENDPOINT


def cache_folder() -> str:
    from huggingface_hub import constants

    return str(constants.HF_HUB_CACHE)


def reachable(limit: float | None = None) -> bool:
    """One request to the hub under a time limit that also covers the name server."""
    limit = PROBE_SECONDS if limit is None else limit
    answered = threading.Event()

    def ask() -> None:
        from huggingface_hub.utils import get_session

        try:
            get_session().head(endpoint(), timeout=limit)
        except Exception:
            return
        answered.set()

    # A daemon, because a name server that never answers must not hold the process.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(limit)
    return answered.is_set()


def download(name: str, revision: str | None = None) -> Path:
    """Fetch configuration, tokenizer and weights; a progress bar where stderr is a terminal."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.utils import (
        GatedRepoError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
        disable_progress_bars,
    )

    if not sys.stderr.isatty():
        disable_progress_bars()
    try:
        files = HfApi().list_repo_files(name, revision=revision)
        safe = any(f.endswith(".safetensors") for f in files)
        weights = ["*.safetensors"] if safe else ["pytorch_model*.bin"]
        # Folders hold other formats (onnx, original, …) that nobody needs here.
        skip = sorted({f.split("/")[0] + "/*" for f in files if "/" in f})
        folder = snapshot_download(
            name, revision=revision, allow_patterns=WANTED + weights, ignore_patterns=skip
        )
    except GatedRepoError as error:
        raise ModelNotAvailable(
            f"{name} is gated: accept its terms at {endpoint()}/{name}, then set HF_TOKEN or run "
            "`hf auth login`"
        ) from error
    except RevisionNotFoundError as error:
        raise ModelNotAvailable(f"{name} has no revision {revision!r} on {endpoint()}") from error
    except RepositoryNotFoundError as error:
        raise ModelNotAvailable(
            f"{endpoint()} has no model {name!r} (or it is private and HF_TOKEN is not set)"
        ) from error
    except Exception as error:
        raise not_available(name, f"and the download failed ({_short(error)})") from error
    return Path(folder)


def not_available(name: str, why: str) -> ModelNotAvailable:
    return ModelNotAvailable(
        f"{name} is not in the cache ({cache_folder()}) {why}. The bundled model needs no network: "
        f"-m demo. To fetch {name} where there is one: hf download {name}"
    )


def revision_of(folder: Path) -> str | None:
    """The commit of a snapshot directory of the hub's cache; None for any other directory."""
    name = folder.name
    return name if re.fullmatch(r"[0-9a-f]{40}", name) else None


def _short(error: Any) -> str:
    return f"{type(error).__name__}: " + " ".join(str(error).split())[:160]
