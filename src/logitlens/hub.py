"""The Hugging Face hub: the cache first, then one short probe, then what was asked for.

With a dead name server one look-up takes half a minute before it fails, and the client library goes
on retrying for minutes where connections are reset. So every request here runs in a thread that is
given up after a short silence. Honours HF_HOME, HF_HUB_CACHE, HF_TOKEN, HF_ENDPOINT,
HF_HUB_OFFLINE, TRANSFORMERS_OFFLINE and the proxy variables.
"""

from __future__ import annotations

import json
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from logitlens.errors import ModelNotAvailable

PROBE_SECONDS = 3.0
SILENCE = 8.0  # seconds without an answer or a byte, after which the hub is given up
MODEL = ("config.json",)
TOKENIZER = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
)
_BESIDE = (".json", ".model", ".txt", ".jinja", ".tiktoken", ".py")
THREAD = "logitlens-hub"

T = TypeVar("T")


class Away(ModelNotAvailable):
    """The hub was not asked, or did not answer; the message is a clause that says why."""


# -- names and the cache --------------------------------------------------------------------------


def is_name(text: str) -> bool:
    """Whether `text` could be a repository: "gpt2" or "openai-community/gpt2"."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(text)
    except HFValidationError:
        return False
    return text.isascii()


def cached_file(
    repository: str, name: str, kind: str = "model", revision: str | None = None
) -> Path | None:
    """A file of a repository, where the cache holds it."""
    from huggingface_hub import try_to_load_from_cache

    try:
        found = try_to_load_from_cache(repository, name, repo_type=kind, revision=revision)
    except (OSError, ValueError):  # a damaged reference in the cache
        return None
    return Path(found) if isinstance(found, str) else None


def cached_names(repository: str, pattern: str) -> list[Path]:
    """Files of a model repository that the cache holds, whatever their revision."""
    snapshots = Path(cache_folder()) / ("models--" + repository.replace("/", "--")) / "snapshots"
    return sorted(snapshots.glob(f"*/**/{pattern}"))


def weight_files(folder: Path) -> list[str]:
    """Names of the weight files of a model directory; empty where one is missing."""
    for index in ("model.safetensors.index.json", "pytorch_model.bin.index.json"):
        if (folder / index).is_file():
            try:
                found = set(json.loads((folder / index).read_text())["weight_map"].values())
                whole = all((folder / shard).is_file() for shard in found)
            except (ValueError, KeyError, TypeError, AttributeError, OSError, RecursionError):
                return []
            return sorted(found) if whole else []
    for single in ("model.safetensors", "pytorch_model.bin"):
        if (folder / single).is_file():
            return [single]
    return []


def holds(folder: Path, needs: Sequence[str]) -> bool:
    """Whether a directory holds a MODEL, its weights whole, or a TOKENIZER."""
    if needs is MODEL and not weight_files(folder):
        return False
    return any((folder / name).is_file() for name in needs)


def revision_of(folder: Path) -> str | None:
    """The commit of a snapshot directory of the hub's cache; None for any other directory."""
    return folder.name if re.fullmatch(r"[0-9a-f]{40}", folder.name) else None


def cache_folder() -> str:
    from huggingface_hub import constants

    return str(constants.HF_HUB_CACHE)


# -- asking ---------------------------------------------------------------------------------------


def offline() -> bool:
    """HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE, as huggingface_hub read them or as they are now."""
    from huggingface_hub import constants

    value = os.environ.get("HF_HUB_OFFLINE") or os.environ.get("TRANSFORMERS_OFFLINE") or ""
    return bool(constants.HF_HUB_OFFLINE) or value.upper() in {"1", "ON", "YES", "TRUE"}


def endpoint() -> str:
    """The hub's address as it may be shown: without a user's name and password."""
    from huggingface_hub import constants

    return _shown(constants.ENDPOINT)


def probe() -> None:
    """Raise Away where the user wants no network, or nothing answers within PROBE_SECONDS."""
    if offline():
        raise Away("HF_HUB_OFFLINE is set")
    _within(PROBE_SECONDS, Hub.answers)


def ask(work: Callable[[Hub], T]) -> T:
    """`work` with a hub that answers.

    Raises Away as `probe` does, where the hub falls silent for SILENCE seconds, or where what
    answers is not a hub; ModelNotAvailable where it refuses.
    """
    probe()
    return _within(SILENCE, work)


