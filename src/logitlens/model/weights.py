"""A checkpoint against its configuration: nothing missing, nothing left over, nothing made up.

transformers fills weights that are missing with random numbers and drops those it has no place for;
both would be another model than the one that was saved.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from logitlens import hub
from logitlens.errors import ModelNotAvailable

if TYPE_CHECKING:
    from torch import Tensor, nn

MANY = 1000  # layers, blocks or experts that a configuration may name without weights for them
_COUNT = re.compile(r"(layers?|blocks|experts|codebooks|stages|depth)$")


def check_folder(folder: Path, name: str) -> None:
    """Raise ModelNotAvailable unless a directory holds a configuration and weights that may fit it."""
    path = folder / "config.json"
    if not path.is_file():
        some = sorted(p.name for p in folder.iterdir())[:4]
        raise ModelNotAvailable(
            f"{name} is not a model: expected config.json and weights in the directory, found "
            f"{', '.join(some) if some else 'nothing'}"
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise ModelNotAvailable(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(config, dict):
        raise ModelNotAvailable(f"{path}: expected a JSON object, found {type(config).__name__}")
    files = hub.weight_files(folder)
    if not files:
        raise ModelNotAvailable(
            f"{name} has a configuration but no weights: expected model.safetensors (or every "
            "shard its index names) beside config.json"
        )
    try:
        tensors = sum(len(_names(folder / file)) for file in files)
    except Exception as error:
        raise unreadable(name, "its weights", error) from error
    # Building the model would take a minute and gigabytes for each million of them.
    for key, count in _counts(config):
        if count > max(MANY, tensors):
            raise ModelNotAvailable(
                f"{path} says {key} = {count}, but there are only {tensors} tensors in the weights"
            )


def _counts(config: Mapping[str, Any]) -> list[tuple[str, int]]:
    """What a configuration counts and builds modules for, in nested configurations as well."""
    found = [(k, v) for k, v in config.items() if isinstance(v, int) and _COUNT.search(k)]
    for value in config.values():
        found += _counts(value) if isinstance(value, dict) else []
    return found


def _names(file: Path) -> list[str]:
    """Names of the tensors in a file of weights; none for a pickle, which has no list of them."""
    from safetensors import safe_open

    if file.suffix != ".safetensors":
        return []
    with safe_open(file, framework="pt") as opened:
        return list(opened.keys())


def check_loaded(
    name: str, folder: Path, model: nn.Module, info: Mapping[str, Any], ignore_unexpected: bool
) -> None:
    """Raise ModelNotAvailable where weights are missing, left over or of another shape.

    info   what `from_pretrained(output_loading_info=True)` says
    """
    mismatched = sorted(info["mismatched_keys"])
    if mismatched:
        key, found, expected = mismatched[0]
        raise ModelNotAvailable(
            f"{name}: the weights do not fit the configuration: {key} is {tuple(found)}, expected "
            f"{tuple(expected)}{_more(mismatched)}"
        )
    missing = sorted(info["missing_keys"])
    if missing:
        raise ModelNotAvailable(
            f"{name}: the weights lack {missing[0]}{_more(missing)}; it would be random, so nothing "
            "is read"
        )
    unexpected = sorted(info["unexpected_keys"])
    if unexpected and not ignore_unexpected:
        unexpected = _learned(unexpected, folder, model)
    if unexpected and not ignore_unexpected:
        raise ModelNotAvailable(
            f"{name}: the weights hold {unexpected[0]}{_more(unexpected)}, for which the "
            "configuration has no place, so another model would be read than was saved; to read it "
            "without them: ignore_unexpected=True (--ignore-unexpected)"
        )


def _learned(names: list[str], folder: Path, model: nn.Module) -> list[str]:
    """Those of the names that are weights, rather than constants that old versions saved.

    A constant is a buffer of the model, under whichever prefix; the frequencies of rotary positions,
    which moved between modules; a single number; or a causal mask.
    """
    buffers = [name for name, _ in model.named_buffers()]
    left = [
        name
        for name in names
        if not name.endswith("inv_freq")
        and not any(b == name or b.endswith(f".{name}") for b in buffers)
    ]
    return [name for name in left if not _is_constant(_tensor(folder, name))]


def _is_constant(tensor: Tensor | None) -> bool:
    """Whether a tensor is a single number or a lower triangle of ones."""
    if tensor is None or tensor.numel() <= 1:
        return tensor is not None
    n = tensor.shape[-1]
    if tensor.ndim < 2 or tensor.numel() != n * n or tensor.shape[-2] != n:
        return False
    square_NN = tensor.reshape(n, n).float()
    return bool((square_NN == square_NN.new_ones(n, n).tril()).all())


def _tensor(folder: Path, name: str) -> Tensor | None:
    """A tensor by its name in a checkpoint; None where transformers renamed it on the way."""
    import torch
    from safetensors import safe_open

    for file in (folder / f for f in hub.weight_files(folder)):
        if file.suffix == ".safetensors":
            with safe_open(file, framework="pt") as opened:
                if name in opened.keys():  # noqa: SIM118 - not a dict
                    return opened.get_tensor(name)
        else:
            state = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
            if name in state:
                return state[name]
    return None


def _more(names: list[Any]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""


def unreadable(name: str, what: str, error: Exception) -> ModelNotAvailable:
    """A line for whatever transformers, safetensors or tokenizers raised."""
    text = " ".join(str(error).split())
    if "trust_remote_code" in text:
        return ModelNotAvailable(
            f"{name} brings its own code: pass trust_remote_code=True (--trust-remote-code) if you "
            "trust it"
        )
    return ModelNotAvailable(
        f"{name}: {what} cannot be read ({type(error).__name__}: {text[:200]})"
    )
