"""--chat and --system: messages from a file, from standard input, and around a prompt."""

from __future__ import annotations

import json

import pytest

import logitlens
from tests.model.test_chat import ASK, MARKED, loaded


@pytest.fixture(scope="module")
def model():
    return loaded(MARKED)


def test_the_command_line_takes_a_file_and_a_system_message(model, cli, tmp_path):
    cli.model = model
    path = tmp_path / "chat.json"
    path.write_text(json.dumps(ASK))
    for verb, flags in (("generate", ["-n", "2", "-q"]), ("read", [])):
        result = cli(verb, "--chat", str(path), *flags)
        assert result.exit_code == 0, result.output
    saved = tmp_path / "out.json"
    result = cli(
        "read", "the city", "--chat", str(path), "--system", "Paris", "-q", "-o", str(saved)
    )
    assert result.exit_code == 0, result.output
    text = logitlens.Reading.load(saved).prompt
    assert (
        text == "<|system|>Paris\n<|user|>The Eiffel Tower is in\n<|user|>the city\n<|assistant|>"
    )
    stdin = cli("read", "--chat", "-", "-q", input=json.dumps(ASK).encode())
    assert stdin.exit_code == 0
    path.write_text('{"role": 3}')
    for arguments, line in (
        (["--chat", str(path)], "expected a JSON list of messages"),
        (["--chat", str(tmp_path / "none.json")], "No such file"),
        ([], "Missing argument 'PROMPT|-'"),
    ):
        failed = cli("generate", *arguments)
        assert failed.exit_code in (1, 2)
        assert line in failed.stderr
        assert len(failed.stderr.splitlines()) == 1
