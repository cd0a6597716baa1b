"""One call measured: seconds passed, processor seconds, and the most memory it took."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

STATUS = Path("/proc/self/status")


def measured(call: Callable[[], Any], before: int | None) -> tuple[Any, dict]:
    """What `call` returns, and {"seconds", "cpu", "peak_mb"}: the peak of resident memory beyond
    `before` (kilobytes, of `resident`); None where the system does not tell."""
    forget_peak()
    began, cpu = time.perf_counter(), time.process_time()
    result = call()
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    peak = resident("VmHWM")
    peak_mb = None if before is None or peak is None else (peak - before) / 1024
    return result, {"seconds": seconds, "cpu": cpu, "peak_mb": peak_mb}


def in_turn(ways: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[dict]]:
    """What `measured` says of each way, round by round after one that warms up. They share a process, so
    none has a peak of its own."""
    said: dict[str, list[dict]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for name, call in ways.items():
            _, took = measured(call, None)
            if turn:
                said[name].append(took)
    return said


def forget_peak() -> None:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass


def resident(field: str = "VmRSS") -> int | None:
    """Kilobytes of memory held now ("VmRSS") or at most so far ("VmHWM"); None if not known."""
    if not STATUS.exists():
        return None
    (line,) = (t for t in STATUS.read_text().splitlines() if t.startswith(field + ":"))
    return int(line.split()[1])


def available() -> int | None:
    """Bytes that can still be had without swapping; None if not known."""
    path = Path("/proc/meminfo")
    lines = path.read_text().splitlines() if path.exists() else []
    found = [int(t.split()[1]) << 10 for t in lines if t.startswith("MemAvailable:")]
    return found[0] if found else None
