"""`python -m tests.server.held FOLDER ARGUMENTS…`: the program, with a bundled model that can be held.

While FOLDER/load is there the model does not load, and while FOLDER/run is there it stops after its
third block: what a large model does, for as long as a test wants it.
"""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
CHAT = (  # the bundled model has no template of its own
    "{% for m in messages %}{{ '\n' + m.role + ': ' + m.content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '\nassistant:' }}{% endif %}"
)


@contextlib.contextmanager
def served(folder: Path, *flags: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`logitlens serve` as a process, and the address it printed."""
    command = [sys.executable, "-m", __name__, str(folder), "serve", "--port", "0", "--no-open"]
    with subprocess.Popen(
        [*command, *flags], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    ) as process:
        address = process.stdout.readline().strip()
        try:
            pattern = r"http://127\.0\.0\.1:\d+/[\w-]{20,}/"
            assert re.fullmatch(pattern, address), process.stderr.read()
            yield process, address
        finally:
            if process.poll() is None:
                process.kill()


def _wait_for(path: Path) -> None:
    while path.exists():
        time.sleep(0.02)


def _main(folder: Path, arguments: list[str]) -> None:
    import logitlens
    from logitlens.cli import main

    load = logitlens.load

    def held(*args, **options):
        _wait_for(folder / "load")
        model = load(*args, **options)
        model.tokenizer.chat_template = CHAT
        holds: list[Path] = []

        def hold(*_):
            for path in holds:
                _wait_for(path)

        model.anatomy.blocks[2].register_forward_hook(hold)
        model.read([5, 6, 7])  # a model with a new hook is looked at again: before it is held
        holds.append(folder / "run")
        return model

    logitlens.load = held
    main(arguments)


if __name__ == "__main__":
    _main(Path(sys.argv[1]), sys.argv[2:])
