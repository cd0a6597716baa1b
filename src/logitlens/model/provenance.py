"""What made the numbers: the model, the lens, the check, the edits and the versions, for `meta`."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

import logitlens
from logitlens.anatomy.check import Check
from logitlens.lenses import Lens

if TYPE_CHECKING:
    from logitlens.model.edits import Prepared
    from logitlens.model.lens_model import LensModel


def provenance(
    model: LensModel, lens: Lens, check: Check, edits: Prepared | None = None
) -> dict[str, Any]:
    """What made the numbers, and how they compare with the model's own: for `meta`."""
    return {
        "model": display_name(model.name),
        "class": type(model.hf).__name__,
        "revision": model.revision,
        "n_blocks": model.n_blocks,
        "width": model.width,
        "vocab_size": model.vocab_size,
        "lens": lens.describe(),
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": str(next(model.hf.parameters()).device),
        "attn_implementation": getattr(model.hf.config, "_attn_implementation", None),
        "tail": model.tail.kind,
        "check": check.to_meta(),
        "versions": dict(_versions()),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        **(edits.to_meta() if edits is not None else {}),
    }


def display_name(name: str) -> str:
    """A directory's own name rather than its path on this machine."""
    return Path(name).resolve().name if os.path.isdir(name) else name


@cache
def _versions() -> dict[str, str]:
    return {
        "logitlens": logitlens.__version__,
        "torch": torch.__version__,
        "transformers": version("transformers"),
        "numpy": np.__version__,
        "python": platform.python_version(),
    }
