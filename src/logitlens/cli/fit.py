"""`logitlens fit`: train a tuned lens or average a Jacobian lens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from logitlens.cli import fit_progress
from logitlens.cli.options import (
    LOADING,
    STORED,
    Folder,
    Number,
    busy,
    check_engine,
    engine_of,
    engine_options,
    load_model,
    loading_here,
    model_options,
    shard_of,
    threads_of_each,
    together,
)
from logitlens.files import check_writable

if TYPE_CHECKING:
    from logitlens import LensModel
    from logitlens.fit.corpus import Corpus
    from logitlens.lenses import JacobianLens, TunedLens


COUNT = click.IntRange(min=1)
ABOVE_0 = Number(min=0, min_open=True)


@click.group("fit", no_args_is_help=True)
def command() -> None:
    """Fit a tuned or a Jacobian lens to a model.

    An interrupted fit resumes when the same command is given again. Several processes: -j N, --engine
    ray, or torchrun --nproc-per-node N -m logitlens fit ….
    """


_common = together(
    click.argument("corpus", metavar="CORPUS"),
    click.option(
        "-o", "--out", required=True, metavar="DIR",
        type=Folder(),
        help="Folder for the lens and, until it is done, the checkpoint.",
    ),
    click.option("--field", default="text", show_default=True, metavar="NAME",
                 help="JSONL field or Parquet column with the text."),
    click.option("--length", type=COUNT, metavar="N",
                 help="Tokens of one sequence, at most the model's context."),
    click.option("--store", "store", type=click.Choice(STORED),
                 default="float16", show_default=True, help="Number type of the lens file."),
    click.option("--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True,
                 metavar="N"),
    click.option("--fresh", is_flag=True, help="Start over, ignoring any checkpoint or lens in DIR."),
    click.option("--evaluate", is_flag=True,
                 help="Judge the lens beside the logit lens when it is done."),
    click.option("--facts", metavar="FILE", help="With --evaluate: prompts with answers, too."),
)  # fmt: skip


@command.command("tuned")
@_common
@model_options
@click.option("--steps", type=COUNT, metavar="N", help="Optimizer steps (250).")
@click.option("--tokens-per-step", type=COUNT, metavar="N", help="Tokens of one step (16384).")
@click.option("--max-tokens", type=COUNT, metavar="N", help="Read at most N tokens of CORPUS.")
@click.option("--optimizer", type=click.Choice(["sgd", "adamw", "muon"]), default="sgd",
              show_default=True)  # fmt: skip
@click.option(
    "--lr", type=ABOVE_0, metavar="X", help="Default: 1 (sgd), 0.001 (adamw), 0.02 (muon)."
)
@click.option("--warmup", type=click.IntRange(min=0), metavar="N",
              help="Steps of warm-up (sgd 0, others steps / 5).")  # fmt: skip
@click.option("--weight-decay", type=Number(min=0), metavar="X",
              help="Towards the logit lens (0.001).")  # fmt: skip
@click.option("--clip", type=ABOVE_0, metavar="X", help="Largest norm of the gradient (1).")
@click.option("--rank", type=COUNT, metavar="R", help="Low-rank maps. Default: full rank.")
@click.option("--precision", type=click.Choice(["float32", "bfloat16"]),
              help="Of products with the unembedding while training (float32).")  # fmt: skip
@click.option("--holdout", type=Number(0, 1, min_open=True, max_open=True), metavar="X",
              help="Share of CORPUS held out (0.05).")  # fmt: skip
@click.option("--evaluate-every", type=COUNT, metavar="N", help="Steps between evaluations.")
@click.option(
    "--patience", type=COUNT, metavar="N", help="Stop after N evaluations without a gain."
)
@click.option("--checkpoint-every", type=COUNT, metavar="N", help="Steps between checkpoints.")
@engine_options
@click.option(
    "--shard", hidden=True, expose_value=False, callback=lambda *given: _no_shards(*given)
)
def tuned_command(
    corpus: str,
    out: Path,
    field: str,
    max_tokens: int | None,
    jobs: int | None,
    engine: str,
    address: str | None,
    threads: int | None,
    fresh: bool,
    evaluate: bool,
    facts: str | None,
    source: str,
    **options: Any,
) -> None:
    """Train a tuned lens on CORPUS: one affine map per layer, KL(final ‖ lens) minimised.

    CORPUS is a .txt (paragraphs), .jsonl or .parquet file, any of them gzipped, a folder of them, or
    hf://datasets/owner/name. Writes DIR/tuned.safetensors. Every step begins where the one before
    ended, so a fit has no shards: with -j, --engine ray or torchrun, processes share each step.
    """
    from logitlens.fit import tuned
    from logitlens.fit.sequences import split

    loading, given = _apart(options)
    check_engine(engine, address)
    _check_asked(out, evaluate, facts)
    here = loading_here(loading, engine, jobs)
    with _session(source, here, facts) as (model, speak):
        settings = tuned.Settings(**given)
        needed = settings.steps * settings.tokens_per_step * 21 // 20
        text = _read(corpus, model, field, min(needed, max_tokens or needed), speak)
        with (
            _shared_steps(source, loading, jobs, engine, address, threads) as train,
            fit_progress.watched_tuned(speak) as report,
            fit_progress.kept(out, fresh, speak),
        ):
            lens = train(model, text, settings, folder=out, report=report, fresh=fresh)
        if speak:
            fit_progress.tell_tuned(lens, out / tuned.FILE)
            if evaluate:
                _, held_CT = split(model, text, settings)
                if here != loading:  # those who trained have left the devices
                    model = load_model(source, **loading)
                _judge(model, f"tuned:{out}", held_CT, facts, out)


@command.command("jacobian")
@_common
@model_options
@click.option("--prompts", type=COUNT, metavar="N", help="Documents to use, at most (1000).")
@click.option("--cotangents", type=COUNT, metavar="R",
              help="R random directions instead of every dimension: cheaper, noisier.")  # fmt: skip
@click.option(
    "--layers", metavar="A:B", help="Layers to fit, as for read. Default: all but the last."
)
@click.option("--skip-first", type=click.IntRange(min=0), metavar="N",
              help="Leading positions to skip (16).")  # fmt: skip
@click.option("--tokens-per-pass", type=COUNT, metavar="N",
              help="Positions of one backward pass (CPU 1024, GPU 16384).")  # fmt: skip
@engine_options
@click.option("--shard", metavar="I/N", help="Every N-th document from the I-th on (from 0).")
def jacobian_command(
    corpus: str,
    out: Path,
    field: str,
    layers: str | None,
    shard: str | None,
    jobs: int | None,
    engine: str,
    address: str | None,
    threads: int | None,
    fresh: bool,
    evaluate: bool,
    facts: str | None,
    source: str,
    **options: Any,
) -> None:
    """Average a Jacobian lens over the documents of CORPUS: J = E[∂h_final / ∂h].

    CORPUS as for `fit tuned`; each paragraph, line or row is one prompt, and those of fewer than 18
    tokens are skipped. With -j or --engine ray, processes share the documents as those of `survey run`
    do. `logitlens lens merge` combines shards that were fitted apart. Writes DIR/jacobian.safetensors.
    """
    from logitlens.fit import jacobian
    from logitlens.fit.corpus import Corpus

    loading, given = _apart(options)
    part = shard_of(shard)
    check_engine(engine, address)
    _check_asked(out, evaluate, facts)
    here = loading_here(loading, engine, jobs)
    with _session(source, here, facts) as (model, speak):
        if layers is not None:
            from logitlens.select import layer_label, select_layers

            labels = [layer_label(depth) for depth in range(model.n_blocks)]
            given["depths"] = tuple(select_layers(layers, labels, model.n_blocks))
        settings = jacobian.Settings(**given)
        # Documents, not tokens, are what is needed: more than enough, cut later.
        enough = settings.prompts * settings.length * 4
        text = _read(corpus, model, field, enough, speak)
        if part is not None:
            # The prompts of the whole fit are shared out, so that the shards merge into it.
            chosen = jacobian.choose(model, text, settings)
            text = Corpus(text.name, [ids.numpy() for ids in chosen]).shard(*part)
        average = jacobian.fit
        if jobs is not None or engine == "ray":
            average = _in_shards(source, loading, jobs, engine, address, threads, out)
        with (
            fit_progress.watched_jacobian(speak) as report,
            fit_progress.kept(out, fresh, speak),
        ):
            lens = average(model, text, settings, folder=out, report=report, fresh=fresh)
        if speak:
            fit_progress.tell_jacobian(lens, out / jacobian.FILE)
            if evaluate:
                used = len(jacobian.choose(model, text, settings))
                held = _held_out(model, text, used, settings)
                if here != loading:  # those who fitted have left the devices
                    model = load_model(source, **loading)
                _judge(model, f"jacobian:{out}", held, facts, out)


def _in_shards(
    source: str,
    loading: dict[str, Any],
    jobs: int | None,
    engine: str,
    address: str | None,
    threads: int | None,
    out: Path,
) -> Callable[..., JacobianLens]:
    """`jacobian.fit` by several processes."""
    from logitlens.survey import fitting

    _check_alone()
    each = threads or fitting.planned_threads(out) or threads_of_each(engine, jobs)
    return partial(
        fitting.fit, source=source, loading=loading, threads=each, jobs=jobs or 1,
        engine=engine_of(engine, address, jobs, each),
    )  # fmt: skip


@contextmanager
def _shared_steps(
    source: str,
    loading: dict[str, Any],
    jobs: int | None,
    engine: str,
    address: str | None,
    threads: int | None,
) -> Iterator[Callable[..., TunedLens]]:
    """`tuned.fit`, by several processes where they are asked for."""
    import torch

    from logitlens.fit import tuned

    if jobs is not None or engine == "ray":
        _check_alone()
    if engine != "ray" and (jobs or 1) == 1:
        torch.set_num_threads(threads or torch.get_num_threads())
        yield tuned.fit
        return
    from logitlens.survey import training

    each = threads or threads_of_each(engine, jobs)
    train = partial(training.fit, source=source, loading=loading, threads=each)
    if engine != "ray":
        yield partial(train, jobs=jobs or 1)
        return
    from logitlens.survey.engines import ray

    with ray.joined(address) as cluster:
        size = jobs or max(1, ray.room(cluster, each))
        yield partial(train, jobs=size, engine=partial(ray.run, threads=each, together=True))


def _check_alone() -> None:
    """Raise UsageError where torchrun has started several processes already."""
    from logitlens.fit import data_parallel

    if data_parallel.active():
        raise click.UsageError("-j and --engine start processes themselves: leave out torchrun")


def _no_shards(context: click.Context, option: click.Parameter, value: str | None) -> None:
    if value is not None:
        raise click.UsageError(
            "the steps of a tuned fit follow each other, so it has no shards: share each step among "
            "processes with -j N, --engine ray, or torchrun"
        )


def _apart(options: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Options of loading the model, and those given of the fit's settings."""
    loading = {name: value for name, value in options.items() if name in LOADING}
    given = {k: v for k, v in options.items() if k not in LOADING and v is not None}
    return loading, {"dtype": given.pop("store"), **given}


