"""The Ray engine on a real cluster of this machine: nodes are lost, and nothing else is."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from functools import partial
from pathlib import Path

import pytest
from click.testing import CliRunner

from logitlens import SurveyError, storage
from logitlens.cli import main
from logitlens.fit import jacobian, tuned
from logitlens.fit.corpus import from_ids
from logitlens.survey import fitting, training
from logitlens.survey import plan as plans
from logitlens.survey.commit import Folder
from logitlens.survey.engines import ray as engine
from logitlens.survey.plan import Settings
from logitlens.survey.run import run
from tests.fit import words
from tests.fit.corpora import repeating
from tests.survey.conftest import WORDS, records, write_lines
from tests.survey.test_edits import EDITS

pytestmark = [
    pytest.mark.slow,
    # Ray's own: sockets and processes that it leaves to the interpreter's end.
    pytest.mark.filterwarnings("ignore"),
]
ITEMS = records(48)


@pytest.fixture(scope="module")
def cluster(s3):
    """A head and two nodes of one processor each, which can reach the S3 server."""
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("RAY_raylet_start_wait_time_s", "120")  # of a busy machine
        # Actors as nice as the test itself: a busy machine would starve them.
        settings = {
            "worker_niceness": 0, "prestart_worker_first_driver": False,
            "enable_metrics_collection": False, "health_check_initial_delay_ms": 1000,
            "health_check_period_ms": 200,  # five unanswered ones, and a node is lost
        }  # fmt: skip
        cluster = Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": 0, "include_dashboard": False, "_system_config": settings},
        )
        try:
            for _ in range(2):
                cluster.add_node(num_cpus=1)
            ray.init(address=cluster.address, log_to_driver=False)
            yield cluster
        finally:
            ray.shutdown()
            cluster.shutdown()


def test_an_address_where_no_cluster_answers_is_said_within_seconds():
    """Before `cluster`, which would be joined; Ray alone would try for minutes."""
    pytest.importorskip("ray")
    with pytest.raises(SurveyError, match="found no cluster at '127.0.0.1:1': .*refused"):
        list(engine.run("anywhere", [0], address="127.0.0.1:1"))


def test_two_lost_nodes_change_no_byte(survey, cluster):
    """A head and two nodes; the node that has just read is killed, twice; one is added."""
    survey.run(ITEMS, folder="whole", size=3)
    whole = (survey.folder / "whole" / "survey.parquet").read_bytes()
    lost = []

    def losing(folder: str, shards: list[int]):
        for done, record in enumerate(engine.run(folder, shards, jobs=2), 1):
            if done in (4, 9):
                _lose(
                    cluster,
                    int(_log(Path(folder), record["shard"])[-1].split()[1].rpartition(":")[2]),
                )
                if not lost:
                    cluster.add_node(num_cpus=1)
                lost.append(done)
            yield record

    found = survey.run(ITEMS, folder="lost", size=3, engine=losing)
    assert lost == [4, 9]
    assert found.done
    assert not found.failed
    assert found.total("prompts") == len(ITEMS)
    folder = survey.folder / "lost"
    assert (folder / "survey.parquet").read_bytes() == whole
    assert not [p.name for p in folder.rglob("*") if "tmp" in p.name]
    pids = {line.split()[1] for s in range(16) for line in _log(folder, s)}
    assert len(pids) >= 3  # actors of lost nodes were replaced


def test_a_corpus_with_its_cells_is_the_same_bytes(model, saved, tmp_path, cluster):
    lines = [{"text": " ".join(WORDS[i % 5 :]), "number": i} for i in range(12)]
    path = write_lines(tmp_path / "text.jsonl", lines)
    settings = Settings(length=8, overlap=2, shard_size=20, token_budget=64, cells=True)
    found = []
    for engine_ in (None, partial(engine.run, jobs=1)):
        folder = tmp_path / ("there" if engine_ else "here")
        assert run(path, folder, model, source=str(saved), loading={}, settings=settings,
                   engine=engine_).done  # fmt: skip
        names = [folder / "survey.parquet", *sorted(folder.glob("cells/*"))]
        found.append([name.read_bytes() for name in names])
    assert found[0] == found[1]
    assert len(found[0]) > 3


def _lose(cluster, actor: int) -> None:
    """Kill the node of an actor with all that runs there, as when a machine is switched off."""
    raylet = int(Path(f"/proc/{actor}/stat").read_text().rpartition(")")[2].split()[1])
    (node,) = [
        n for n in cluster.worker_nodes if n.all_processes["raylet"][0].process.pid == raylet
    ]
    cluster.remove_node(node, allow_graceful=False)
    with contextlib.suppress(ProcessLookupError):
        os.kill(actor, signal.SIGKILL)


def _log(folder: Path, shard: int) -> list[str]:
    return (folder / "logs" / f"{shard:05}.txt").read_text().splitlines()


def test_the_command_line_edits_with_ray_and_refuses_threads_that_no_node_has(
    survey, saved, cluster
):
    """The edits of another survey's plan, a patch among them, whose source prompt every actor runs."""
    items = ITEMS[:9]
    survey.run(items, folder="whole", size=3, edits=EDITS)
    path = str(survey.folder / "prompts.jsonl")

    def go(folder: str, threads: str):
        words = [
            "--engine",
            "ray",
            "--shard-size",
            "3",
            "--token-budget",
            "64",
            "--threads",
            threads,
            "--edit",
            str(survey.folder / "whole" / "plan.json"),
        ]
        out = str(survey.folder / folder)
        arguments = ["survey", "run", path, "-o", out, "-m", str(saved), *words]
        return CliRunner().invoke(main, arguments, prog_name="logitlens")

    done = go("ray", "1")
    assert done.exit_code == 0, done.output
    whole, read = (survey.folder / name / "survey.parquet" for name in ("whole", "ray"))
    assert read.read_bytes() == whole.read_bytes()
    assert plans.load(survey.folder / "ray").edits
    refused = go("wide", "2")
    assert refused.exit_code == 1
    assert "each worker takes 2 CPUs" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1


