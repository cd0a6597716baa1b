"""What a language model would say if it stopped after each layer.

    import logitlens

    model = logitlens.load()              # the bundled model; or a hub name, a directory, an object
    reading = model.read("The Eiffel Tower is in the city of", top=10, track=[" Paris"])
    print(reading)                        # the grid in the terminal
    reading.figure()                      # the classic heatmap
    reading.save("eiffel.html")           # by suffix: .html .png .svg .pdf .txt .json .parquet

Errors raised on purpose:

    LogitLensError
    ├── ModelNotAvailable (OSError)       no such model, weights or tokenizer
    │   └── LensNotAvailable              no such lens
    │       └── UnknownLens               no such kind of lens; a PromptError, too
    ├── UnsupportedModel (ValueError)     no anatomy found, or its last row is not the model's
    ├── LensMismatch (ValueError)         a lens made for another model
    ├── PromptError (ValueError)          text, ids, tokens, layers or positions that cannot be read
    │   └── InputError                    a file of prompts or text that is not there, or cannot be read
    ├── FormatError (ValueError)          truncated, foreign or newer file; unknown suffix
    │   └── SettingError                  out of range, or not there to be chosen
    ├── FitError (RuntimeError)           a fit that cannot go on; what was good is kept
    ├── SurveyError (RuntimeError)        a survey that cannot go on; what was committed is kept
    └── MissingExtra (ImportError)        an optional dependency is absent
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from logitlens.errors import (
    FitError,
    FormatError,
    InputError,
    LensMismatch,
    LensNotAvailable,
    LogitLensError,
    MissingExtra,
    ModelNotAvailable,
    PromptError,
    SettingError,
    SurveyError,
    UnknownLens,
    UnsupportedModel,
)

if TYPE_CHECKING:
    from logitlens import edit
    from logitlens.attribution import Attribution
    from logitlens.lenses import Lens
    from logitlens.model.capture import Residuals
    from logitlens.model.lens_model import LensModel
    from logitlens.model.load import load
    from logitlens.patch_grid import PatchGrid
    from logitlens.reading import Reading
    from logitlens.scores import Scores
    from logitlens.tables import table
    from logitlens.vector_table import VectorTable
    from logitlens.view.comparison import Comparison, compare
    from logitlens.view.plots import curves

__version__ = "0.1.0"

__all__ = [  # in reading order
    "load",
    "LensModel",
    "Residuals",
    "Reading",
    "Scores",
    "Attribution",
    "PatchGrid",
    "VectorTable",
    "edit",
    "Lens",
    "table",
    "curves",
    "compare",
    "Comparison",
    "LogitLensError",
    "ModelNotAvailable",
    "LensNotAvailable",
    "UnknownLens",
    "UnsupportedModel",
    "LensMismatch",
    "PromptError",
    "InputError",
    "FormatError",
    "SettingError",
    "FitError",
    "SurveyError",
    "MissingExtra",
]

# `import logitlens` loads neither torch nor matplotlib: these names are found when first used.
_LAZY = {
    "load": "logitlens.model.load",
    "LensModel": "logitlens.model.lens_model",
    "Residuals": "logitlens.model.capture",
    "Reading": "logitlens.reading",
    "Scores": "logitlens.scores",
    "Attribution": "logitlens.attribution",
    "PatchGrid": "logitlens.patch_grid",
    "VectorTable": "logitlens.vector_table",
    "Lens": "logitlens.lenses",
    "table": "logitlens.tables",
    "curves": "logitlens.view.plots",
    "compare": "logitlens.view.comparison",
    "Comparison": "logitlens.view.comparison",
}


def __getattr__(name: str) -> Any:
    if name == "edit":
        return importlib.import_module("logitlens.edit")
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_LAZY[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
