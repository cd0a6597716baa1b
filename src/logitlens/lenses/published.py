"""Lenses as others published them: tuned-lens directories and Jacobian `.pt` files.

Nothing that a `.pt` file says is run, see `torchfile`.
"""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from logitlens.anatomy.readable import Readable
from logitlens.errors import FormatError, LensMismatch, LensNotAvailable
from logitlens.lenses import torchfile
from logitlens.lenses.header import MAX_HEADER, Header, is_count
from logitlens.lenses.jacobian import JacobianLens
from logitlens.lenses.tuned import TunedLens
from logitlens.schema import matches, parse_json

CONFIG = {
    "d_model": int,
    "num_hidden_layers": int,
    "base_model_name_or_path?": (str, None),
    "base_model_revision?": (str, None),
    "unembed_hash?": (str, None),
}


class PublishedTunedLens(TunedLens):
    """A tuned-lens directory; it names its model and, by a hash of its own kind, the unembedding."""

    confirmed: bool | None = None  # whether the unembedding was found to be the lens's own

    def check_model(self, model: Readable) -> None:
        super().check_model(model)
        theirs = self.header.extra.get("unembed_hash")
        weight_VE = model.tail.head.weight_VE
        if not theirs or weight_VE is None:
            return
        self.confirmed = _tuned_lens_hash(weight_VE) == theirs
        if self.confirmed:
            return
        # Their hash rounds to one digit, which int8 heads or another numpy may change; the package
        # itself only warns. Where the model's name is wrong as well there is no doubt left.
        if _basename(self.header.model) != _basename(model.name):
            raise LensMismatch(
                f"{self.header.described()} was fitted for another unembedding than {model.name} "
                f"has: use a lens fitted for {model.name}"
            )

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "unembedding_confirmed": self.confirmed}


def load_tuned_directory(path: str | os.PathLike[str]) -> PublishedTunedLens:
    """`config.json` and `params.pt` of AlignmentResearch/tuned-lens.

    Translator i applies to the residual that enters block i. Raises LensNotAvailable, FormatError,
    LensMismatch (parameters that are not of the width or number configured).
    """
    folder = Path(path)
    config = _config(folder / "config.json")
    tensors: dict[str, Tensor] = {}
    for name, tensor in torchfile.load(folder / "params.pt").items():
        # Lenses trained in parallel carry the wrapper's prefix.
        match = re.fullmatch(
            r"(?:module\.)?(?:layer_translators\.)?([0-9]+\.(?:weight|bias))", str(name)[:100]
        )
        if match is None or not isinstance(tensor, Tensor) or match[1] in tensors:
            raise FormatError(
                f"{folder / 'params.pt'}: expected tensors named i.weight and i.bias, got "
                f"{str(name)[:100]!r}"
            )
        tensors[match[1]] = tensor
    depths = tuple(sorted({int(name.partition(".")[0]) for name in tensors}))
    n_blocks = config["num_hidden_layers"]
    if len(depths) != n_blocks or depths[-1:] != (n_blocks - 1,):
        raise LensMismatch(
            f"{folder}: config.json says {n_blocks} layers, params.pt has translators for "
            f"{len(depths)}"
        )
    header = Header(
        kind="tuned",
        width=config["d_model"],
        depths=depths,
        n_blocks=n_blocks,
        model=config.get("base_model_name_or_path"),
        revision=config.get("base_model_revision"),
        source="tuned-lens",
        extra={"unembed_hash": config.get("unembed_hash")},
    )
    return PublishedTunedLens(tensors, header, str(folder))


def _config(path: Path) -> dict[str, Any]:
    """The config of a tuned lens. Raises LensNotAvailable, FormatError."""
    if not path.is_file():
        raise LensNotAvailable(f"no tuned lens in {path.parent}: {path.name} is missing")
    if path.stat().st_size > MAX_HEADER:
        raise FormatError(f"{path} is too large to be the config of a tuned lens")
    config = parse_json(path.read_bytes(), str(path))
    matches(config, CONFIG, f"{path}, as the config of a tuned lens,")
    if not all(map(is_count, (config["d_model"], config["num_hidden_layers"]))):
        raise FormatError(f"{path}: d_model and num_hidden_layers are sizes that no lens has")
    return config


def load_jacobian_pt(path: str | os.PathLike[str]) -> JacobianLens:
    """A `.pt` of anthropics/jacobian-lens: `{"J": {layer: (D, D)}, "n_prompts", "d_model", …}`.

    `J[layer]` applies to the output of block `layer`. The file does not name its model, so only the
    width and the layers can be checked. Raises LensNotAvailable, FormatError, LensMismatch.
    """
    file = Path(path)
    state = torchfile.load(file)
    maps, D, prompts = state.get("J"), state.get("d_model"), state.get("n_prompts")
    if not isinstance(maps, dict) or not maps or not isinstance(D, int) or not is_count(D):
        raise FormatError(
            f"{file} is not a Jacobian lens: expected a dict with J and d_model, got the keys "
            f"{[key[:40] for key in state if isinstance(key, str)][:8]}"
        )
    if not (prompts is None or is_count(prompts)):
        raise FormatError(f"{file}: n_prompts is not a whole number")
    tensors: dict[str, Tensor] = {}
    for key, J_DD in maps.items():
        layer = _layer(key, file)
        if layer + 1 in (int(name.partition(".")[0]) for name in tensors):
            raise FormatError(f"{file}: J has layer {layer} twice")
        if not isinstance(J_DD, Tensor):
            raise FormatError(f"{file}: J of layer {layer} is not a tensor")
        tensors[f"{layer + 1}.jacobian"] = J_DD
    listed = state.get("source_layers")
    if listed is not None:
        if not isinstance(listed, (list, tuple)):
            raise FormatError(f"{file}: source_layers is not a list of layers")
        if sorted(_layer(i, file) for i in listed) != sorted(_layer(i, file) for i in maps):
            raise LensMismatch(
                f"{file}: source_layers lists {len(listed)} layers, J has {len(maps)}: the file is "
                "not whole"
            )
    header = Header(
        kind="jacobian",
        width=D,
        depths=tuple(sorted(int(name.partition(".")[0]) for name in tensors)),
        corpus={"documents": prompts or 0},
        weight=float(prompts or 0),
        source="jacobian-lens",
    )
    return JacobianLens(tensors, header, str(file))


def _layer(key: Any, file: Path) -> int:
    """The number of a layer, written as a number or as its digits."""
    written = str(key) if type(key) in (int, str) else ""
    if not re.fullmatch("0|[1-9][0-9]{0,4}", written):
        shown = written[:40] or type(key).__name__
        raise FormatError(f"{file}: expected the number of a layer, got {shown}")
    return int(written)


def _tuned_lens_hash(weight_VE: Tensor) -> str:
    """Their identity of an unembedding: SHA-256 of the matrix as numpy prints it in short."""
    printed = np.array_str(weight_VE.detach().cpu().float().numpy(), precision=1)
    return hashlib.sha256(printed.encode()).hexdigest()


def _basename(name: str | None) -> str:
    return (name or "").rstrip("/").rpartition("/")[2].lower()
