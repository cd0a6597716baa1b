"""Any directions read through the tail: steering vectors, probes, rows of weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from logitlens.anatomy.forward import as_found, embeddings
from logitlens.errors import LensMismatch, PromptError, UnsupportedModel
from logitlens.lenses import Lens, resolve
from logitlens.model.provenance import display_name
from logitlens.model.tokens import whole
from logitlens.readout.topk import leading
from logitlens.select import layer_label, select_layer
from logitlens.vector_table import VectorTable

if TYPE_CHECKING:
    from logitlens.model.lens_model import LensModel

BYTES = 64 << 20  # logits held at once
WEIGHTS = ("embed", "unembed", "attn_out", "mlp_out")


@torch.no_grad()
def read_vectors(
    model: LensModel,
    vectors: Any,
    *,
    layer: int | str | None,
    lens: str | Lens,
    norm: bool,
    top: int,
    both_signs: bool,
) -> VectorTable:
    """The table of vectors (N, D); arguments and errors are those of `LensModel.read_vectors`."""
    k, N = whole(top), _count(vectors, model.width)
    if k is None or not 1 <= k <= model.vocab_size:
        raise PromptError(f"top={top!r}: expected 1 to {model.vocab_size}")
    found = resolve(lens, model)
    depth = _depth(model, layer, found)
    signs = (1, -1) if both_signs else (1,)
    ids = np.empty((len(signs), N, k), np.int32)
    logits = np.empty((len(signs), N, k), np.float32)
    occurs_V = np.zeros(model.vocab_size, np.bool_)
    device = next(model.hf.parameters()).device
    size = max(1, BYTES // (4 * model.vocab_size))
    for start in range(0, N, size):
        h_ND = _tensor(vectors[start : start + size], device)
        if not bool(h_ND.isfinite().all()):
            bad = start + int((~h_ND.isfinite().all(-1)).float().argmax())
            raise PromptError(f"vector {bad} holds nan or inf: expected finite numbers")
        for side, sign in enumerate(signs):
            z_NV = _logits(model, h_ND * sign, depth, found, norm)
            best = leading(z_NV, k)
            rows = slice(start, start + len(h_ND))
            ids[side, rows] = best.ids_NK.cpu().numpy()
            occurs_V[ids[side, rows]] = True
            logits[side, rows] = best.values_NK.cpu().numpy()
    return VectorTable(
        top_ids=ids[0],
        top_logits=logits[0],
        low_ids=ids[1] if both_signs else ids[0, :, :0],
        low_logits=logits[1] if both_signs else logits[0, :, :0],
        vocab={i: model.tokens.piece(i) for i in np.flatnonzero(occurs_V).tolist()},
        meta={
            "model": display_name(model.name),
            "lens": found.describe(),
            "layer": None if depth is None else layer_label(depth),
            "norm": norm,
        },
    )


def _logits(model: LensModel, h_ND: Tensor, depth: int | None, lens: Lens, norm: bool) -> Tensor:
    """(N, V): vectors through the lens, the norm where asked for, and the head."""
    with as_found(model.hf):
        if depth is not None and depth < model.n_blocks:
            h_ND = lens.apply(h_ND, depth).to(h_ND.dtype)
        x_NE = model.tail.head_input(h_ND) if norm else h_ND.to(model.tail.dtype)
        return model.tail.head.logits(x_NE)


def _depth(model: LensModel, layer: int | str | None, lens: Lens) -> int | None:
    if layer is None:
        if lens.name != "logit":
            raise PromptError(f"the {lens.name} lens maps layers: give the vectors' layer=")
        return None
    depth = select_layer(layer, [layer_label(d) for d in range(model.n_blocks + 1)])
    has = lens.depths()
    if has is not None and depth not in has and depth < model.n_blocks:
        raise LensMismatch(f"the {lens.name} lens has no map for layer {layer_label(depth)}")
    return depth


def _count(vectors: Any, width: int) -> int:
    try:
        shape = tuple(vectors.shape if hasattr(vectors, "shape") else np.shape(vectors))
    except ValueError:
        raise PromptError(
            "vectors of several lengths: expected rows of the model's width"
        ) from None
    if len(shape) != 2 or not shape[0] or shape[1] != width:
        raise PromptError(f"vectors of shape {shape}: expected (N, {width}), the model's width")
    return shape[0]


def _tensor(rows: Any, device: torch.device) -> Tensor:
    if isinstance(rows, Tensor):
        return rows.detach().to(device, torch.float32)
    array = np.asarray(rows)
    if array.dtype.kind not in "iuf":
        raise PromptError(f"vectors of {array.dtype}: expected real numbers")
    with np.errstate(over="ignore"):  # what is too large becomes inf, and is refused
        copied = array.astype(np.float32)  # of a mapped file, which torch would warn of
    return torch.from_numpy(copied).to(device)


def weights(model: LensModel, name: str, block: int | None) -> Tensor:
    """Rows of a weight matrix that are directions of the stream; see `LensModel.weights`."""
    if name not in WEIGHTS:
        raise PromptError(f"no weights {name!r}: expected one of {', '.join(WEIGHTS)}")
    if name in ("attn_out", "mlp_out"):
        if whole(block) is None:
            raise PromptError(f"{name} belongs to a block: give block=0 to {model.n_blocks - 1}")
        depth = select_layer(block, [str(i) for i in range(model.n_blocks)])
        found = model.heads.writers[name.removesuffix("_out")][depth]
        if isinstance(found, str):
            raise UnsupportedModel(f"block {depth} of {model.name} has no {name}: {found}")
        return found.detach().T
    weight = (
        getattr(embeddings(model.hf, "input"), "weight", None)
        if name == "embed"
        else model.tail.head.weight_VE
    )
    if not isinstance(weight, Tensor) or weight.dim() != 2 or weight.shape[1] != model.width:
        raise UnsupportedModel(f"{model.name} shows no {name} weights of the stream's width")
    return weight.detach()
