"""Name, directory or model object → LensModel.

The dtype is the checkpoint's own; only float16 checkpoints are read as float32 where they run on
the CPU, whose float16 arithmetic is slow and coarse (the bundled model is one).
"""

from __future__ import annotations

import importlib.util
import logging as standard_logging
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from logitlens import hub
from logitlens.errors import (
    LogitLensError,
    MissingExtra,
    ModelNotAvailable,
    SettingError,
    UnsupportedModel,
)
from logitlens.model.weights import check_folder, check_loaded, unreadable

if TYPE_CHECKING:
    import torch

    from logitlens.model.lens_model import LensModel

DEMO = "demo"


def load(
    source: Any = None,
    *,
    tokenizer: Any = None,
    revision: str | None = None,
    dtype: torch.dtype | str | None = None,
    device_map: Any = None,
    attn_implementation: str | None = None,
    trust_remote_code: bool = False,
    ignore_unexpected: bool = False,
    inputs: Mapping[str, Any] | None = None,
) -> LensModel:
    """A model that can be read, its anatomy found and checked against the model's own logits.

    source      None or "demo": the bundled model, which needs no network; a hub name
                ("openai-community/gpt2"): the cache first, then the hub; a directory; or a model
                object, which is used as it is: of transformers, also compiled, quantised, offloaded
                or under PEFT, of nnsight, nnterp or TransformerLens
    tokenizer   a tokenizer, or the name or directory of one; needed for a model object if text is
                to be read, found beside the weights otherwise
    dtype       torch dtype or its name; None: the checkpoint's own (float16 becomes float32 on CPU)
    revision    branch, tag or commit of a hub name
    device_map, attn_implementation, trust_remote_code   as in transformers
    ignore_unexpected   read a checkpoint without those of its weights that its configuration has no
                place for; they are an error otherwise
    inputs      what the model's forward needs beside the prompt, given in every pass: an encoder's
                `{"input_ids": ids}`, `{"pixel_values": image}`, …; prompts are the decoder's

    Raises ModelNotAvailable where there is no such model, its weights cannot be read, or they do
    not fit its configuration; UnsupportedModel where the model cannot be read exactly.
    """
    if source is None or isinstance(source, (str, os.PathLike)):
        name, folder, found_revision = _found(source, revision)
        check_folder(folder, name)
        with quietly():
            model, info = _from_folder(
                folder, name, dtype, device_map, attn_implementation, trust_remote_code
            )
            check_loaded(name, folder, model, info, ignore_unexpected)
            if tokenizer is not None:
                tokenizer = _tokenizer(tokenizer, trust_remote_code)
            elif hub.holds(folder, hub.TOKENIZER):
                tokenizer = _tokenizer_in(folder, name, trust_remote_code)
    else:
        _refuse_options(revision, dtype, device_map, attn_implementation, ignore_unexpected)
        from logitlens.anatomy.foreign import unwrapped

        model, own_tokenizer = unwrapped(source)
        name = str(getattr(getattr(model, "config", None), "_name_or_path", "") or "")
        name = name or type(model).__name__
        found_revision = getattr(getattr(model, "config", None), "_commit_hash", None)
        tokenizer = _tokenizer(own_tokenizer if tokenizer is None else tokenizer, trust_remote_code)
    return wrap(model, tokenizer, name, found_revision, inputs)


def _found(
    source: str | os.PathLike[str] | None, revision: str | None
) -> tuple[str, Path, str | None]:
    """The name, the folder and the revision of what is loaded by name."""
    if source is None or source == DEMO:
        from logitlens import demo

        _refuse_revision(DEMO, revision)
        return DEMO, Path(demo.path()), None
    name = os.fspath(source)
    folder = _folder(name, revision)
    return name, folder, hub.revision_of(folder) or revision


def wrap(
    model: Any,
    tokenizer: Any,
    name: str,
    revision: str | None = None,
    inputs: Mapping[str, Any] | None = None,
) -> LensModel:
    """Find and check the anatomy of a model object. Raises UnsupportedModel."""
    from logitlens.anatomy.inputs import with_inputs
    from logitlens.anatomy.tail import look_at
    from logitlens.model.lens_model import LensModel

    if any(parameter.device.type == "mps" for parameter in getattr(model, "parameters", list)()):
        raise UnsupportedModel(
            f"{name} is on an Apple GPU (mps), which has no float64, in which readings are checked: load "
            "it on the CPU, without device_map or .to('mps')"
        )
    with quietly():
        anatomy, tail, check = look_at(with_inputs(model, inputs), tokenizer)
    return LensModel(
        tail.model,
        tokenizer=tokenizer,
        anatomy=anatomy,
        tail=tail,
        check=check,
        name=name,
        revision=revision,
    )


