"""Turn a prompt, in any form, into token ids that the model knows and has room for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from logitlens.errors import PromptError
from logitlens.model import batches
from logitlens.model.chat import Messages, chat_ids, is_chat
from logitlens.model.tokens import Vocabulary

Prompt = str | Sequence[int] | Messages | np.ndarray | Tensor | Mapping[str, Any]


def words_of(prompt: Prompt | None) -> str | Messages | None:
    """What a Reading keeps of its prompt: text or messages; None of ids."""
    return prompt if isinstance(prompt, str) or is_chat(prompt) else None


def ids_of(
    prompt: Prompt,
    vocabulary: Vocabulary,
    vocab_size: int,
    *,
    context: int | None = None,
    truncate: bool = False,
) -> tuple[list[int], int]:
    """Ids of a prompt, and how many were dropped from its front to fit the context.

    Raises PromptError for an empty prompt, anything that is not one prompt, an id outside the
    vocabulary, and a prompt longer than the context unless `truncate`.
    """
    if not isinstance(truncate, (bool, np.bool_)):
        raise PromptError(f"truncate={truncate!r}: expected True or False")
    if isinstance(prompt, str):
        ids = vocabulary.encode(prompt)
    elif is_chat(prompt):
        ids = chat_ids(prompt, vocabulary.tokenizer)
    else:
        ids = _integers(prompt)
    outside = next((i for i in ids if not 0 <= i < vocab_size), None)
    if outside is not None:
        raise PromptError(
            f"token id {outside} is outside the vocabulary: expected 0 to {vocab_size - 1}"
            + (" (is this the model's own tokenizer?)" if isinstance(prompt, str) else "")
        )
    dropped = 0
    if context is not None and len(ids) > context:
        if not truncate:
            raise PromptError(
                f"the prompt has {len(ids)} tokens and the model's context holds {context}: "
                f"shorten it, or read its last {context} with truncate=True (--truncate)"
            )
        dropped = len(ids) - context
    return ids[dropped:], dropped


def _integers(prompt: Any) -> list[int]:
    if isinstance(prompt, Mapping):  # what apply_chat_template and tokenizers return
        rows = batches.unpadded(prompt)
        if len(rows) != 1:
            raise PromptError(f"expected one prompt, got {len(rows)}: use read_batch")
        prompt = rows[0]
    try:
        array = np.asarray(prompt.cpu() if isinstance(prompt, Tensor) else prompt)
    except ValueError as ragged:
        raise PromptError(
            "expected text or a one-dimensional list of integer ids, got lists of several "
            "lengths; several prompts go to read_batch"
        ) from ragged
    if array.ndim == 2 and len(array) == 1:
        array = array[0]  # what tokenizers return with return_tensors="pt"
    if array.size == 0:
        raise PromptError("the prompt is empty: give at least one token id")
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise PromptError(
            f"expected text or a one-dimensional list of integer ids, got {array.dtype} of shape "
            f"{array.shape}; several prompts go to read_batch"
        )
    return [int(i) for i in array]
