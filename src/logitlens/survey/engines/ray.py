"""The Ray engine: actors of a cluster that each hold the model; Ray sees shard numbers and records only.

An actor that dies, with its node or alone, is replaced where there is room, and its shard is tried again
by whoever is free. The survey's folder must be one that all nodes see: a shared disk or an object store.
"""

from __future__ import annotations

import contextlib
import math
import os
import socket
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import logitlens
from logitlens.errors import MissingExtra, SurveyError
from logitlens.survey.engines import Records, refusal, refused
from logitlens.survey.engines.local import TRIES, again
from logitlens.survey.worker import opened

if TYPE_CHECKING:
    from ray import ObjectRef

ENDS = 20  # actors that may end before they are ready: lost nodes are no reason to give up
PATIENCE = 10  # seconds for a cluster to answer, and between two looks at how much room it has
SILENCE = 60  # seconds without a worker that is ready, before that is said


class _Reader:
    """The actor: a worker of the survey or the fit."""

    def __init__(self, folder: str, here: str):
        self.refusal: dict[str, Any] = {}
        with contextlib.suppress(OSError):  # relative paths are those of whoever asks
            os.chdir(here)
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
    together: bool = False,
) -> Records:
    """Yields records as shards end.

    address    of a cluster to join, or "auto"; None: a cluster is started on this machine
    jobs       actors; None: as many as there are GPUs, or CPUs for their threads
    threads    CPUs of each actor: those of the plan
    together   the shards need each other: all at once, by as many actors, and one whose actor dies is not
               tried again

    Raises MissingExtra, SurveyError where no cluster is found or started, no actor can start, or there is
    no room for all that are needed at once, and ModelNotAvailable where the model is not there for them.
    """
    with joined(address) as ray:
        yield from _Pool(ray, folder, len(shards) if together else jobs, threads, together).run(
            shards
        )


@contextmanager
def joined(address: str | None) -> Iterator[Any]:
    """Inside, the module `ray` has joined a cluster: the one it is in already, or that of `address`."""
    try:
        import ray
    except ImportError:
        raise MissingExtra("ray", "ray", "the engine `ray`") from None
    began = not ray.is_initialized()
    if began:
        _join(ray, address)
    try:
        yield ray
    finally:
        if began:
            ray.shutdown()


def room(ray: Any, threads: int) -> int:
    """How many actors fit on the nodes of the cluster at once, were nothing else running there."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpus = any(has.get("GPU") for has in nodes)
    return sum(
        int(min(has.get("CPU", 0) // threads, has.get("GPU", 0) if gpus else math.inf))
        for has in nodes
    )


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


def _say(line: str) -> None:
    print(f"logitlens: {line}", file=sys.stderr)


class _Pool:
    """Actors, what each is asked, and what waits."""

    def __init__(self, ray: Any, folder: str, jobs: int | None, threads: int, together: bool):
        self.ray, self.folder, self.threads, self.together = ray, folder, threads, together
        has = ray.cluster_resources()
        gpus = int(has.get("GPU", 0))
        cpus = [int(n["Resources"].get("CPU", 0)) for n in ray.nodes() if n["Alive"]]
        instead = "use" if together else "begin in another folder with"
        if 0 < max(cpus, default=0) < threads:  # without any, nodes may be on their way
            raise SurveyError(
                f"each worker takes {threads} CPUs (--threads) and the largest node of the cluster has "
                f"{max(cpus)}: {instead} --threads {max(cpus)}"
            )
        if any(cpus) and not room(ray, threads):
            raise SurveyError(
                f"each worker takes a GPU and {threads} CPUs (--threads), and no node of the cluster has "
                f"both: {instead} fewer --threads"
            )
        self.count = jobs or max(1, gpus or int(has.get("CPU", 1)) // threads)
        if gpus and jobs is None and (fit := room(ray, threads)) < self.count:
            _say(
                f"the cluster has {self.count} GPUs and CPUs for {fit} workers of {threads} each "
                f"(--threads): {instead} fewer --threads to use all of them"
            )
        # The package may be a checkout that other processes would not find.
        path = os.pathsep.join(
            filter(None, [str(Path(logitlens.__file__).parents[1]), os.environ.get("PYTHONPATH")])
        )
        self.actor = ray.remote(_Reader).options(
            num_cpus=threads, num_gpus=1 if gpus else 0, runtime_env={"env_vars": {"PYTHONPATH": path}}
        )  # fmt: skip
        self.asked: dict[ObjectRef[Any], tuple[Any, int | None]] = {}
        self.ended = 0
        self.speak_at: float | None = time.monotonic() + SILENCE  # None: nothing to say any more

    def run(self, shards: list[int]) -> Records:
        try:
            yield from self._records(shards)
        finally:  # broken off: the cluster may be one that goes on
            for actor, _ in self.asked.values():
                self.ray.kill(actor)

    def _records(self, shards: list[int]) -> Records:
        from ray.exceptions import (
            NodeDiedError,
            OutOfMemoryError,
            RayActorError,
            RuntimeEnvSetupError,
        )

        lost = RayActorError, NodeDiedError, OutOfMemoryError, RuntimeEnvSetupError
        waiting, tries, left = deque(shards), dict.fromkeys(shards, 0), len(shards)
        for _ in range(min(self.count, len(shards))):
            self._start()
        while left:
            done = self._next()
            actor, shard = self.asked.pop(done)
            try:
                answer = self.ray.get(done)
            except lost as error:
                self.ray.kill(actor)  # if it is there at all, the next one needs its room
                line = " ".join(str(error).split())[:200]
                self.ended += shard is None
                most = 1 if self.together else TRIES
                for record in [] if shard is None else again(shard, line, tries, waiting, most):
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

    def _next(self) -> ObjectRef[Any]:
        """What ends next. Raises SurveyError where those that are ready would wait for ever for others
        that have no room."""
        while True:
            unready = any(shard is None for _, shard in self.asked.values())
            fit = room(self.ray, self.threads) if self.together and unready else self.count
            if fit < self.count:
                raise SurveyError(
                    f"{self.count} processes that share each step must run at the same time, each with "
                    f"{self.threads} CPUs (--threads), and a GPU where there are any: the cluster has room "
                    f"for {fit}"
                )
            done, _ = self.ray.wait(list(self.asked), num_returns=1, timeout=PATIENCE)
            if done:
                self.speak_at = None
                return done[0]
            if self.speak_at is not None and time.monotonic() >= self.speak_at:
                self.speak_at = None
                # Nodes may be on their way; or Ray's memory monitor ends workers, which Ray starts again.
                _say(
                    f"no worker is ready after {SILENCE} s, still waiting: a node must have the CPUs of "
                    f"one free (--threads {self.threads}); see `ray status`"
                )

    def _start(self) -> None:
        actor = self.actor.remote(self.folder, os.getcwd())
        self.asked[actor.ready.remote()] = (actor, None)
