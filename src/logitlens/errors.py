"""Every error that logitlens raises on purpose; the package docstring shows the tree."""


class LogitLensError(Exception):
    """Base of all errors raised on purpose; the message is one line that says what to do next.

    exit_code   of a command that ends with it, as docs/cli.md has them
    """

    exit_code = 1


class ModelNotAvailable(LogitLensError, OSError):
    """A model, its weights or its tokenizer cannot be found or read."""

    exit_code = 4


class LensNotAvailable(ModelNotAvailable):
    """A fitted lens cannot be found."""


class UnsupportedModel(LogitLensError, ValueError):
    """The anatomy was not found, or the model's own logits were not reproduced: refused, not guessed."""


class LensMismatch(LogitLensError, ValueError):
    """A lens does not belong to this model: another width, unembedding or number of layers."""


class PromptError(LogitLensError, ValueError):
    """A prompt, token ids, tokens, layers, positions or edits that cannot be read."""

    exit_code = 2


class InputError(PromptError):
    """Prompts, text or rows that are not there, or hold what cannot be read: a file, a survey just begun."""

    exit_code = 1


class UnknownLens(LensNotAvailable, PromptError):
    """The name of a lens is that of no kind of lens."""


class FormatError(LogitLensError, ValueError):
    """A file that is truncated, foreign, of a newer version, or of an unknown suffix."""


class SettingError(FormatError):
    """A setting that cannot be: out of its range, a condition that a survey lacks, an unknown suffix."""

    exit_code = 2


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
