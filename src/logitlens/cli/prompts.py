"""What is asked: prompts of the command line, of files and of standard input, and chats."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from logitlens.cli.options import together
from logitlens.errors import InputError, PromptError

chat_options = together(
    click.option(
        "--chat", metavar="FILE|-",
        help='Messages as JSON, [{"role": "user", "content": …}, …]; PROMPT, if there is one, is '
        "asked after them.",
    ),
    click.option("--system", metavar="TEXT", help="Ask as a chat, with this system message."),
)  # fmt: skip


Prompt = str | list[dict[str, Any]]


def check_quotes(prompts: Sequence[str], several: bool = False) -> None:
    """Raise UsageError for a prompt that a shell took apart, because its quotes are missing.

    Raises PromptError for names of files.
    """
    for prompt in prompts:
        _refuse_file(prompt)
    if len(prompts) > 1 and not (several and any(len(prompt.split()) > 1 for prompt in prompts)):
        path = click.get_current_context().command_path
        hint = " (several prompts of one word each: --file)" if several else ""
        raise click.UsageError(f"put the prompt in quotes: {path} {quoted(prompts)}{hint}")


def quoted(words: Sequence[str]) -> str:
    """Words as one argument for a shell."""
    text = " ".join(words)
    return shlex.quote(text) if set(text) & set('"$`\\!') else f'"{text}"'


def prompt_text(prompt: str) -> str:
    """The prompt, from stdin for `-`.

    Not part of it: one newline at its end, which `echo` and editors put there, and a byte order mark
    at its beginning. Everything else is read as it is, Windows line ends within it too.

    Raises PromptError for bytes that are not UTF-8 (of stdin InputError), and for the name of a file.
    """
    try:
        if prompt == "-":
            text = sys.stdin.buffer.read().decode("utf-8-sig")
            return text[:-2] if text.endswith("\r\n") else text.removesuffix("\n")
        prompt.encode("utf-8")
    except UnicodeError as error:
        kind = InputError if prompt == "-" else PromptError
        raise kind(f"the prompt is not UTF-8 ({error}): convert it first") from error
    _refuse_file(prompt)
    return prompt


STORED = (".json", ".parquet", ".html", ".htm")  # files of readings


def is_stored(text: str) -> bool:
    """Whether this is the path of a file that may hold readings."""
    return text.lower().endswith(STORED) and os.path.isfile(text)


def _refuse_file(text: str) -> None:
    """Raise PromptError for the name of a file that somebody meant to be opened."""
    name = shlex.quote(text)
    if is_stored(text):
        chat = f", and `--chat {name}` reads messages" if text.lower().endswith(".json") else ""
        raise PromptError(
            f"{name} is a file, not a prompt: `logitlens view {name}` shows the readings in it, "
            f"`logitlens compare` compares those of files{chat}"
        )
    if text.lower().endswith(".txt") and os.path.isfile(text):
        raise PromptError(
            f"{name} is a file, not a prompt: `logitlens read --file {name}` reads each line of it, and "
            f"`- < {name}` in place of a prompt all of it"
        )


def asked(
    prompts: Sequence[str],
    chat: str | None = None,
    system: str | None = None,
    file: str | None = None,
) -> list[Prompt]:
    """What is asked: each prompt as text, or as messages, after those of --chat and --system.

    Raises InputError for a file that holds no prompts or no messages.
    """
    if [*prompts, chat, file].count("-") > 1:
        raise click.UsageError("standard input can be read once: give - in one place only")
    texts = [prompt_text(prompt) for prompt in prompts]
    texts += [] if file is None else _prompts_in(file)
    if chat is None and system is None:
        if not texts:
            raise click.UsageError("Missing argument 'PROMPT|-'.")
        return list(texts)
    before = [] if system is None else [{"role": "system", "content": system}]
    before += [] if chat is None else _messages(chat)
    return [[*before, {"role": "user", "content": text}] for text in texts] or [before]


def _prompts_in(file: str) -> list[str]:
    """The prompts of a file, one on each line; empty lines are skipped. Raises InputError, OSError."""
    data = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    try:
        lines = data.decode("utf-8-sig").split("\n")
    except UnicodeError as error:
        raise InputError(f"{file} is not UTF-8 ({error}): convert it first") from error
    prompts = [line.removesuffix("\r") for line in lines if line.strip()]
    if not prompts:
        raise InputError(f"{file} holds no prompts: expected one on each line")
    return prompts


def _messages(chat: str) -> list[dict[str, Any]]:
    data = sys.stdin.buffer.read() if chat == "-" else Path(chat).read_bytes()
    expected = f'{chat}: expected a JSON list of messages, {{"role": "user", "content": "…"}}'
    try:
        found = json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{expected} ({error})") from error
    if not isinstance(found, list) or not all(isinstance(m, dict) and "role" in m for m in found):
        raise InputError(expected)
    return found
