"""`logitlens survey`: many prompts in, one table out; resumable, and reported with intervals."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from logitlens.cli.options import (
    LOADING,
    Folder,
    busy,
    check_engine,
    check_outputs,
    edit_option,
    edits_of,
    engine_of,
    engine_options,
    errors,
    load_model,
    loading_here,
    model_options,
    shard_of,
    threads_of_each,
)
from logitlens.cli.process import keeping
from logitlens.errors import SurveyError

if TYPE_CHECKING:
    from logitlens.survey.plan import Plan, Settings
    from logitlens.survey.run import Status, Watch

FOLDER = click.argument("folder", metavar="DIR", type=Folder(remote=True))
COUNT = click.IntRange(min=1)
FAILED = 3
NAMED = 5  # fields left out that are named


@click.group("survey", no_args_is_help=True)
def command() -> None:
    """Read many prompts into one table, resumable, and report it with intervals.

    Exit code 3: the survey ended with shards that failed; run it again to try them again.
    """


@command.command("run")
@click.argument("given", metavar="INPUT")
@click.option("-o", "--out", "folder", metavar="DIR", required=True, type=Folder(remote=True),
              help="The survey's folder, or s3://…; an unfinished one is resumed.")  # fmt: skip
@click.option("--corpus", is_flag=True, help="Read running text in windows, not labelled prompts.")
@click.option("--length", type=COUNT, default=256, show_default=True, metavar="N",
              help="Of --corpus: tokens of a window.")  # fmt: skip
@click.option("--overlap", type=click.IntRange(min=0), default=0, show_default=True, metavar="N",
              help="Of --corpus: tokens that a window repeats of the one before, uncounted.")  # fmt: skip
@click.option("--field", default="text", show_default=True, metavar="NAME",
              help="Of --corpus: the JSONL field or Parquet column that holds the text.")  # fmt: skip
@click.option("--keep", type=click.Choice(["cells"]),
              help="Of --corpus: also write a row for each document × position × layer.")  # fmt: skip
@click.option("--top", type=COUNT, default=5, show_default=True, metavar="K",
              help="Top tokens of each row of --keep cells.")  # fmt: skip
@model_options
@click.option("--lens", "lenses", multiple=True, default=("logit",), show_default=True, metavar="LENS",
              help="logit, tuned[:PATH] or jacobian[:PATH]; repeat it for several.")  # fmt: skip
@click.option("--layers", metavar="A:B", help="Layers to keep, as for read. Default: all.")
@edit_option
@engine_options
@click.option(
    "--shard", metavar="I/N", help="Every N-th shard from the I-th on (from 0), for job arrays."
)
@click.option("--shard-size", type=COUNT, metavar="N",
              help="Prompts of one shard, or tokens of a corpus's. Default: 256 and 100,000.")  # fmt: skip
@click.option("--token-budget", type=COUNT, default=4096, show_default=True, metavar="N",
              help="Tokens of one forward pass, padding included.")  # fmt: skip
@click.option("--bad", type=click.Choice(["stop", "skip"]), default="stop", show_default=True,
              help="Prompts, lines and files that cannot be read: stop, or skip and count them.")  # fmt: skip
def run_command(
    given: str,
    folder: str,
    source: str,
    lenses: tuple[str, ...],
    jobs: int | None,
    engine: str,
    address: str | None,
    shard: str | None,
    edits: tuple[str, ...],
    **options: Any,
) -> int:
    """Read the labelled prompts of INPUT (.jsonl, .csv, .parquet) into DIR/survey.parquet.

    A prompt has the fields prompt, answer and wrong (one text or several), sets (tokens by name) and
    id; all other columns are conditions. With --corpus, INPUT is text: .txt, .md, .jsonl, .parquet, a
    folder of them or hf://datasets/owner/name, and the table has statistics for each layer and band of
    positions. Run the same command again to resume.
    """
    from logitlens.survey import plan as plans
    from logitlens.survey.run import run, status

    plans.needs_pyarrow()
    share = shard_of(shard)
    loading = {name: value for name, value in options.items() if name in LOADING}
    check_engine(engine, address)
    options["threads"] = (
        options["threads"] or _planned_threads(folder) or threads_of_each(engine, jobs)
    )
    settings = _settings(**{k: v for k, v in options.items() if k not in LOADING})
    changes = edits_of(edits)
    model = load_model(source, **loading_here(loading, engine, jobs))
    with keeping(lambda: _kept(status(folder))), _watched() as watch:
        found = run(
            given, folder, model, source=source, loading=loading, lenses=lenses,
            settings=settings, edits=changes, jobs=jobs or 1, share=share, watch=watch,
            engine=engine_of(engine, address, jobs, settings.threads),
        )  # fmt: skip
    _tell(folder, found)
    if found.done and not found.total("prompts"):
        raise SurveyError(f"no {found.plan.unit[:-1]} could be read: the table has no rows")
    return FAILED if found.failed else 0


def _kept(found: Status) -> str:
    done, shards = len(found.records), len(found.plan.shards)
    return f"{done} of {shards} shards are committed, the same command goes on"


def _settings(*, corpus: bool, keep: str | None, shard_size: int | None, **given: Any) -> Settings:
    """What the options of `survey run` say besides model, lenses and engine."""
    from logitlens.survey.plan import Settings

    context = click.get_current_context()
    asked = [
        name
        for name in ("length", "overlap", "field", "keep", "top")
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE
    ]
    if asked and not corpus:
        raise click.UsageError(f"--{asked[0]} is of a corpus: add --corpus")
    if "top" in asked and not keep:
        raise click.UsageError("--top is of --keep cells: add that")
    given["length"] = given["length"] if corpus else 0
    size = shard_size or (100_000 if corpus else 256)
    return Settings(**given, shard_size=size, cells=keep == "cells")


def _planned_threads(folder: str) -> int | None:
    """Those of a survey that was begun."""
    from logitlens.survey import plan as plans

    try:
        return plans.load(folder).settings.threads
    except SurveyError:
        return None


@command.command("status")
@FOLDER
@click.option("--verify", is_flag=True,
              help="Compare every committed part with its SHA-256, which reads all of them.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead.")
def status_command(folder: str, verify: bool, as_json: bool) -> int:
    """Show how far a survey is: shards committed and failed, and why."""
    from logitlens.survey.run import status

    found = status(folder, verify=verify)
    if as_json:
        click.echo(json.dumps({
            "shards": len(found.plan.shards), "committed": len(found.records),
            "failed": {str(k): v for k, v in found.failed.items()}, "merged": found.merged,
            "underway": {str(k): v for k, v in found.underway.items()},
            "prompts": found.plan.facts["prompts"], "read": found.total("prompts"),
            "rows": found.total("rows"), "skipped": found.skipped,
        }))  # fmt: skip
    else:
        _tell(folder, found)
    return FAILED if found.failed else 0


@command.command("merge")
@FOLDER
@click.option("-o", "--out", metavar="FILE", type=click.Path(path_type=Path),
              help="Default: DIR/survey.parquet.")  # fmt: skip
def merge_command(folder: str, out: Path | None) -> None:
    """Join the committed parts of a survey into one Parquet file, in the order of the prompts."""
    from logitlens.survey.merge import merge

    if out is not None:
        check_outputs([str(out)], [".parquet"])
    click.echo(merge(folder, out))


@command.command("report")
@click.argument("folders", metavar="DIR...", nargs=-1, required=True, type=Folder(remote=True))
@click.option("-o", "--out", metavar="FILE", required=True, type=click.Path(path_type=Path),
              help=".html (one offline page), .png, .svg, .pdf or .md.")  # fmt: skip
@click.option("--by", metavar="CONDITION", help="Group the prompts by a condition.")
@click.option("--contrast", nargs=2, metavar="A B",
              help="B − A, paired by id, of two values of --by; without --by, of two surveys.")  # fmt: skip
@click.option("--readings", is_flag=True,
              help="HTML only: load the model and embed readings of prompts behind the points.")  # fmt: skip
@click.option("--title", default="", metavar="TEXT")
@click.option(
    "--seed", default=0, show_default=True, type=click.IntRange(min=0), help="Of the bootstrap."
)
def report_command(
    folders: tuple[str, ...],
    out: Path,
    by: str | None,
    contrast: tuple[str, str] | None,
    readings: bool,
    title: str,
    seed: int,
) -> None:
    """Curves per layer and condition with 95 % intervals, contrasts and settled layers.

    Several surveys are shown side by side.
    """
    from logitlens.survey.report import SUFFIXES, report

    if contrast and by is None and len(folders) < 2:
        raise click.UsageError(
            "--contrast compares two values of a condition, which --by names, or two surveys: give both"
        )
    check_outputs([str(out)], SUFFIXES)
    with _reading_again() if readings else nullcontext():
        report(folders, out, by=by, contrast=contrast, title=title, seed=seed, readings=readings)
    click.echo(out)


@command.command("find")
@FOLDER
@click.option("--where", default="true", metavar="SQL",
              help="Condition, like \"kl_6 > 5 and settled >= 5 and language = 'fr'\".")  # fmt: skip
@click.option("--order", default="", metavar="SQL", help='Order, like "kl_6 desc".')
@click.option("--limit", default=20, show_default=True, type=COUNT, metavar="N")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, one prompt on each line.")
@click.option("--open", "opened", metavar="FILE", type=click.Path(path_type=Path),
              help="Read the first eight matches again, into a page.")  # fmt: skip
@click.option("--lens", metavar="LENS", help="Only this lens, by its name in the survey.")
def find_command(
    folder: str,
    where: str,
    order: str,
    limit: int,
    as_json: bool,
    opened: Path | None,
    lens: str | None,
) -> None:
    """List the prompts of a survey for which an SQL condition holds.

    Columns: the conditions, prompt_index, id, prompt, answer, lens; NAME_LAYER of every number, like kl_6,
    rank_0 or logprob_embed; settled; and first_1, first_5, first_10: the first layer at which the answer
    has such a rank. −1 is embed. Of a corpus read with --keep cells, the same of its positions: document,
    position, seen, token, text, next; loss_6, …; and ranks of the token that follows. Columns that --where
    and --order name are printed too.
    """
    from logitlens.survey import plan as plans
    from logitlens.survey.find import find
    from logitlens.survey.run import status

    if opened is not None:
        check_outputs([str(opened)], [".html"])
    plan = plans.load(folder)
    if lens is not None and lens not in plan.lenses:
        raise click.BadParameter(
            f"{lens}: this survey has {', '.join(plan.lenses)}", param_hint="'--lens'"
        )
    found = find(folder, where, limit=limit, order=order, lens=lens)
    for row in found:
        if as_json:
            plain = {
                k: v if not isinstance(v, float) or isfinite(v) else None for k, v in row.items()
            }
            click.echo(json.dumps(plain, ensure_ascii=False, default=str, allow_nan=False))
        else:
            facts = (
                f"{k} {v:.6g}" if isinstance(v, float) else f"{k} {v}"
                for k, v in row.items()
                if k not in ("prompt", "answer") and v is not None
            )
            answer = f" → {row['answer']}" if row["answer"] else ""
            click.echo(f"{' · '.join(facts)}\n    {' '.join(str(row['prompt']).split())}{answer}")
    said = status(folder)
    if not said.done:
        read, shards = len(said.records), len(said.plan.shards)
        click.echo(f"not all is read: {read} of {shards} shards are committed", err=True)
    if not found and not as_json:
        click.echo(f"no {'positions' if plan.is_corpus else 'prompts'} match")
    if opened is not None and found:
        _open(folder, found, opened)


def _open(folder: str, found: list[dict[str, Any]], out: Path) -> None:
    """Read up to eight of the prompts, or windows, again."""
    from logitlens.survey.find import read_again
    from logitlens.view import page

    with _reading_again():
        readings = read_again(folder, found, most=8)
    page.save(readings, out)
    click.echo(out)


@contextmanager
def _reading_again() -> Iterator[None]:
    """A spinner on stderr alone: without transformers' bar for the weights, as in `load_model`."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    with busy("reading prompts again"):
        yield