@contextmanager
def quietly() -> Iterator[None]:
    """Transformers' warnings and bars are its own; what matters here is raised in our words."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    disabled = standard_logging.root.manager.disable
    logging.set_verbosity_error()
    # Optional libraries that transformers imports on the way (torchao, …) log on their own.
    standard_logging.disable(max(disabled, standard_logging.WARNING))
    if bars and not sys.stderr.isatty():
        logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        standard_logging.disable(disabled)
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _folder(name: str, revision: str | None, needs: Sequence[str] = hub.MODEL) -> Path:
    if not name.strip():
        raise ModelNotAvailable("the model's name is empty: expected a hub name or a directory")
    path = os.path.expanduser(name)
    if os.path.isdir(path):
        _refuse_revision(name, revision)
        return Path(path)
    if os.path.isfile(path):
        raise ModelNotAvailable(
            f"{name} is a file: expected the directory that holds config.json and the weights"
        )
    if not hub.is_name(name):
        shown = name if len(name) < 100 else f"{name[:48]}…{name[-48:]}"
        raise ModelNotAvailable(f"{shown}: no such directory, and not a valid hub name")
    return hub.fetch(name, revision, needs)


def _refuse_revision(name: str, revision: str | None) -> None:
    if revision is not None:
        raise ModelNotAvailable(
            f"revision={revision!r}: {name} is not on the hub, so it has no revisions; leave it out"
        )


def _from_folder(
    folder: Path,
    name: str,
    dtype: Any,
    device_map: Any,
    attn_implementation: str | None,
    trust_remote_code: bool,
) -> tuple[Any, dict[str, Any]]:
    """The model, and what transformers says of keys that were missing or left over."""
    import torch
    from transformers import AutoConfig

    if device_map is not None and importlib.util.find_spec("accelerate") is None:
        raise MissingExtra("accelerate", "big", "device_map")
    if "cuda" in str(device_map) and not torch.cuda.is_available():
        raise ModelNotAvailable(
            f"device_map={device_map!r}: this machine has no GPU that torch can use; "
            "leave it out, or say cpu"
        )
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except Exception as error:
        raise unreadable(name, "its configuration", error) from error
    options: dict[str, Any] = {"dtype": _dtype(dtype, config, device_map)}
    if device_map is not None:
        options["device_map"] = device_map
    if attn_implementation is not None:
        options["attn_implementation"] = attn_implementation
    model_class = _class(config, name, trust_remote_code)
    try:
        return model_class.from_pretrained(
            folder,
            config=config,
            local_files_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            trust_remote_code=trust_remote_code,
            **options,
        )
    except LogitLensError:
        raise
    except Exception as error:
        raise _refused(name, options, error) from error


def _refused(name: str, options: dict[str, Any], error: Exception) -> LogitLensError:
    """The error for weights that cannot be read, or that transformers cannot load as the options say."""
    said = " ".join(str(error).split())
    for option in ("device_map", "attn_implementation"):
        if option in options and option in said and isinstance(error, ValueError):
            return SettingError(f"{option}={options[option]!r}: {said[:200]}")
    return unreadable(name, "its weights", error)


def _class(config: Any, name: str, trust_remote_code: bool) -> Any:
    """The class the checkpoint names where it has a language-model head, else the mapping's."""
    import transformers

    declared = (getattr(config, "architectures", None) or [""])[0]
    if trust_remote_code and getattr(config, "auto_map", None):
        return transformers.AutoModelForCausalLM
    found = getattr(transformers, declared, None)
    headless = declared.endswith("Model") and not declared.endswith("LMHeadModel")
    if found is not None and not headless:
        return found
    if type(config) in transformers.MODEL_FOR_CAUSAL_LM_MAPPING:
        return transformers.AutoModelForCausalLM
    raise UnsupportedModel(
        f"{name}: {declared or type(config).__name__} is not a causal language model; expected a "
        "decoder with a language-model head (…ForCausalLM)"
    )


def _dtype(dtype: Any, config: Any, device_map: Any) -> Any:
    import torch

    if dtype is None:
        own = getattr(config, "dtype", None)
        on_cpu = device_map is None or device_map == "cpu"
        return torch.float32 if own in (torch.float16, "float16") and on_cpu else "auto"
    if isinstance(dtype, torch.dtype) or dtype == "auto":
        return dtype
    found = getattr(torch, str(dtype).removeprefix("torch."), None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ModelNotAvailable(
            f"dtype={dtype!r}: expected float32, bfloat16, float16, float64 or auto"
        )
    return found


def _tokenizer(source: Any, trust_remote_code: bool) -> Any:
    """A tokenizer object, from itself, a directory or a hub name; None for None."""
    if source is None or callable(source):
        return source
    if not isinstance(source, (str, os.PathLike)):
        raise ModelNotAvailable(
            f"tokenizer={source!r}: expected a tokenizer, a directory or a hub name, "
            f"got {type(source).__name__}"
        )
    name = os.fspath(source)
    return _tokenizer_in(_folder(name, None, hub.TOKENIZER), name, trust_remote_code)


def _tokenizer_in(folder: Path, name: str, trust_remote_code: bool) -> Any:
    from transformers import AutoTokenizer

    try:
        with _panics_raised():
            return AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except Exception as error:
        raise unreadable(name, "its tokenizer", error) from error


@contextmanager
def _panics_raised() -> Iterator[None]:
    """A panic of the tokenizers library becomes a RuntimeError.

    It is no Exception, and has by then printed its stack on the process's stderr, which is
    therefore kept back until it is known that nothing panicked.
    """
    try:
        stderr = os.dup(2)
    except OSError:  # it was closed
        stderr = os.open(os.devnull, os.O_WRONLY)
    with tempfile.TemporaryFile() as kept:
        os.dup2(kept.fileno(), 2)
        try:
            yield
        except BaseException as error:
            if type(error).__name__ != "PanicException":
                raise
            kept.truncate(0)
            raise RuntimeError(str(error)) from None
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
            kept.seek(0)
            os.write(2, kept.read())


def _refuse_options(
    revision: Any, dtype: Any, device_map: Any, attn: Any, ignore_unexpected: bool
) -> None:
    given = {"revision": revision, "dtype": dtype, "device_map": device_map}
    given |= {"attn_implementation": attn, "ignore_unexpected": ignore_unexpected or None}
    names = [k for k, v in given.items() if v is not None]
    if names:
        raise ModelNotAvailable(
            f"{', '.join(names)}: these apply only when logitlens loads the model; a model object is "
            "used as it is"
        )