def _check_asked(folder: Path, evaluate: bool, facts: str | None) -> None:
    """Raise OSError for a folder that cannot be written or made, before a fit of hours, and UsageError for
    facts that nothing is to be judged on."""
    if facts is not None and not evaluate:
        raise click.UsageError("--facts is of --evaluate: add that")
    nearest = next(place for place in (folder, *folder.parents) if place.exists())
    check_writable(nearest / "lens")


@contextmanager
def _session(
    source: str, loading: dict[str, Any], facts: str | None
) -> Iterator[tuple[LensModel, bool]]:
    """The model, for which facts can be read, and whether this process is the one that speaks."""
    from logitlens.fit import data_parallel
    from logitlens.fit import facts as reading

    data_parallel.begin()
    try:
        model = load_model(source, **loading)
        if facts is not None:
            reading.read(facts, model)
        yield model, data_parallel.rank() == 0
    finally:
        data_parallel.end()


def _read(source: str, model: LensModel, field: str, max_tokens: int, speak: bool) -> Corpus:
    from logitlens.fit import corpus

    with busy(f"reading {source}") if speak else nullcontext():
        return corpus.read(source, model, field=field, max_tokens=max_tokens)


def _held_out(model: LensModel, text: Any, used: int, settings: Any) -> Any:
    """Sequences of documents behind those the Jacobian was averaged over; all where none are left."""
    from logitlens.fit.corpus import Corpus

    long = [d for d in text.documents if len(d) >= settings.skip_first + 2]
    rest = Corpus(text.name, long[used:] or long)
    length = min(settings.length, model.context or settings.length, max(2, rest.tokens))
    return rest.chunks(length)[:128]


def _judge(model: LensModel, lens: str, sequences: Any, facts: str | None, out: Path) -> None:
    from logitlens.cli.lens import judge, tell

    tell(judge(model, ["logit", lens], sequences, facts), [out / "evaluation.parquet"])
