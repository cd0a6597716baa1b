"""Where a row was measured, and how repeats are summed up."""

from __future__ import annotations

import os
import platform
import subprocess
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FORMAT = 2  # of a row; the report takes no older ones
CLASSES = {"AMX": "amx_bf16", "AVX-512": "avx512f", "AVX2": "avx2", "aarch64": "asimd"}
SETS = ("avx2", "fma", "f16c", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16", "i8mm")
SUMMED = {"seconds": "", "cpu": "cpu_", "product_s": "product_", "forward_s": "forward_"}


@lru_cache
def facts() -> dict:
    """Commit, machine and versions of this process's environment, the same in every row of a run."""
    return {
        "format": FORMAT,
        "commit": _commit(),
        "machine": f"{_processor()}, {cores()} cores",
        "features": [f for f in SETS if f in _flags()],
        "versions": versions(("torch", "transformers", "numba")),
    }


def kind_of(row: dict) -> str:
    """The class of machines that a row was measured on: their rows share a table and no others."""
    if row.get("gpu"):
        return "GPU"
    return next((name for name, f in CLASSES.items() if f in row["features"]), "other")


def versions(packages: tuple[str, ...]) -> dict[str, str | None]:
    """Python's version and those of packages; None for one that is not installed."""
    return {"python": platform.python_version(), **{p: _version(p) for p in packages}}


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def summary(said: list[dict]) -> dict:
    """20/50/80 percentiles of the seconds passed and of the processor's, the highest peak; or why
    there are none."""
    failed = [s["failed"] for s in said if "failed" in s]
    if failed:
        return {"failed": failed[0]}
    peaks = [s["peak_mb"] for s in said if s.get("peak_mb") is not None]
    row = {"repeats": len(said), "peak_mb": round(max(peaks), 1) if peaks else None}
    for name, prefix in SUMMED.items():
        values = sorted(s[name] for s in said if name in s)
        if values:
            row |= {f"{prefix}p{p}": _at(values, p / 100) for p in (20, 50, 80)}
    return row | {name: s[name] for s in said[-1:] for name in ("product",) if name in s}


def _at(ordered: list[float], share: float) -> float:
    place = share * (len(ordered) - 1)
    low, high = ordered[int(place)], ordered[min(len(ordered) - 1, int(place) + 1)]
    return round(low + (high - low) * (place - int(place)), 5)


def _commit() -> str:
    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], capture_output=True, text=True, cwd=ROOT)
        return done.stdout.strip()

    parts = ("src", "benchmarks/run.py", "benchmarks/readout", "benchmarks/environments")
    changed = git("status", "--porcelain", "--untracked-files=no", *parts)
    return git("rev-parse", "--short", "HEAD") + ("+" if changed else "")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpuinfo(field: str) -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((t.split(":", 1)[1].strip() for t in lines if t.startswith(field)), "")


def _processor() -> str:
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def _flags() -> list[str]:
    return (_cpuinfo("flags") or _cpuinfo("Features")).split()
