"""Chats: messages → token ids, by the tokenizer's own template."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

from logitlens.errors import PromptError

Messages = Sequence[Mapping[str, Any]]

ROLES = ("system", "developer", "user", "assistant", "tool")


def is_chat(prompt: Any) -> TypeGuard[Messages]:
    """Whether a prompt is a list of messages: mappings, each with a role."""
    return (
        isinstance(prompt, (list, tuple))
        and bool(prompt)
        and all(isinstance(message, Mapping) and "role" in message for message in prompt)
    )


def chat_ids(messages: Messages, tokenizer: Any) -> list[int]:
    """The ids of a chat, up to where the assistant speaks: after its own last words, where the last
    message is its, else after the template's opening of its turn. No token is put in front.

    Raises PromptError without a tokenizer or a template, for a message that is none, and with the
    template's own sentence where that refuses the messages.
    """
    if tokenizer is None:
        raise PromptError(
            "messages need a tokenizer with a chat template: load the model with tokenizer=… "
            "(--tokenizer), or give token ids"
        )
    if not getattr(tokenizer, "chat_template", None):
        raise PromptError(
            "the tokenizer has no chat template: give text, or the tokenizer of the chat model "
            "(--tokenizer)"
        )
    for number, message in enumerate(messages):
        _refuse(number, message)
    own = messages[-1]["role"] == "assistant"
    if own and not messages[-1].get("content"):
        raise PromptError(
            "the last message is an assistant's and empty: leave it out, and the model opens its turn"
        )
    try:
        encoded = tokenizer.apply_chat_template(
            [dict(message) for message in messages],
            add_generation_prompt=not own, continue_final_message=own, tokenize=True,
            return_dict=True,
        )  # fmt: skip
    except Exception as error:
        text = " ".join(str(error).split())[:300]
        raise PromptError(f"the chat template refuses these messages: {text}") from error
    return [int(i) for i in encoded["input_ids"]]


def rendered(messages: Messages, tokenizer: Any) -> str:
    """The text of a chat. Raises whatever the template raises."""
    opens = messages[-1]["role"] != "assistant"
    return tokenizer.apply_chat_template(
        [dict(message) for message in messages], add_generation_prompt=opens, tokenize=False
    )


def _refuse(number: int, message: Mapping[str, Any]) -> None:
    """Raise PromptError for a message that no template was made for."""
    role, content = message["role"], message.get("content")
    if role not in ROLES:
        raise PromptError(f"message {number}: role={role!r}: expected one of {', '.join(ROLES)}")
    calls = role == "assistant" and message.get("tool_calls")
    if not isinstance(content, (str, list)) and not calls:
        raise PromptError(f"message {number} ({role}) has no content: expected text")
    try:
        if not all(isinstance(key, str) for key in message):
            raise TypeError("keys must be texts")
        json.dumps(dict(message), ensure_ascii=False).encode()
    except (TypeError, ValueError) as error:  # half a character, too
        raise PromptError(
            f"message {number} ({role}): expected what can be written as JSON in UTF-8: {error}"
        ) from error