def test_relative_paths_are_those_of_whoever_asks(survey, cluster, monkeypatch):
    survey.run(ITEMS[:6], folder="relative", size=3, share=(0, 2))
    monkeypatch.chdir(survey.folder)
    (record,) = engine.run("relative", [1], jobs=1)
    assert record["prompts"] == 3


def test_an_actor_that_ray_ends_for_its_memory_is_replaced(survey, cluster, monkeypatch):
    """Ray names an error of its own for that, which is none of an actor that died."""
    import ray

    honest, ended = ray.get, []

    def get(asked):
        answer = honest(asked)
        if isinstance(answer, dict) and "shard" in answer and not ended:
            ended.append(answer["shard"])
            raise ray.exceptions.OutOfMemoryError("the node ran low on memory")
        return answer

    monkeypatch.setattr(ray, "get", get)
    found = survey.run(ITEMS[:6], folder="memory", size=3, engine=partial(engine.run, jobs=1))
    assert ended
    assert found.done
    assert not found.failed


def test_workers_that_find_no_room_are_waited_for_with_a_word(survey, cluster, monkeypatch, capsys):
    """As of a cluster that others use, or whose memory Ray finds too full to start a worker."""
    import ray

    class Held:
        def ready(self):
            return True

    there = int(ray.cluster_resources()["CPU"])
    held = [ray.remote(Held).options(num_cpus=1).remote() for _ in range(there)]
    ray.get([each.ready.remote() for each in held])
    monkeypatch.setattr(engine, "PATIENCE", 1)
    monkeypatch.setattr(engine, "SILENCE", 2)
    freed = threading.Timer(6, lambda: [ray.kill(each) for each in held])
    freed.start()
    found = survey.run(ITEMS[:6], folder="waits", size=3, engine=partial(engine.run, jobs=1))
    freed.join()
    assert found.done
    assert capsys.readouterr().err.count("no worker is ready after 2 s, still waiting") == 1


def test_a_gpu_whose_node_has_too_few_processors_is_refused(survey, cluster):
    nodes = [cluster.add_node(num_cpus=2), cluster.add_node(num_cpus=1, num_gpus=1)]
    try:
        with pytest.raises(
            SurveyError, match="takes a GPU and 2 CPUs .* no node of the cluster has"
        ):
            list(engine.run("anywhere", [0], threads=2))
    finally:
        for node in nodes:
            cluster.remove_node(node)


def test_gpus_without_room_for_their_workers_are_said(survey, cluster, capsys):
    """One node with two GPUs and processors for one worker: one reads, and a line says so."""
    node = cluster.add_node(num_cpus=3, num_gpus=2)
    try:
        survey.run(ITEMS[:6], folder="room", size=3, share=(0, 2))
        (record,) = engine.run(str(survey.folder / "room"), [1], threads=2)
        assert record["prompts"] == 3
        assert "has 2 GPUs and CPUs for 1 workers of 2 each (--threads)" in capsys.readouterr().err
    finally:
        cluster.remove_node(node)


def test_a_survey_that_no_actor_can_load_is_an_error_in_one_line(survey, cluster):
    survey.run(ITEMS[:9], folder="gone", size=3, share=(0, 3))
    (survey.folder / "prompts.jsonl").write_text('{"prompt": "other"}\n')
    with pytest.raises(SurveyError, match="has changed since the survey was planned") as raised:
        list(engine.run(str(survey.folder / "gone"), [1], jobs=1))
    assert "\n" not in str(raised.value)
    assert Folder(survey.folder / "gone").committed(1) is None
    assert len(plans.load(survey.folder / "gone").shards) == 3


