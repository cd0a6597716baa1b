import gc
import importlib
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest

import logitlens
from logitlens import cli as program
from logitlens.cli import options
from logitlens.errors import (
    FormatError,
    InputError,
    LensMismatch,
    LensNotAvailable,
    LogitLensError,
    ModelNotAvailable,
    PromptError,
    SettingError,
    UnknownLens,
    UnsupportedModel,
)

RUN = [sys.executable, "-m", "logitlens"]


def test_version(cli):
    assert cli("--version").output == f"logitlens {logitlens.__version__}\n"


def test_verbs_exist_once_and_say_what_the_list_says():
    listed = program.main.list_commands(click.Context(program.main))
    assert {"read", "check"} <= set(listed)
    folder = Path(program.__file__).parent
    commands = {p.stem for p in folder.glob("*.py") if "command" in p.read_text(encoding="utf-8")}
    assert set(listed) <= commands
    for verb in listed:
        command = importlib.import_module(f"logitlens.cli.{verb}").command
        assert command.name == verb
        first = " ".join((command.help or "").split("\n\n")[0].split())
        assert first == program.VERBS[verb], f"VERBS[{verb!r}] in logitlens/cli/__init__.py"


@pytest.mark.parametrize("arguments", [["--help"], ["read", "--help"], ["check", "--help"]])
def test_help_is_quick_because_nothing_heavy_is_loaded(arguments):
    code = (
        "import sys\nfrom logitlens.cli import main\n"
        f"try: main({arguments})\nexcept SystemExit: pass\n"
        "print(*{m.split('.')[0] for m in sys.modules}, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("Usage: ")
    heavy = {
        "torch",
        "transformers",
        "rich",
        "numpy",
        "matplotlib",
        "huggingface_hub",
        "pyarrow",
        "starlette",
    }
    assert not heavy & set(done.stderr.split())


def test_help_takes_less_than_0_3_seconds_of_a_processor():
    def used():
        times = os.times()
        return times.children_user + times.children_system

    seconds = []
    for _ in range(5):
        start = used()
        subprocess.run([*RUN, "--help"], capture_output=True, check=True)
        seconds.append(used() - start)
    assert min(seconds) < 0.3, seconds


def test_the_process_ends_with_its_code_and_what_others_do_at_an_exit_but_frees_nothing():
    code = (
        "import atexit\nfrom logitlens import cli\n"
        "class Loud:\n    __del__ = lambda self, say=print: say('freed')\n"
        "kept = Loud()\n"
        "run = cli.main\n"
        "cli.main = lambda: (atexit.register(print, 'the last words'), run())\n"
        "cli.program()"
    )
    for arguments, expected, said in (
        (["--version"], 0, [f"logitlens {logitlens.__version__}", "the last words"]),
        (["read", "--nonsense"], 2, ["the last words"]),
    ):
        run = [sys.executable, "-c", code, *arguments]
        done = subprocess.run(run, capture_output=True, text=True)
        assert (done.returncode, done.stdout.splitlines()) == (expected, said)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ModelNotAvailable("no model at x: fetch it"), 4),
        (LensNotAvailable("no tuned lens: fit one"), 4),
        (UnsupportedModel("the last row differs"), 1),
        (LensMismatch("width 4, expected 8"), 1),
        (UnknownLens("no lens called x"), 4),
        (PromptError("the prompt is empty"), 2),
        (InputError("no prompts at x"), 1),
        (FormatError("not JSON"), 1),
        (SettingError("an overlap of 9: expected less"), 2),
        (LogitLensError("something else"), 1),
    ],
)
def test_errors_are_one_line_and_a_code(cli, error, code):
    cli.error = error
    result = cli("read", "x")
    assert (result.exit_code, result.stderr, result.stdout) == (code, f"logitlens: {error}\n", "")


def test_a_command_that_was_not_understood_is_named_once():
    done = subprocess.run([*RUN, "read", "--nonsense"], capture_output=True, text=True)
    assert done.stderr.startswith("python -m logitlens read: No such option")
    assert done.stderr.endswith("(see python -m logitlens read --help)\n")


def test_an_operating_system_error_names_the_file(cli):
    cli.error = FileNotFoundError(2, "No such file or directory", "/x/y.json")
    assert cli("read", "x").stderr == "logitlens: /x/y.json: No such file or directory\n"
    cli.error = OSError(28, "No space left on device")
    assert cli("read", "x").stderr == "logitlens: No space left on device\n"


def test_unexpected_errors_are_one_line_too(cli):
    cli.error = TypeError("bad\noperand \x1b[31m")
    result = cli("read", "x")
    assert result.exit_code == 1
    line = (
        "logitlens: unexpected: TypeError: bad operand  [31m; set LOGITLENS_DEBUG=1 to see where\n"
    )
    assert result.stderr == line


def test_debug_shows_the_traceback(cli, monkeypatch):
    cli.error = TypeError("bad operand")
    monkeypatch.setenv("LOGITLENS_DEBUG", "1")
    assert isinstance(cli("read", "x").exception, TypeError)
    monkeypatch.setenv("LOGITLENS_DEBUG", "0")
    assert cli("read", "x").exit_code == 1


def test_what_is_passed_to_load_is_what_the_loading_options_are_called():
    @options.loading_options
    def verb():
        """Never called."""

    assert {option.name for option in verb.__click_params__} == set(options.LOADING)


def test_without_arguments_help_and_code_2(cli):
    result = cli()
    assert result.exit_code == 2
    assert "Usage: logitlens" in result.stderr


def test_an_interrupt_is_130(cli):
    cli.error = KeyboardInterrupt()
    result = cli("read", "x")
    assert result.exit_code == 130
    assert result.stderr.strip() == "logitlens: interrupted"
    cli.error = KeyboardInterrupt("2 of 4 are kept")
    assert cli("read", "x").stderr == "logitlens: interrupted; 2 of 4 are kept\n"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (EOFError("Ran out of input"), "unexpected end of input: Ran out of"),
        (BrokenPipeError(32, "Broken pipe"), "a connection was closed at its other end"),
    ],
)
def test_what_click_would_take_for_an_end_of_ours_is_an_error(cli, error, line):
    cli.error = error
    result = cli("read", "x")
    assert (result.exit_code, result.stderr.startswith(f"logitlens: {line}")) == (1, True)


def test_what_is_repeated_in_a_line_has_an_end(cli):
    cli.error = ModelNotAvailable("no model at " + "x" * 50_000 + ": fetch it")
    result = cli("read", "x")
    assert len(result.stderr) < 1100
    assert result.stderr.endswith("x: fetch it\n")


@pytest.mark.parametrize("was", [True, False])
def test_loading_leaves_garbage_collection_as_it_was(was):
    def fail():
        with options.uncollected():
            assert not gc.isenabled()
            raise LogitLensError("no such model")

    (gc.enable if was else gc.disable)()
    try:
        with pytest.raises(LogitLensError):
            fail()
        assert gc.isenabled() is was
    finally:
        gc.enable()
