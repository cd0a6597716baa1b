"""Time to the first result from process start: `logitlens read`, and what it cannot do without.

In the environment a user has (benchmarks/environments/logitlens.txt): transformers imports much of
what the developers' environment holds, if it is there.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.readout import compare, environments, machine

ROOT = Path(__file__).resolve().parents[2]
PROMPT = "The Eiffel Tower is in the city of"
LEAST = f"""
import torch, transformers
from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast
path = {str(ROOT / "src/logitlens/demo/model")!r}
model = GPT2LMHeadModel.from_pretrained(path).float()
ids = PreTrainedTokenizerFast.from_pretrained(path)({PROMPT!r}, return_tensors="pt").input_ids
with torch.inference_mode():
    model(ids)
"""
VERSIONS = """
import json
from benchmarks.readout import machine
print(json.dumps(machine.versions(("torch", "transformers"))))
"""
ROUNDS = 5


def rows(threads: int) -> Iterator[dict]:
    """Rows of all, interleaved."""
    python = str(environments.python("logitlens"))
    commands = {
        "import torch": [python, "-c", "import torch"],
        "import, load, one forward pass": [python, "-c", LEAST],
        "logitlens read": [python, "-m", "logitlens", "read", PROMPT],
    }
    said: dict[str, list[dict]] = {name: [] for name in commands}
    for turn in range(ROUNDS + 1):
        for name, command in commands.items():
            began = time.perf_counter()
            done = _run(command, threads)
            seconds = time.perf_counter() - began
            if done.returncode:
                said[name].append({"failed": done.stderr.strip().splitlines()[-1][:200]})
            elif turn:
                said[name].append({"seconds": seconds})
    versions = json.loads(_run([python, "-c", VERSIONS], threads).stdout)
    for name, results in said.items():
        row = {"kind": "start", "contender": name, "threads": threads, "versions": versions}
        yield row | machine.summary(results)


def _run(command: list[str], threads: int) -> subprocess.CompletedProcess[str]:
    found = compare.variables(threads)
    return subprocess.run(command, cwd=ROOT, env=found, capture_output=True, text=True)