def test_a_survey_by_ray_into_an_object_store_is_the_same_bytes(survey, model, saved, cluster, s3):
    survey.run(ITEMS[:12], folder="whole", size=3)
    whole = (survey.folder / "whole" / "survey.parquet").read_bytes()
    found = run(
        survey.folder / "prompts.jsonl", f"{s3}/by-ray", model, source=str(saved), loading={},
        settings=Settings(shard_size=3, threads=1, token_budget=64), engine=partial(engine.run, jobs=1),
    )  # fmt: skip
    assert found.done
    assert storage.at(f"{s3}/by-ray").read("survey.parquet") == whole


def test_a_jacobian_fit_by_ray_survives_a_killed_actor(model, saved, cluster, tmp_path):
    text = from_ids([[1 + (7 * n + i * i) % 90 for i in range(8 + n % 9)] for n in range(30)])
    settings = jacobian.Settings(skip_first=2, tokens_per_pass=40, dtype="float32", cotangents=8)
    given = {"source": str(saved), "loading": {}, "threads": 1}

    def killing(folder: str, shards: list[int]):
        for done, record in enumerate(engine.run(folder, shards, jobs=1), 1):
            if done == 2:
                (actor,) = _actors()
                os.kill(actor, signal.SIGKILL)
                killed.append(actor)
            yield record

    killed: list[int] = []
    lens = fitting.fit(model, text, settings, tmp_path / "ray", engine=killing, **given)
    assert len(killed) == 1
    assert lens.header.weight == 30
    fitting.fit(model, text, settings, tmp_path / "here", **given)
    ray, here = (tmp_path / name / jacobian.FILE for name in ("ray", "here"))
    assert ray.read_bytes() == here.read_bytes()
    assert [path.name for path in (tmp_path / "ray").iterdir()] == [jacobian.FILE]


def test_a_tuned_fit_by_ray_survives_a_killed_actor_and_a_lost_node(
    model, saved, cluster, tmp_path
):
    """The same bytes as by two processes of this machine whom nobody disturbs."""
    settings = tuned.Settings(
        steps=250, tokens_per_step=80, length=20, lr=0.3, checkpoint_every=25, dtype="float32"
    )
    given = {"source": str(saved), "loading": {}, "threads": 1, "jobs": 2}
    lost = []
    _resize(cluster, 3)

    def losing(progress):
        if len(lost) < 2 and progress.step >= 40 + 80 * len(lost):
            lost.append(progress.step)
            if len(lost) == 1:
                os.kill(_actors()[0], signal.SIGKILL)
            else:
                _lose(cluster, _actors()[0])

    group = partial(engine.run, together=True)
    training.fit(
        model, repeating(), settings, tmp_path / "ray", engine=group, report=losing, **given
    )
    assert len(lost) == 2
    training.fit(model, repeating(), settings, tmp_path / "here", **given)
    ray, here = (tmp_path / name / tuned.FILE for name in ("ray", "here"))
    assert ray.read_bytes() == here.read_bytes()
    assert [path.name for path in (tmp_path / "ray").iterdir()] == [tuned.FILE]


def test_the_command_line_trains_on_all_nodes_and_refuses_more_than_have_room(
    saved, cluster, tmp_path
):
    _resize(cluster, 2)
    text = words.text(tmp_path / "text.txt")
    given = ["--steps", "5", "--tokens-per-step", "80", "--length", "20", "--threads", "1"]

    def go(out: str, *extra: str):
        arguments = ["fit", "tuned", str(text), "-m", str(saved), "-o", str(tmp_path / out), *given]
        return CliRunner().invoke(main, [*arguments, *extra], prog_name="logitlens")

    for extra in (("-j", "3"), ("-j", "2", "--threads", "2")):
        refused = go("wide", "--engine", "ray", *extra)
        assert refused.exit_code == 1
        assert "room for 2" in refused.stderr or "each worker takes 2 CPUs" in refused.stderr
        assert len(refused.stderr.splitlines()) == 1
        assert os.listdir(tmp_path / "wide") == []
    for out, extra in (("ray", ("--engine", "ray")), ("here", ("-j", "2"))):
        done = go(out, *extra)
        assert done.exit_code == 0, done.output
    ray, here = (tmp_path / name / tuned.FILE for name in ("ray", "here"))
    assert ray.read_bytes() == here.read_bytes()


def _resize(cluster, count: int) -> None:
    """Have so many nodes of one processor each, whatever earlier tests have lost."""
    while len(cluster.worker_nodes) < count:
        cluster.add_node(num_cpus=1)
    while len(cluster.worker_nodes) > count:
        cluster.remove_node(next(iter(cluster.worker_nodes)))
    cluster.wait_for_nodes()


def _actors() -> list[int]:
    """The processes of actors, which call themselves by class and method."""
    return [
        int(path.parent.name)
        for path in Path("/proc").glob("[0-9]*/cmdline")
        if path.read_bytes().startswith(b"ray::_Reader")
    ]