def _tell(folder: str, found: Status) -> None:
    shards, prompts = len(found.plan.shards), found.plan.facts["prompts"]
    unit = found.plan.unit
    click.echo(
        f"{len(found.records)} of {shards} shards committed · {found.total('prompts'):,} of "
        f"{prompts:,} {unit} · {found.total('tokens'):,} tokens · {found.total('rows'):,} rows"
    )
    if noted := _noted(found.plan):
        click.echo(noted)
    if found.merged:
        click.echo(f"table: {folder.rstrip('/')}/survey.parquet")
    if found.total("nonfinite"):
        click.echo(
            f"{found.total('nonfinite')} {unit} with logits that are not finite (null in the table)"
        )
    for record in found.records:
        for remark in record["remarks"]:
            click.echo(f"shard {record['shard']}: {remark}")
    for shard, line in found.underway.items():
        click.echo(f"shard {shard} is in progress, or was abandoned: {line}")
    if found.skipped:
        click.echo(f"{found.bad} skipped; the first: {found.skipped[0]}")
    for shard, why in found.failed.items():
        click.echo(f"shard {shard} failed: {why}")


def _noted(plan: Plan) -> str:
    """What was made of the fields of the input: a misspelt one is a condition."""
    from logitlens.survey.plan import PLAN

    facts, said = plan.facts, []
    if plan.is_corpus and not plan.settings.cells:
        return ""  # no table has them
    if facts["conditions"]:
        said.append(f"conditions: {', '.join(facts['conditions'])}")
    if not plan.is_corpus and facts["answers"] < facts["prompts"]:
        said.append(f"{facts['answers'] or 'none'} of {facts['prompts']:,} prompts have an answer")
    if joined := facts.get("joined"):
        said.append(f'prompts whose answer seems to lack its space, as in " Paris": {joined:,}')
    left_out = facts["corpus"]["left_out"] if plan.is_corpus else {}
    for name, why in list(left_out.items())[:NAMED]:
        some = "some values of " if name in facts["conditions"] else ""
        said.append(f"{some}{name} left out: {why}")
    if len(left_out) > NAMED:
        said.append(f"and more (in {PLAN}, under left_out)")
    return " · ".join(said)


