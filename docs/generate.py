"""Write the generated parts of CONTRIBUTING, docs and examples; with --check, fail where they are stale.

    python docs/generate.py            # write
    python docs/generate.py --check    # exit 1 and name each stale file

Generated parts are between `<!-- generated: NAME -->` and `<!-- /generated -->`.
"""

from __future__ import annotations

import ast
import importlib
import re
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "logitlens"
REGION = re.compile(r"(<!-- generated: ([a-z-]+) -->\n).*?(<!-- /generated -->)", re.DOTALL)
CELL = re.compile(r"^# %%(?P<markdown> \[markdown\])?\n", re.MULTILINE)


def tree() -> str:
    """The package's files, one line each: the first sentence of the module docstring."""
    lines = ["```text"]

    def visit(folder: Path, indent: str) -> None:
        entries = sorted(folder.iterdir(), key=lambda p: (p.is_dir(), p.name))
        for path in entries:
            if path.name.startswith((".", "__pycache__")):
                continue
            if path.is_dir():
                init = path / "__init__.py"
                about = summary(init) if init.exists() else ""
                if any(path.rglob("*.py")):
                    lines.append(f"{indent}{path.name + '/':<{26 - len(indent)}}{about}".rstrip())
                    visit(path, indent + "  ")
            elif path.suffix == ".py" and path.name != "__init__.py":
                lines.append(f"{indent}{path.name:<{26 - len(indent)}}{summary(path)}".rstrip())

    lines.append(f"{'src/logitlens/':<26}{summary(PACKAGE / '__init__.py')}")
    visit(PACKAGE, "  ")
    return "\n".join([*lines, "```"]) + "\n"


def summary(path: Path) -> str:
    """The first sentence of a module's docstring, on one line."""
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    first = " ".join(docstring.split("\n\n")[0].split())
    return first.rstrip(".") if len(first) <= 110 else first[:107].rsplit(" ", 1)[0] + " …"


def contracts() -> str:
    """The names of the import contracts."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    found = project["tool"]["importlinter"]["contracts"]
    return "".join(f"- {contract['name']}.\n" for contract in found)


def command_help() -> str:
    """`--help` of the program and of every verb."""
    import click

    from logitlens.cli import main

    blocks = []

    def add(command: click.Command, path: list[str], parent: click.Context | None) -> None:
        context = click.Context(
            command,
            info_name=path[-1],
            parent=parent,
            **{**command.context_settings, "terminal_width": 96},
        )
        name = " ".join(path)
        text = command.get_help(context).rstrip()
        blocks.append(f"## `{name}`\n\n```text\n$ {name} --help\n{text}\n```\n")
        if isinstance(command, click.Group):
            for verb in command.list_commands(context):
                found = command.get_command(context, verb)
                assert found is not None, f"{verb} is listed but cannot be found"
                add(found, [*path, verb], context)

    add(main, ["logitlens"], None)
    return "\n".join(blocks)


def notebook(source: Path) -> str:
    """The percent-format script as a notebook without outputs."""
    import nbformat.v4 as v4

    parts = CELL.split(source.read_text(encoding="utf-8"))
    cells = []
    for number, (kind, body) in enumerate(zip(parts[1::2], parts[2::2])):
        if kind:
            text = "\n".join(
                line.removeprefix("#").removeprefix(" ") for line in body.strip().split("\n")
            )
            cell = v4.new_markdown_cell(text)
        else:
            cell = v4.new_code_cell(body.strip())
        cell["id"] = f"cell-{number}"
        cells.append(cell)
    book = v4.new_notebook(cells=cells)
    book.metadata["kernelspec"] = {
        "name": "python3",
        "display_name": "Python 3",
        "language": "python",
    }
    import nbformat

    return nbformat.writes(book) + "\n"


REGIONS: dict[str, Callable[[], str]] = {
    "tree": tree,
    "contracts": contracts,
    "help": command_help,
}


def generated() -> dict[Path, str]:
    """Every file with generated parts → its content as it should be."""
    out: dict[Path, str] = {}
    for path in [ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]:
        text = path.read_text(encoding="utf-8")
        fresh = REGION.sub(lambda m: m[1] + REGIONS[m[2]]() + m[3], text)
        if REGION.search(text):
            out[path] = fresh
    tutorial = ROOT / "examples" / "tutorial.py"
    out[tutorial.with_suffix(".ipynb")] = notebook(tutorial)
    return out


def main() -> int:
    check = "--check" in sys.argv[1:]
    importlib.invalidate_caches()
    stale = []
    for path, content in generated().items():
        if not path.exists() or path.read_text(encoding="utf-8") != content:
            stale.append(path.relative_to(ROOT))
            if not check:
                path.write_text(content, encoding="utf-8")
    for path in stale:
        print(f"{'stale' if check else 'written'}: {path}")
    if check and stale:
        print("run `make docs` and commit the result", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
