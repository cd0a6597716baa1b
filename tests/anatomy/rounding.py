"""Count what the check makes of right and wrong tails: classes × dtypes × scales × orders × threads.

python -m tests.anatomy.rounding [NAME …]     prints one line of JSON

A right tail is tried on all rows together and on some alone, with its sums in three orders; a model
whose logits are large is loaded again, and read. Run under other instruction sets by the tests.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections import defaultdict
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

import logitlens
from logitlens.errors import UnsupportedModel
from tests.anatomy.tails import at_scale, in_another_order, loaded, wrong
from tests.architectures.build import quiet

NAMES = [
    "ApertusForCausalLM", "BertLMHeadModel", "BioGptForCausalLM", "BloomForCausalLM",
    "CTRLLMHeadModel", "CodeGenForCausalLM", "Cohere2ForCausalLM", "CohereForCausalLM",
    "DeepseekV3ForCausalLM", "DeepseekV4ForCausalLM", "ElectraForCausalLM", "FalconForCausalLM",
    "FalconH1ForCausalLM", "GPT2LMHeadModel", "GPTJForCausalLM", "GPTNeoForCausalLM",
    "GPTNeoXForCausalLM", "Gemma2ForCausalLM", "Gemma3ForCausalLM", "Gemma3nForCausalLM",
    "GemmaForCausalLM", "Glm4ForCausalLM", "GptOssForCausalLM", "GraniteForCausalLM",
    "HyperCLOVAXForCausalLM", "InklingForCausalLM", "LlamaForCausalLM", "Mamba2ForCausalLM",
    "MambaForCausalLM", "MegatronBertForCausalLM", "MiniCPM3ForCausalLM", "MistralForCausalLM",
    "MixtralForCausalLM", "ModernBertDecoderForCausalLM", "MptForCausalLM", "NemotronForCausalLM",
    "OPTForCausalLM", "Olmo2ForCausalLM", "PersimmonForCausalLM", "Phi3ForCausalLM",
    "PhiForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM", "Qwen3MoeForCausalLM",
    "RecurrentGemmaForCausalLM", "RemBertForCausalLM", "RobertaForCausalLM", "RwkvForCausalLM",
    "SmolLM3ForCausalLM", "StableLmForCausalLM", "Starcoder2ForCausalLM", "TrOCRForCausalLM",
    "XGLMForCausalLM", "Zamba2ForCausalLM",
]  # fmt: skip
FEW = NAMES[1::6]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SCALES = [1.0, 3.0, 10.0, 30.0, 100.0, 300.0]
PROMPTS = [[5, 60, 7, 82, 9, 10, 11], [33, 34, 12], [40, 41, 42, 43, 44, 45]]


@dataclass
class Counts:
    """Checks of one kind of tail, those that passed, and the least or the largest `worst` of them."""

    tried: int = 0
    passed: int = 0
    extreme: float | None = None
    odd: list[str] = field(default_factory=list)

    def add(self, worst: float, where: str, *, right: bool) -> None:
        passed = worst <= 1
        self.tried, self.passed = self.tried + 1, self.passed + passed
        pick = max if right else min
        self.extreme = worst if self.extreme is None else pick(self.extreme, worst)
        if passed != right:
            self.odd.append(f"{where}: {worst:.3g}")


def count(names: list[str], scales: list[float], threads: tuple[int, ...]) -> dict[str, Any]:
    found: dict[str, Counts] = defaultdict(Counts)
    for name in names:
        for dtype in DTYPES:
            lens = loaded(name, dtype)
            kind = str(dtype).removeprefix("torch.")
            for scale in scales:
                seen, where = at_scale(lens, scale), f"{name} {kind} × {scale:g}"
                right = [seen.tail, *(in_another_order(seen.tail, seed) for seed in (0, 1))]
                for number in threads:
                    torch.set_num_threads(number)
                    for tail in right:
                        rows = [slice(None), *(slice(p, p + 1) for p in (0, 7, 15))]
                        for part in rows:
                            worst = seen.check(tail, part).worst
                            found[f"right, {kind}"].add(worst, where, right=True)
                for what, tail in wrong(seen):
                    found[f"{what}, {kind}"].add(seen.check(tail).worst, where, right=False)
            _loaded_and_read(lens.hf, found[f"loaded and read, {kind}"], f"{name} {kind}")
    return {what: asdict(counts) for what, counts in sorted(found.items())}


def _loaded_and_read(hf: Any, counts: Counts, where: str) -> None:
    try:
        with quiet():
            lens = logitlens.load(hf)
            readings = [lens.read(PROMPTS[0]), *lens.read_batch(PROMPTS)]
        worst = max(reading.meta["check"]["worst"] for reading in readings)
    except UnsupportedModel as refusal:
        worst, where = float("inf"), f"{where} ({refusal})"
    counts.add(worst, where, right=True)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    chosen = sys.argv[1:]
    print(json.dumps(count(chosen or NAMES, SCALES if not chosen else SCALES[::2], (1, 2))))
