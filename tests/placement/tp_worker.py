"""One process of a tensor-parallel run: `python tp_worker.py MODEL OUT`; see test_parallel.py.

Loads the model with tp_plan="auto", reads a prompt, and writes what it read, together with the
bytes every collective handled, to OUT.RANK.
"""

from __future__ import annotations

import json
import sys
import warnings

import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode

torch.set_num_threads(1)
warnings.simplefilter("ignore")
IDS = [5, 1, 17, 200, 3, 42, 9, 301, 320, 8, 7, 6]
FIELDS = (
    "top_ids", "top_logprobs", "entropy", "kl", "next_logprobs", "next_ranks",
    "track_logprobs", "track_ranks", "candidate_ids", "candidate_logprobs", "candidate_ranks",
)  # fmt: skip


class Traffic(TorchDispatchMode):
    """Bytes of the tensors that collectives return or change, while it is on."""

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        moves = func.namespace in ("c10d", "_c10d_functional")
        if moves and not any(name in str(func) for name in ("wait", "wrap")):
            for tensor in torch.utils._pytree.tree_leaves(out):
                if isinstance(tensor, torch.Tensor):
                    self.bytes += tensor.numel() * tensor.element_size()
        return out


def main(folder: str, out: str) -> None:
    dist.init_process_group("gloo")
    from transformers import AutoModelForCausalLM

    import logitlens
    from logitlens.model import capture

    hf = AutoModelForCausalLM.from_pretrained(folder, tp_plan="auto")
    model = logitlens.load(hf)
    shard = model.tail.head.shard
    with Traffic() as forward:
        (residuals,) = capture.capture(model, [IDS])
    with Traffic() as readout:
        reading = model.readout(residuals, top=4, track=[301, 320, 7])
    with Traffic() as gathered:
        model.tail.logits(torch.cat(residuals.h))
    result = {
        "fields": {name: getattr(reading, name).tolist() for name in FIELDS},
        "local": shard.head.vocab if shard else None,
        "offset": shard.offset if shard else None,
        "kernel": reading.meta["kernel"],
        "check": reading.meta["check"],
        "batch": [r.top_ids.tolist() for r in model.read_batch([IDS, IDS[:3]], top=2)],
        "bytes": {"forward": forward.bytes, "readout": readout.bytes, "gathered": gathered.bytes},
        "attn": model.read(IDS, stream="attn", top=2).top_logprobs.tolist(),
        "description": model.tail.description,
    }
    with open(f"{out}.{dist.get_rank()}", "w") as file:
        json.dump(result, file)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
