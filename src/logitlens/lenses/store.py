"""Our own lens files: safetensors with a JSON header in the metadata."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from logitlens.errors import FormatError, LensNotAvailable
from logitlens.files import replacing
from logitlens.lenses.fitted import FittedLens
from logitlens.lenses.header import MAX_HEADER, Header
from logitlens.lenses.jacobian import JacobianLens
from logitlens.lenses.tuned import TunedLens

KINDS: dict[str, type[FittedLens]] = {"tuned": TunedLens, "jacobian": JacobianLens}
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


def save(lens: FittedLens, path: str | os.PathLike[str], *, dtype: str | None = None) -> Path:
    """Write a lens, whole or not at all; `dtype` float16, bfloat16 or float32 (None: as it is).

    Raises FormatError where a value does not fit into `dtype`, OSError where it cannot be written.
    """
    target = Path(path)
    if dtype is not None:
        if dtype not in DTYPES:
            raise FormatError(f"lens dtype {dtype!r}: expected one of {', '.join(DTYPES)}")
        lens = lens.cast(DTYPES[dtype])
    tensors = {name: tensor.contiguous() for name, tensor in lens.tensors.items()}
    with replacing(target) as temporary:
        try:
            save_file(tensors, temporary, metadata={"logitlens": lens.header.to_json()})
        except SafetensorError as error:  # a full disk arrives as text, not as an OSError
            raise OSError(f"cannot write {target}: {error}") from error
    return target


def read_header(path: str | os.PathLike[str]) -> Header:
    """The header alone, without reading the maps. Raises FormatError, LensNotAvailable."""
    with _opened(path) as file:
        return _header(file, path)


def load(path: str | os.PathLike[str]) -> FittedLens:
    """A lens file of ours. Raises FormatError, LensMismatch, LensNotAvailable."""
    with _opened(path) as file:
        header = _header(file, path)
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    return KINDS[header.kind](tensors, header, str(path))


def _opened(path: str | os.PathLike[str]) -> Any:
    if not Path(path).is_file():
        raise LensNotAvailable(f"no lens at {path}: the file does not exist")
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
        if length > MAX_HEADER:
            raise FormatError(f"{path} is not a lens file: its header would have {length} bytes")
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise FormatError(
            f"{path} is not a lens file: expected safetensors ({str(error)[:100]})"
        ) from None


def _header(file: Any, path: str | os.PathLike[str]) -> Header:
    text = (file.metadata() or {}).get("logitlens")
    if text is None:
        raise FormatError(
            f"{path} is a safetensors file without a lens header: expected one written by "
            "`logitlens fit`"
        )
    header = Header.from_json(text, str(path))
    if header.kind not in KINDS:
        raise FormatError(
            f"{path}: a lens of kind {header.kind[:40]!r}; expected {' or '.join(KINDS)} "
            "(it may need a newer logitlens)"
        )
    return header
