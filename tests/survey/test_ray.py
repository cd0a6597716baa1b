"""The Ray engine on a real cluster of this machine: nodes are lost, and nothing else is."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from logitlens import SurveyError
from logitlens.cli import main
from logitlens.survey import plan as planning
from logitlens.survey.commit import Folder
from logitlens.survey.engines import ray as engine
from tests.survey.conftest import records

pytestmark = [
    pytest.mark.slow,
    # Ray's own: sockets and processes that it leaves to the interpreter's end.
    pytest.mark.filterwarnings("ignore"),
]
ITEMS = records(240)


@pytest.fixture(scope="module")
def cluster():
    """A head and two nodes of one processor each."""
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("RAY_raylet_start_wait_time_s", "120")  # of a busy machine
        # Actors as nice as the test itself: a busy machine would starve them.
        settings = {"worker_niceness": 0, "prestart_worker_first_driver": False}
        cluster = Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": 0, "include_dashboard": False, "_system_config": settings},
        )
        try:
            cluster.nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
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
    """A head and two nodes; each node in turn is killed in mid-run, and one is added."""
    survey.run(ITEMS, folder="whole", size=3)
    whole = (survey.folder / "whole" / "survey.parquet").read_bytes()
    lost = []

    def losing(folder: str, shards: list[int]):
        for done, record in enumerate(engine.run(folder, shards, jobs=2), 1):
            if done in (10, 30):
                cluster.remove_node(cluster.nodes[len(lost)], allow_graceful=False)
                lost.append(done)
                cluster.nodes.append(cluster.add_node(num_cpus=1))
            yield record

    found = survey.run(ITEMS, folder="lost", size=3, engine=losing)
    assert lost == [10, 30]
    assert found.done
    assert not found.failed
    assert found.total("prompts") == len(ITEMS)
    folder = survey.folder / "lost"
    assert (folder / "survey.parquet").read_bytes() == whole
    assert not [p.name for p in folder.rglob("*") if "tmp" in p.name]
    pids = {line.split()[1] for s in range(80) for line in _log(folder, s)}
    assert len(pids) >= 3  # actors of lost nodes were replaced


def _log(folder: Path, shard: int) -> list[str]:
    return (folder / "logs" / f"{shard:05}.txt").read_text().splitlines()


def test_the_command_line_reads_with_ray_and_refuses_threads_that_no_node_has(
    survey, saved, cluster
):
    items = ITEMS[:9]
    survey.run(items, folder="whole", size=3)
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
        ]
        out = str(survey.folder / folder)
        arguments = ["survey", "run", path, "-o", out, "-m", str(saved), *words]
        return CliRunner().invoke(main, arguments, prog_name="logitlens")

    done = go("ray", "1")
    assert done.exit_code == 0, done.output
    whole, read = (survey.folder / name / "survey.parquet" for name in ("whole", "ray"))
    assert read.read_bytes() == whole.read_bytes()
    refused = go("wide", "2")
    assert refused.exit_code == 1
    assert "each worker takes 2 CPUs" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1


def test_a_survey_that_no_actor_can_load_is_an_error_in_one_line(survey, cluster):
    survey.run(ITEMS[:9], folder="gone", size=3, share=(0, 3))
    (survey.folder / "prompts.jsonl").write_text('{"prompt": "other"}\n')
    with pytest.raises(SurveyError, match="has changed since the survey was planned") as raised:
        list(engine.run(str(survey.folder / "gone"), [1], jobs=1))
    assert "\n" not in str(raised.value)
    assert Folder(survey.folder / "gone").committed(1) is None
    assert len(planning.load(survey.folder / "gone").shards) == 3