@contextmanager
def _watched() -> Iterator[Watch | None]:
    """On stderr, where it is a terminal, a spinner and then a bar of prompts with tokens per second."""
    console = errors()
    if not console.is_terminal:
        yield None
        return
    from rich.progress import (
        BarColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"), BarColumn(),
        TextColumn("{task.completed:,} of {task.total:,} {task.fields[unit]}"),
        TextColumn("{task.fields[speed]}"), TimeElapsedColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    progress = Progress(*columns, console=console, transient=True)
    reading = console.status("reading the input")  # a large corpus takes minutes

    def watch(plan: Plan, shards: list[int]) -> Callable[[dict[str, Any]], None]:
        reading.stop()
        progress.start()
        sizes = {shard: stop - start for shard, (start, stop) in enumerate(plan.shards)}
        total = sum(sizes[shard] for shard in shards)
        task = progress.add_task("survey", total=total, speed="", unit=plan.unit)
        tokens = failed = 0

        def ended(record: dict[str, Any]) -> None:
            nonlocal tokens, failed
            tokens += record.get("tokens", 0)
            failed += "error" in record
            if "error" in record:
                console.print(f"shard {record['shard']} failed: {record['error']}", markup=False)
            speed = f"{tokens / (progress.tasks[0].elapsed or 1):,.0f} tokens/s"
            speed += f" · {failed} failed" if failed else ""
            progress.update(task, advance=sizes[record["shard"]], speed=speed)

        return ended

    with reading:
        try:
            yield watch
        finally:
            progress.stop()
