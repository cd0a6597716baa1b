"""Every error that logitlens raises on purpose; the package docstring shows the tree."""


class LogitLensError(Exception):
    """Base of all errors raised on purpose; the message is one line that says what to do next."""


class ModelNotAvailable(LogitLensError, OSError):
    """A model, its weights or its tokenizer cannot be found or read. Exit code 4."""


class LensNotAvailable(ModelNotAvailable):
    """A fitted lens cannot be found. Exit code 4."""


class UnsupportedModel(LogitLensError, ValueError):
    """The anatomy was not found, or the model's own logits were not reproduced: refused, not guessed."""


class LensMismatch(LogitLensError, ValueError):
    """A lens does not belong to this model: another width, unembedding or number of layers."""


class PromptError(LogitLensError, ValueError):
    """Text, token ids or tracked tokens that cannot be read."""


class FormatError(LogitLensError, ValueError):
    """A file that is truncated, foreign, of a newer version, or of an unknown suffix."""


class FitError(LogitLensError, RuntimeError):
    """A fit that cannot continue: a loss that is not a number, a checkpoint of another fit."""


class SurveyError(LogitLensError, RuntimeError):
    """A survey that cannot go on: planned with another model, input or setting; parts are missing."""


class MissingExtra(LogitLensError, ImportError):
    """An optional dependency is missing; the message names the extra that installs it."""

    def __init__(self, package: str, extra: str, purpose: str):
        super().__init__(f"{purpose} needs {package}: pip install 'logitlens[{extra}]'")


def out_of_memory(error: BaseException | None) -> bool:
    """Whether an error, or one that it was raised from, means that memory ran out.

    torch raises OutOfMemoryError on a GPU, and RuntimeError elsewhere.
    """
    while error is not None:
        text = str(error).lower() if isinstance(error, RuntimeError) else ""
        if (
            isinstance(error, MemoryError)
            or type(error).__name__ == "OutOfMemoryError"
            or "out of memory" in text
            or "can't allocate memory" in text
        ):
            return True
        error = error.__cause__
    return False
