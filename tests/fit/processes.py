"""Two processes as `torchrun` starts them, on this machine."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BEGIN = """
import sys, torch
from pathlib import Path
from logitlens.fit import data_parallel as parallel
from tests.fit.corpora import repeating
from tests.lenses import tiny
torch.set_num_threads(1)
parallel.begin()
"""


def run_two(code: str, folder: Path) -> None:
    """Run `code` in two processes of one group; `sys.argv[1]` is the folder to write into."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    script = folder.with_suffix(".py")
    script.write_text(BEGIN + code + "\nparallel.end()\n")
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    group = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    workers = [
        subprocess.Popen(
            [sys.executable, str(script), str(folder)],
            env={
                **os.environ,
                **group,
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "PYTHONPATH": os.pathsep.join(paths),
            },
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for worker in workers:
        _, text = worker.communicate(timeout=120)
        assert worker.returncode == 0, text
