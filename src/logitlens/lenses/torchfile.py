"""A `.pt` file as tensors and plain containers, without running what it says.

`torch.load(weights_only=True)` runs no code either, but trusts the sizes a file claims: a kilobyte
of pickle makes it allocate gigabytes, and a storage shorter than its claim is read past its end. So
the few operations and names that a file of tensors needs are read here, every size is compared with
the bytes there are, and everything else is refused.
"""

from __future__ import annotations

import io
import math
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from logitlens.errors import FormatError, LensNotAvailable

MAX_PICKLE = 1 << 20  # bytes; a lens of a hundred layers needs twenty thousand

DTYPES = {
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
}


_CODES = [
    getattr(pickle, name)[0]
    for name in """
    PROTO STOP MARK POP POP_MARK DUP GLOBAL BINPERSID REDUCE BUILD EMPTY_DICT EMPTY_LIST EMPTY_TUPLE
    DICT LIST TUPLE TUPLE1 TUPLE2 TUPLE3 APPEND APPENDS SETITEM SETITEMS NONE NEWTRUE NEWFALSE
    BININT BININT1 BININT2 LONG1 BINFLOAT BINUNICODE SHORT_BINUNICODE BINPUT LONG_BINPUT BINGET
    LONG_BINGET
    """.split()  # noqa: SIM905 - a table of names
]


class Refused(pickle.UnpicklingError):
    """Something else than tensors and plain containers."""


def load(path: Path) -> dict[Any, Any]:
    """The dict that a torch file holds. Raises LensNotAvailable, FormatError."""
    if not path.is_file():
        raise LensNotAvailable(f"no lens at {path}: the file does not exist")
    try:
        with zipfile.ZipFile(path) as archive:
            state = _Reader(archive, path.stat().st_size).load()
    except Refused:
        raise FormatError(
            f"{path} holds more than tensors and plain containers: it is not read, because such a "
            "file can run code"
        ) from None
    except Exception as error:  # a torn file fails in the unpickler's own ways: IndexError, …
        text = " ".join(str(error).split())[:100]
        raise FormatError(
            f"{path} is not a whole torch file ({type(error).__name__}: {text})"
        ) from None
    if not isinstance(state, dict):
        raise FormatError(f"{path}: expected a dict of tensors, got {type(state).__name__}")
    return state


class _Reader(pickle._Unpickler):
    """The unpickler in Python: the one in C can be made to allocate memory for billions of names."""

    dispatch = {code: pickle._Unpickler.dispatch[code] for code in _CODES}

    def __init__(self, archive: zipfile.ZipFile, size: int):
        infos = {info.filename: info for info in archive.infolist()}
        (name,) = [n for n in infos if n.endswith("data.pkl")] or [""]
        if len(infos) != len(archive.infolist()) or name not in infos:
            raise ValueError("expected an archive as torch.save writes it, with one data.pkl")
        for info in infos.values():
            # torch.save compresses nothing; what is compressed could be of any size.
            if info.compress_type != zipfile.ZIP_STORED or info.file_size > size:
                raise ValueError(f"{info.filename} is compressed")
        if infos[name].file_size > MAX_PICKLE:
            raise ValueError(f"{name} has {infos[name].file_size} bytes")
        self.archive, self.infos, self.root = archive, infos, name.removesuffix("data.pkl")
        self.storages: dict[str, Tensor] = {}
        order = infos.get(f"{self.root}byteorder")
        if order is not None and archive.read(order) != b"little":
            raise ValueError("expected little-endian numbers")
        super().__init__(io.BytesIO(archive.read(name)), encoding="utf-8")

    def find_class(self, module: str, name: str) -> Any:
        known = {
            ("collections", "OrderedDict"): OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): _tensor,
            ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
            ("torch", "Size"): tuple,
            **{("torch", storage): dtype for storage, dtype in DTYPES.items()},
        }
        if (module, name) not in known:
            raise Refused(f"{module}.{name}")
        return known[module, name]

    def persistent_load(self, pid: Any) -> Tensor:
        """("storage", dtype, key, device, count) → its numbers (count,)."""
        kind, dtype, key, _, count = pid
        info = self.infos[f"{self.root}data/{key}"]
        if kind != "storage" or count * dtype.itemsize != info.file_size:
            raise ValueError(f"storage {key} is not as long as it should be")
        if info.filename not in self.storages:
            raw = bytearray(self.archive.read(info))  # whole, or zipfile says so
            self.storages[info.filename] = torch.frombuffer(raw or bytearray(8), dtype=torch.uint8)
        return self.storages[info.filename].view(dtype)[:count]

    def load_build(self) -> None:
        """Attributes of an object (the versions of a state dict's modules): not needed."""
        self.stack.pop()  # pyright: ignore[reportAttributeAccessIssue]

    dispatch[pickle.BUILD[0]] = load_build  # pyright: ignore[reportArgumentType]


def _tensor(storage: Tensor, offset: int, size: Any, stride: Any, *_: Any) -> Tensor:
    """A tensor in a storage; every number of it must be there, and be its own."""
    if any(not isinstance(n, int) or n < 0 for n in (offset, *size, *stride)):
        raise ValueError("a tensor has a shape that is not whole numbers")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if math.prod(size) > len(storage) or (0 not in size and last >= len(storage)):
        raise ValueError(f"a tensor of shape {tuple(size)[:8]} is larger than its storage")
    return storage.as_strided(tuple(size), tuple(stride), offset)