class Hub:
    """What is asked of a hub that answers; only within `ask`."""

    def __init__(self) -> None:
        self.heard = time.monotonic()
        self.blobs: Path | None = None  # where the file that is asked for will be
        self.began = self.given_up = False

    def answers(self) -> None:
        """One request; any answer will do. It goes through the name server and proxies as all others do."""
        from huggingface_hub import constants
        from huggingface_hub.utils import get_session

        get_session().head(constants.ENDPOINT, timeout=PROBE_SECONDS)

    def files(
        self, repository: str, repo_type: str = "model", revision: str | None = None
    ) -> list[str]:
        """Names of the files of a repository. Raises ModelNotAvailable."""
        from huggingface_hub import HfApi

        with _refusals(repository, revision):
            info = HfApi().repo_info(
                repository, repo_type=repo_type, revision=revision, timeout=SILENCE
            )
        self.heard = time.monotonic()
        return sorted(sibling.rfilename for sibling in getattr(info, "siblings", None) or [])

    def file(
        self, repository: str, name: str, repo_type: str = "model", revision: str | None = None
    ) -> Path | None:
        """A file of a repository, downloaded into the cache; None where it has no such file.

        From the first byte on the client library decides how long a silence may be, since it
        reports whole megabytes only. Raises ModelNotAvailable.
        """
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
        from huggingface_hub.utils import tqdm

        hub = self

        class Bar(tqdm):
            """The usual bar (none where stderr is not a terminal), which notices the first byte."""

            def update(self, n: float | None = 1) -> bool | None:
                hub.began = True
                if hub.given_up:
                    raise InterruptedError("nobody waits for this download any more")
                return super().update(n)

        folder = f"{repo_type}s--" + repository.replace("/", "--")
        self.heard, self.blobs = time.monotonic(), Path(cache_folder(), folder, "blobs")
        with _refusals(repository, revision):
            try:
                return Path(
                    hf_hub_download(
                        repository, name, repo_type=repo_type, revision=revision, tqdm_class=Bar
                    )
                )
            except EntryNotFoundError as error:
                if isinstance(error, LocalEntryNotFoundError):  # no answer, and none in the cache
                    raise
                return None
            finally:
                self.heard, self.blobs, self.began = time.monotonic(), None, False

    def receiving(self) -> bool:
        """Whether bytes arrive, here or in another process that downloads the same file."""
        try:
            partial = [f.stat() for f in self.blobs.glob("*.incomplete")] if self.blobs else []
        except (OSError, AttributeError):  # it has just arrived
            return True
        return self.began or any(p.st_size and time.time() - p.st_mtime < 60 for p in partial)


def _within(seconds: float, work: Callable[[Hub], T]) -> T:
    """`work` in a thread that is given up after so many seconds of silence. Raises Away.

    A daemon, because a name server that never answers must not hold the process.
    """
    import huggingface_hub  # noqa: F401 - its logger has handlers from now on

    for handler in logging.getLogger("huggingface_hub").handlers:
        handler.addFilter(_not_ours)
    hub, future = Hub(), Future[T]()

    def run() -> None:
        try:
            future.set_result(work(hub))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name=THREAD, daemon=True).start()
    try:
        while not wait([future], timeout=0.1).done:
            if time.monotonic() - hub.heard > seconds and not hub.receiving():
                raise Away(f"{endpoint()} gave no answer in {seconds:.0f} s")
        return future.result()
    except ModelNotAvailable:
        raise
    except Exception as error:
        raise Away(f"{endpoint()} could not be read ({short(error)})") from error
    finally:
        hub.given_up = True


def _not_ours(record: logging.LogRecord) -> bool:
    """Whether a line of the client library may be shown: not "Retrying …" from our threads."""
    return record.threadName != THREAD


@contextmanager
def _refusals(repository: str, revision: str | None) -> Iterator[None]:
    """Refusals of a hub in our words."""
    from huggingface_hub.errors import (
        GatedRepoError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        yield
    except GatedRepoError as error:
        raise ModelNotAvailable(
            f"{repository} is gated: accept its terms at {endpoint()}/{repository}, then set "
            "HF_TOKEN or run `hf auth login`"
        ) from error
    except RevisionNotFoundError as error:
        raise ModelNotAvailable(
            f"{repository} has no revision {revision!r} on {endpoint()}"
        ) from error
    except RepositoryNotFoundError as error:
        raise ModelNotAvailable(
            f"{endpoint()} has no repository {repository!r} (or it is private and HF_TOKEN is not "
            "set)"
        ) from error


def _shown(text: str) -> str:
    """Text without what an address has before its @: it may be a password."""
    return re.sub(r"(\w+://)?[^\s'\"]*@", r"\1", text)


def short(error: Exception) -> str:
    """An error's name and the start of its text, on one line."""
    return f"{type(error).__name__}: " + _shown(" ".join(str(error).split()))[:160]


# -- models ---------------------------------------------------------------------------------------


def fetch(name: str, revision: str | None = None, needs: Sequence[str] = MODEL) -> Path:
    """The directory of a model or a tokenizer, from the cache or the hub. Raises ModelNotAvailable."""
    for file in needs:
        found = cached_file(name, file, revision=revision)
        if found is not None and holds(found.parent, needs):
            return found.parent
    try:
        return ask(lambda hub: _snapshot(hub, name, revision, needs))
    except Away as away:
        raise ModelNotAvailable(
            f"{name} is not in the cache ({cache_folder()}), and {away}. The bundled model needs no "
            f"network: -m demo. On a connected machine: hf download {name}"
        ) from away


def _snapshot(hub: Hub, name: str, revision: str | None, needs: Sequence[str]) -> Path:
    """Configuration, tokenizer and, for a MODEL, weights."""
    names = [n for n in hub.files(name, revision=revision) if "/" not in n]  # others are onnx, …
    safe = any(n.endswith(".safetensors") for n in names)
    weights = r".*\.safetensors" if safe else r"pytorch_model.*\.bin"
    wanted = [
        n for n in names if n.endswith(_BESIDE) or (needs is MODEL and re.fullmatch(weights, n))
    ]
    folder = None
    for n in wanted:
        # The first file settles which commit the name of a branch means.
        file = hub.file(name, n, revision=folder.name if folder else revision)
        folder = folder or (file and file.parent)
    if folder is None:
        raise ModelNotAvailable(f"{endpoint()} has no model {name!r}: its repository has no files")
    return folder
