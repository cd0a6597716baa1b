"""`logitlens lens`: list, show, check, fetch, publish, merge and judge lenses."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from logitlens.cli.options import (
    STORED,
    busy,
    check_outputs,
    errors,
    load_model,
    model_options,
)
from logitlens.select import layer_label

if TYPE_CHECKING:
    from logitlens import LensModel
    from logitlens.lenses import Header
    from logitlens.lenses.fitted import FittedLens

OVERWRITE = click.option("--overwrite", is_flag=True, help="Replace another lens of that name.")
JUDGED = (".parquet", ".json", ".png", ".svg", ".pdf")  # what `lens eval` can write


@click.group("lens", no_args_is_help=True)
def command() -> None:
    """List, show, check, fetch, publish and judge lenses.

    The local lens folder is $LOGITLENS_HOME/lenses, or logitlens/lenses in your cache folder; a lens
    found there is used by its name alone: `logitlens read … --lens tuned`.
    """


@command.command("ls")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead.")
def ls(as_json: bool) -> None:
    """List the bundled lenses and those in the local lens folder."""
    from logitlens.lenses import find
    from logitlens.view.text import visible

    found = list(_headers())
    if as_json:
        click.echo(json.dumps([{"path": str(f), **_facts(h)} for h, f in found]))
        return
    if not found:
        click.echo(f"no lenses in {find.lens_folder()}: fetch one with `logitlens lens pull`")
    for header, file in found:
        layers, model = f"{len(header.depths)} layers", visible(header.model or "?")
        click.echo(f"{header.kind:<9} {model:<32} {layers:<10} {file}")


def _headers() -> Iterator[tuple[Header, Path]]:
    """Headers and places of the lenses here; one that cannot be read is said and skipped. Published ones
    have no header apart: they are read whole, one at a time."""
    from logitlens.errors import FormatError, LensMismatch, LensNotAvailable
    from logitlens.lenses import find, published, store

    for place in find.stored():
        try:
            if place.is_dir():
                yield published.load_tuned_directory(place).header, place
            elif place.suffix == ".pt":
                yield published.load_jacobian_pt(place).header, place
            else:
                yield store.read_header(place), place
        except (FormatError, LensMismatch, LensNotAvailable) as error:
            errors().print(f"skipped: {error}", markup=False, soft_wrap=True)


def _is_of(kind: str, place: Path) -> bool:
    """Whether a lens that is here is of a kind, by no more than its header."""
    from logitlens.errors import FormatError
    from logitlens.lenses import store

    if place.suffix != ".safetensors":  # published: a folder of a tuned lens, or a Jacobian's file
        return kind == ("tuned" if place.is_dir() else "jacobian")
    try:
        return store.read_header(place).kind == kind
    except FormatError:
        return False


@command.command("show")
@click.argument("path", metavar="LENS")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead.")
def show(path: str, as_json: bool) -> None:
    """Show what a lens file says: model, corpus, settings, losses.

    LENS is a file, a folder, a published tuned-lens directory, a hub repository owner/name, or, as in
    `read --lens`, the kind of the only lens of that kind that `lens ls` lists.
    """
    from logitlens.view.text import visible

    lens = _opened(path)
    facts = {**_facts(lens.header), "hash": lens.hash, "path": lens.path}
    facts["bytes"] = sum(t.numel() * t.element_size() for t in lens.tensors.values())
    if as_json:
        click.echo(json.dumps(facts))
        return
    losses = facts.pop("losses")
    for name, value in facts.items():
        if value not in (None, {}, []):
            if isinstance(value, (dict, list)):
                value = json.dumps(value, ensure_ascii=False)
            click.echo(f"{visible(name):<12} {visible(str(value))}")
    for layer, loss in losses.items():
        click.echo(f"{'layer ' + layer:<12} held-out KL {loss:.4f} nats")


def _opened(name: str) -> FittedLens:
    """A lens by its place, by `kind:PATH`, or by its kind where the local and bundled lenses have one."""
    from logitlens.errors import LensNotAvailable
    from logitlens.lenses import find, open_lens, store

    kind, _, path = name.partition(":")
    if kind not in store.KINDS or Path(name).exists():
        return open_lens(name)
    if not path:
        files = [place for place in find.stored() if _is_of(kind, place)]
        if len(files) != 1:
            raise LensNotAvailable(
                f"{len(files)} {kind} lenses are here: name the file, as `logitlens lens ls` lists them"
            )
        path = str(files[0])
    return open_lens(path, kind)


def _facts(header: Header) -> dict[str, Any]:
    """A header as people see it: layers by their labels, the unembedding by its short name."""
    data = json.loads(header.to_json())
    data.pop("format")  # `source` says it, of published files too
    data["unembedding"] = header.unembedding.hash if header.unembedding else None
    data["layers"] = [layer_label(depth) for depth in data.pop("depths")]
    data["losses"] = {layer_label(depth): loss for depth, loss in header.losses.items()}
    data["extra"] = header.extra_by_layer()
    return data


@command.command("check")
@click.argument("path", metavar="LENS")
@model_options
@click.option("--corpus", metavar="CORPUS", help="Text to test with. Default: a bundled paragraph.")
@click.option("--field", default="text", show_default=True, metavar="NAME")
@click.option("--tokens", type=click.IntRange(min=12), default=256, show_default=True, metavar="N",
              help="Tokens of the text at most.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of the table.")
def check(
    path: str,
    source: str,
    corpus: str | None,
    field: str,
    tokens: int,
    as_json: bool,
    **loading: Any,
) -> int:
    """Identify the maps of a lens file: which layer they read, and which basis they lead to.

    LENS is a file, a folder, a published tuned-lens directory, or a hub repository owner/name. Files
    that look alike mean different things: every interpretation is tried on a text, and the right one
    has the smallest error by a margin. Ends with exit code 1 where the file is not what it is read
    as, or where no interpretation is clearly right.
    """
    from logitlens.lenses import interpretation

    lens = _opened(path)
    model = load_model(source, **loading)
    lens.check_model(model)
    ids = None
    if corpus is not None:
        from logitlens.fit import corpus as corpora

        text = corpora.read(corpus, model, field=field, max_tokens=tokens)
        ids = [int(i) for document in text.documents for i in document]
    with busy("trying interpretations"):
        verdict = interpretation.interpret(lens, model, ids=ids, tokens=tokens)
    found = verdict.to_meta()
    if as_json:
        click.echo(json.dumps({**found, "errors": verdict.errors, "kind": lens.kind}))
    else:
        unit = "KL in nats" if lens.kind == "tuned" else "relative error of J v"
        click.echo(f"{unit}, {verdict.tokens} tokens")
        for name, error in list(verdict.errors.items())[:8]:
            click.echo(
                f"{error:8.3f}  {name}{'  (how it is read)' if name == verdict.usual else ''}"
            )
        click.echo(f"{lens.kind} lens: {verdict.line()}")
    return 0 if found["as_read"] else 1


@command.command("pull")
@click.argument("name", metavar="MODEL|REPO")
@click.option(
    "--kind", type=click.Choice(["tuned", "jacobian"]), help="Default: both, if available."
)
@OVERWRITE
def pull(name: str, kind: str | None, overwrite: bool) -> None:
    """Fetch published lenses into the local lens folder.

    MODEL is a model's hub name: its lenses are looked for where tuned and Jacobian lenses are
    published. REPO is a hub repository with tuned.safetensors or jacobian.safetensors.
    """
    from logitlens import hub
    from logitlens.errors import LensNotAvailable, ModelNotAvailable
    from logitlens.lenses import find, online, open_lens, save

    folder, got, why = find.lens_folder() / find.slug(name), [], ""
    for k in [kind] if kind else ["tuned", "jacobian"]:
        try:
            place = online.find(k, name) or online.pull(name, k)
        except ModelNotAvailable as error:
            why = f": {error}"
            if isinstance(error, hub.Away):
                break
            continue
        if place is None:
            continue
        lens = open_lens(place, k)
        if lens.header.source == "logitlens-lens/1":
            folder = find.lens_folder() / find.slug(lens.header.model or name)
            folder.mkdir(parents=True, exist_ok=True)
            _keep(folder / f"{k}.safetensors", lens, overwrite)
            got.append(save(lens, folder / f"{k}.safetensors"))
        else:
            _keep(folder / ("params.pt" if k == "tuned" else "jacobian_lens.pt"), lens, overwrite)
            got.append(_copy(place, folder, k))
    if not got:
        raise LensNotAvailable(
            f"no published {kind or 'tuned or jacobian'} lens for {name}{why}; fit one with "
            f"`logitlens fit {kind or 'tuned'} CORPUS -m {name} -o DIR`"
        )
    for path in got:
        click.echo(str(path))


def _keep(path: Path, lens: FittedLens | None, overwrite: bool) -> None:
    """Raise OSError where `path` is there already and is not this very lens."""
    from logitlens.errors import LogitLensError
    from logitlens.lenses import open_lens

    if overwrite or not path.exists():
        return
    try:
        same = open_lens(path.parent if path.name == "params.pt" else path).hash
    except LogitLensError:
        same = None
    if lens is None or same != lens.hash:
        raise OSError(f"{path} is another lens: move it away, or replace it with --overwrite")


def _copy(place: Path, folder: Path, kind: str) -> Path:
    """A published lens, as it is, into the lens folder; whole or not at all."""
    from logitlens.files import replacing

    folder.mkdir(parents=True, exist_ok=True)
    files = [place] if place.is_file() else [place / "config.json", place / "params.pt"]
    for file in files:
        name = "jacobian_lens.pt" if kind == "jacobian" else file.name
        with replacing(folder / name) as temporary:
            shutil.copyfile(file, temporary)
    return folder


@command.command("push")
@click.argument("path", metavar="FILE", type=click.Path(path_type=Path))
@click.argument("repository", metavar="OWNER/NAME")
@click.option("--private", is_flag=True, help="Make the repository private where it is new.")
def push(path: Path, repository: str, private: bool) -> None:
    """Publish a lens file of ours in a hub repository."""
    from logitlens.lenses import online

    click.echo(online.push(path, repository, private=private))


@command.command("merge")
@click.argument("parts", metavar="LENS…", nargs=-1, required=True)
@click.option("-o", "--out", required=True, metavar="FILE", type=click.Path(path_type=Path))
@click.option("--store", "dtype", type=click.Choice(STORED),
              default="float16", show_default=True)  # fmt: skip
@OVERWRITE
def merge(parts: tuple[str, ...], out: Path, dtype: str, overwrite: bool) -> None:
    """Combine Jacobian lenses fitted on shards: their mean, weighted by prompts.

    Fit the shards with --store float32 to lose nothing on the way.
    """
    from logitlens.lenses import JacobianLens, open_lens, save
    from logitlens.lenses import merge as merge_lenses

    check_outputs([str(out)], [".safetensors"])
    _keep(out, None, overwrite)
    lenses = [open_lens(part, "jacobian") for part in parts]
    whole = merge_lenses([lens for lens in lenses if isinstance(lens, JacobianLens)])
    click.echo(f"{save(whole, out, dtype=dtype)}: {whole.header.weight:.0f} prompts")


@command.command("eval")
@model_options
@click.option("--lens", "lenses", multiple=True, metavar="LENS",
              help="logit, tuned[:PATH] or jacobian[:PATH]; repeat. Default: logit.")  # fmt: skip
@click.option("--corpus", metavar="CORPUS", help="Held-out text, as for `logitlens fit`.")
@click.option("--field", default="text", show_default=True, metavar="NAME")
@click.option(
    "--facts", metavar="FILE", help="Prompts with answers, or a published lens evaluation."
)
@click.option("--tokens", type=click.IntRange(min=1), default=16384, show_default=True, metavar="N",
              help="Tokens of CORPUS at most.")  # fmt: skip
@click.option("--length", type=click.IntRange(min=2), default=128, show_default=True, metavar="N",
              help="Tokens of one sequence.")  # fmt: skip
@click.option("--bootstrap", type=click.IntRange(min=1), default=1000, show_default=True, metavar="N",
              help="Draws for the 95 % intervals.")  # fmt: skip
@click.option("-o", "outputs", multiple=True, metavar="FILE",
              help=".parquet, .json, .png, .svg or .pdf; repeat.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of the table.")
def evaluate(
    source: str,
    lenses: tuple[str, ...],
    corpus: str | None,
    field: str,
    facts: str | None,
    tokens: int,
    length: int,
    bootstrap: int,
    outputs: tuple[str, ...],
    as_json: bool,
    **loading: Any,
) -> None:
    """Judge lenses layer by layer: KL to the final row, next-token loss, agreement, facts.

    All lenses read the same residuals of the same text. Intervals are 95 %: of text from a
    bootstrap over sequences, of shares of facts Wilson's.
    """
    if corpus is None and facts is None:
        raise click.UsageError("nothing to judge on: give --corpus, --facts, or both")
    paths = check_outputs(outputs, JUDGED)
    model = load_model(source, **loading)
    sequences = None
    if corpus is not None:
        from logitlens.errors import InputError
        from logitlens.fit import corpus as corpora

        text = corpora.read(corpus, model, field=field, max_tokens=tokens)
        sequences = text.chunks(min(length, model.context or length))[: max(1, tokens // length)]
        if not len(sequences):
            raise InputError(
                f"{corpus} has {text.tokens} tokens, fewer than one sequence of {length}: more text, "
                "or a smaller --length"
            )
    result = judge(model, lenses or ("logit",), sequences, facts, bootstrap)
    if as_json:
        click.echo(_json(result))
        tell(result, paths, table=False)
    else:
        tell(result, paths)


def judge(
    model: LensModel,
    lenses: Sequence[str],
    sequences: Any,
    facts: str | None,
    bootstrap: int = 1000,
) -> Any:
    """An Evaluation, with a bar on stderr where that is a terminal."""
    from rich.progress import Progress

    from logitlens.fit import evaluate as judging
    from logitlens.fit import facts as reading

    found = reading.read(facts, model) if facts is not None else None
    console = errors()
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("judging", total=None)
        return judging.evaluate(
            model, list(lenses), sequences=sequences, facts=found, bootstrap=bootstrap,
            report=lambda done, total: bar.update(task, completed=done, total=total),
        )  # fmt: skip


def tell(result: Any, paths: Sequence[Path], *, table: bool = True) -> None:
    """The table on stdout, and the files asked for."""
    from logitlens.files import replacing, write_text
    from logitlens.view import evaluation

    if table:
        click.echo(evaluation.text(result.rows, result.meta))
    for path in paths:
        if path.suffix == ".parquet":
            if importlib.util.find_spec("pyarrow") is None and table:
                continue  # after a fit the table is an extra; by name it was checked before
            result.save(path)
        elif path.suffix == ".json":
            write_text(path, _json(result) + "\n")
        else:
            drawing = evaluation.figure(result.rows, title=f"Lenses of {result.meta['model']}")
            with replacing(path) as temporary:
                drawing.savefig(temporary, format=path.suffix[1:], dpi=144)


def _json(result: Any) -> str:
    def clean(row: dict[str, Any]) -> dict[str, Any]:
        return {k: None if isinstance(v, float) and v != v else v for k, v in row.items()}

    return json.dumps({"meta": result.meta, "rows": [clean(row) for row in result.rows]})
