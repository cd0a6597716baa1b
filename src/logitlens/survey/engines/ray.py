"""The Ray engine: actors of a cluster that each hold the model; Ray sees shard numbers and records only.

An actor that dies, with its node or alone, is replaced where there is room, and its shard is tried again
by whoever is free. The survey's folder must be one that all nodes see: a shared disk or an object store.
"""

from __future__ import annotations

import os
import socket
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import logitlens
from logitlens.errors import MissingExtra, SurveyError
from logitlens.survey.engines import refusal, refused
from logitlens.survey.engines.local import again
from logitlens.survey.worker import opened

if TYPE_CHECKING:
    from ray import ObjectRef

ENDS = 20  # actors that may end before they are ready: lost nodes are no reason to give up
PATIENCE = 10  # seconds for a cluster to answer


class _Reader:
    """The actor: a worker of the survey or the fit."""

    def __init__(self, folder: str):
        self.refusal: dict[str, Any] = {}
        try:
            self.worker = opened(folder)
        except Exception as error:
            self.refusal = refusal(error)

    def ready(self) -> dict[str, Any]:
        """Why it cannot work, or nothing."""
        return self.refusal

    def read(self, shard: int) -> dict[str, Any]:
        return self.worker.try_shard(shard)


def run(
    folder: str,
    shards: list[int],
    *,
    address: str | None = None,
    jobs: int | None = None,
    threads: int = 1,
) -> Iterator[dict[str, Any]]:
    """Yields records as shards end.

    address   of a cluster to join, or "auto"; None: a cluster is started on this machine
    jobs      actors; None: as many as there are GPUs, or CPUs for their threads
    threads   CPUs of each actor: those of the plan

    Raises MissingExtra, SurveyError where no cluster is found or started, or no actor can start, and
    ModelNotAvailable where the model is not there for them.
    """
    try:
        import ray
    except ImportError:
        raise MissingExtra("ray", "ray", "the engine `ray`") from None
    began = not ray.is_initialized()
    if began:
        _join(ray, address)
    try:
        yield from _Pool(ray, folder, jobs, threads).run(shards)
    finally:
        if began:
            ray.shutdown()


def _join(ray: Any, address: str | None) -> None:
    """Join the cluster, or start one. Raises SurveyError."""
    where = (
        "did not start on this machine" if address is None else f"found no cluster at {address!r}"
    )
    host, _, port = (address or "").rpartition(":")
    try:
        if host and port.isdecimal() and "/" not in host:  # Ray itself would try for minutes
            socket.create_connection((host.strip("[]"), int(port)), timeout=PATIENCE).close()
        ray.init(
            address=address, log_to_driver=False, include_dashboard=False if address is None else None,
            configure_logging=False,
        )  # fmt: skip
    except Exception as error:  # Ray raises plain ones
        line = " ".join(str(error).split())[:200]
        raise SurveyError(f"Ray {where}: {line}") from error


class _Pool:
    """Actors, what each is asked, and what waits."""

    def __init__(self, ray: Any, folder: str, jobs: int | None, threads: int):
        self.ray, self.folder = ray, folder
        has = ray.cluster_resources()
        gpus = int(has.get("GPU", 0))
        cpus = [int(n["Resources"].get("CPU", 0)) for n in ray.nodes() if n["Alive"]]
        if 0 < max(cpus, default=0) < threads:  # without any, nodes may be on their way
            raise SurveyError(
                f"each worker takes {threads} CPUs (--threads) and the largest node of the cluster has "
                f"{max(cpus)}: begin in another folder with --threads {max(cpus)}"
            )
        self.count = jobs or max(1, gpus or int(has.get("CPU", 1)) // threads)
        # The package may be a checkout that other processes would not find.
        path = os.pathsep.join(
            filter(None, [str(Path(logitlens.__file__).parents[1]), os.environ.get("PYTHONPATH")])
        )
        self.actor = ray.remote(_Reader).options(
            num_cpus=threads, num_gpus=1 if gpus else 0, runtime_env={"env_vars": {"PYTHONPATH": path}}
        )  # fmt: skip
        self.asked: dict[ObjectRef[Any], tuple[Any, int | None]] = {}
        self.ended = 0

    def run(self, shards: list[int]) -> Iterator[dict[str, Any]]:
        from ray.exceptions import RayActorError

        waiting, tries, left = deque(shards), dict.fromkeys(shards, 0), len(shards)
        for _ in range(min(self.count, len(shards))):
            self._start()
        while left:
            (done, *_), _ = self.ray.wait(list(self.asked), num_returns=1)
            actor, shard = self.asked.pop(done)
            try:
                answer = self.ray.get(done)
            except RayActorError as error:
                line = " ".join(str(error).split())[:200]
                self.ended += shard is None
                for record in [] if shard is None else again(shard, line, tries, waiting):
                    left -= 1
                    yield record
                if self.ended >= ENDS:
                    raise SurveyError(
                        f"{ENDS} workers ended before they were ready: {line}"
                    ) from None
                if waiting or not self.asked:
                    self._start()
                continue
            if shard is not None:
                left -= 1
                yield answer
            elif answer:
                raise refused(answer)
            if waiting:
                shard = waiting.popleft()
                self.asked[actor.read.remote(shard)] = (actor, shard)
            else:
                self.ray.kill(actor)

    def _start(self) -> None:
        actor = self.actor.remote(self.folder)
        self.asked[actor.ready.remote()] = (actor, None)
