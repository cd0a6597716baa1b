"""The kernels of the GPU path, compiled for GPUs that need not be here: registers, shared memory, spills.

    python -m benchmarks.readout.gpu_kernels     # writes the table into docs/performance.md

Triton compiles for any target; `ptxas -v` of its wheel and the metadata of AMD's code say what it took.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

PAGE = Path(__file__).resolve().parents[2] / "docs" / "performance.md"
BEGIN, END = (f"<!-- {w}: benchmarks/readout/gpu_kernels.py -->" for w in ("begin", "end"))
TARGETS = {"sm_80": 80, "sm_90": 90, "sm_100": 100, "gfx942": "gfx942"}
FEATURES = ("BIAS", "FINAL", "CAP")
PLAIN, ALL = dict.fromkeys(FEATURES, False), dict.fromkeys(FEATURES, True)
KERNELS = {
    "look, plain head": ("look", PLAIN | {"WHOLE": True, "HELD": False}),
    "look, every part of a head, ragged": ("look", ALL | {"WHOLE": False, "HELD": False}),
    "look, the same, final rows kept": ("look", ALL | {"WHOLE": False, "HELD": True}),
    "merge, k ≤ 16, slab of 2,048 tokens": ("merge", PLAIN | {"GP": 4, "BP": 32, "KP": 16}),
    "merge, k ≤ 256, slab of 128,256, every part": ("merge", ALL | {"GP": 256, "BP": 2048, "KP": 256}),
    "pick": ("pick", ALL | {"MP": 16, "GATHERED": True}),
    "leading, k ≤ 8": ("leading", {"KP": 8}),
    "result, k ≤ 16": ("result", {"KP": 16}),
    "result, k ≤ 256": ("result", {"KP": 256}),
}  # fmt: skip
TYPES = {
    "*fp32": (
        "slab", "sums", "maxima", "wanted", "whole", "top_logprobs", "entropy", "kl", "target_logprobs",
    ),
    "*i32": ("above", "places", "top_ids", "target_ranks", "candidate_ids"),
    "*i1": ("finite",),
    "*bf16": ("bias", "final_bias"),
    "*fp64": ("state",),
    "*i64": ("keys", "low", "targets"),
    "fp32": ("scale", "cap"),
}  # fmt: skip


@dataclass(frozen=True)
class Used:
    """registers of a thread, bytes of shared memory of a program, bytes or registers spilled."""

    registers: int
    shared: int
    spills: int


def used(name: str, constants: dict, target: str | int) -> Used:
    """What a kernel takes on a target."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler.compiler import ASTSource

    from logitlens.readout import epilogue

    kernel = getattr(epilogue, name)
    types = {argument: type for type, names in TYPES.items() for argument in names}
    names = kernel.arg_names
    signature = {n: "constexpr" if n in constants else types.get(n, "i32") for n in names}
    known = {p.name for p in kernel.params if not p.do_not_specialize} & {"stride", "C"}
    aligned = [n for n in names if signature[n].startswith("*") or n in known]
    source = ASTSource(
        kernel,
        signature,
        constants,
        {(names.index(n),): [["tt.divisibility", 16]] for n in aligned},
    )
    gpu = GPUTarget("cuda", target, 32) if isinstance(target, int) else GPUTarget("hip", target, 64)
    done = triton.compile(source, target=gpu, options={"num_warps": 1})
    if isinstance(target, int):
        return _of_ptx(done.asm["ptx"], done.metadata.shared)
    said = {k: int(v) for k, v in re.findall(r"\.(\w+_count):\s+(\d+)", done.asm["amdgcn"])}
    spills = said["vgpr_spill_count"] + said["sgpr_spill_count"]
    return Used(said["vgpr_count"], done.metadata.shared, spills)


def _of_ptx(ptx: str, shared: int) -> Used:
    import triton

    target = re.findall(r"^\.target (\w+)", ptx, re.MULTILINE)[0]
    tool = "ptxas-blackwell" if int(re.findall(r"\d+", target)[0]) >= 100 else "ptxas"
    path = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / tool
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "kernel.ptx").write_text(ptx)
        command = [path, "-v", f"-arch={target}", "kernel.ptx", "-o", "kernel.o"]
        said = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, check=True
        ).stderr
    spills = sum(int(n) for n in re.findall(r"(\d+) bytes spill", said))
    return Used(int(re.findall(r"Used (\d+) registers", said)[0]), shared, spills)


def table() -> tuple[str, int]:
    """Markdown, and how much is spilled in all."""
    lines = [f"| | {' | '.join(TARGETS)} |", "| --- |" + " ---: |" * len(TARGETS)]
    spills = 0
    for title, (name, constants) in KERNELS.items():
        cells = []
        for target in TARGETS.values():
            took = used(name, constants, target)
            spills += took.spills
            cells.append(f"{took.registers}, {took.shared} B, {took.spills}")
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines), spills


def main() -> int:
    """Write the table; with --check only compare. 1 where it differs or anything is spilled."""
    lines, spills = table()
    text = PAGE.read_text(encoding="utf-8")
    head, rest = text.split(BEGIN)
    fresh = f"{head}{BEGIN}\n\n{lines}\n\n{END}{rest.split(END)[1]}"
    stale = fresh != text
    if "--check" not in sys.argv:
        PAGE.write_text(fresh, encoding="utf-8")
        stale = False
    print(lines)
    if stale:
        print("docs/performance.md has another table: python -m benchmarks.readout.gpu_kernels")
    return int(stale or spills > 0)


if __name__ == "__main__":
    os.environ.pop("TRITON_INTERPRET", None)
    sys.exit(main())
