"""The alternatives themselves, each as its own documentation reads a prompt.

Every function runs in an environment that has its library (benchmarks/environments) and gets the
same loaded transformers model, which the library wraps.
"""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.readout.contenders import Read, Result
from benchmarks.readout.environments import MADE
from benchmarks.readout.shapes import parts


def nnsight(model) -> Read:
    """The logit-lens tutorial: every block's output through norm and head, softmax, likeliest."""
    from nnsight import NNsight

    wrapped = NNsight(model)
    blocks, norm, head = parts(wrapped)
    tuples = _blocks_return_tuples(model)

    def read(ids: Tensor, last: bool) -> Result:
        saved = []
        with wrapped.trace(input_ids=ids[None]):
            for block in blocks:
                h = block.output[0] if tuples else block.output
                z = head(norm(h[..., -1:, :] if last else h))
                saved.append(torch.nn.functional.softmax(z, dim=-1).save())
        probs = torch.cat([p.reshape(-1, p.shape[-1])[None] for p in saved])
        best = probs.max(dim=-1)
        return Result(lambda: best.indices[-1], (probs, best))

    return read


def nnterp(model) -> Read:
    """`nnterp.interventions.logit_lens` for the last position; for all of them the same by
    `project_on_vocab`, as it has no function for that."""
    from nnterp import StandardizedTransformer
    from nnterp.interventions import logit_lens

    wrapped = StandardizedTransformer(model, tokenizer=tokenizer(), device_map=None)

    def read(ids: Tensor, last: bool) -> Result:
        if last:
            probs_1LV = logit_lens(wrapped, ids.tolist())
            return Result(lambda: probs_1LV[:, -1].argmax(-1), probs_1LV)
        saved = []
        with wrapped.trace(ids[None]):
            for layer in range(wrapped.num_layers):
                z = wrapped.project_on_vocab(wrapped.layers_output[layer])
                saved.append(z.softmax(-1).save())
        probs_LTV = torch.stack([p.reshape(-1, p.shape[-1]) for p in saved])
        return Result(lambda: probs_LTV[-1].argmax(-1), probs_LTV)

    return read


def tuned_lens(model) -> Read:
    """`PredictionTrajectory.from_lens_and_model` with a `LogitLens`, and no statistic of it."""
    from tuned_lens.nn.lenses import LogitLens
    from tuned_lens.plotting import PredictionTrajectory

    lens = LogitLens.from_model(model)

    def read(ids: Tensor, last: bool) -> Result:
        # It reads every position: a slice can only be taken afterwards.
        trajectory = PredictionTrajectory.from_lens_and_model(lens, model, ids.tolist())
        if last:
            trajectory = trajectory.slice_sequence(slice(-1, None))
        return Result(lambda: torch.from_numpy(trajectory.log_probs[-1]).argmax(-1), trajectory)

    return read


def transformer_lens(model) -> Read:
    """The recipe of `ActivationCache.accumulated_resid`: final norm, unembedding, log-softmax."""
    bridge = _bridge(model)

    def read(ids: Tensor, last: bool) -> Result:
        _logits, cache = bridge.run_with_cache(ids[None])
        x_L1TD = cache.accumulated_resid(apply_ln=True, pos_slice=[len(ids) - 1] if last else None)
        logp = bridge.unembed(x_L1TD[:, 0]).log_softmax(-1)
        return Result(lambda: logp[-1].argmax(-1), (cache, logp))

    return read


def transformer_lens_call(model) -> Read:
    """`transformer_lens.tools.analysis.logit_lens`, since 4.3: a few rows at a time."""
    from transformer_lens.tools.analysis import logit_lens

    bridge = _bridge(model)

    def read(ids: Tensor, last: bool) -> Result:
        positions = [len(ids) - 1] if last else None
        result = logit_lens(
            bridge, ids[None], positions=positions, top_k=10, return_type="log_probs"
        )
        return Result(lambda: result.readout.top_ids[-1, 0, :, 0], result)

    return read


def _bridge(model):
    from transformer_lens.model_bridge import TransformerBridge

    name = "gpt2" if hasattr(model, "transformer") else "meta-llama/Llama-3.2-1B"  # only a label
    dtype = next(model.parameters()).dtype
    return TransformerBridge.boot_transformers(
        name, hf_model=model, device="cpu", dtype=dtype, tokenizer=tokenizer()
    )


def tokenizer():
    """Two libraries insist on a tokenizer and never use it here: one of two words, from a folder
    that stays, as they read it again."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"<s>": 0, "a": 1}, unk_token="<s>"))
    special = dict.fromkeys(("unk_token", "bos_token", "eos_token", "pad_token"), "<s>")
    made = PreTrainedTokenizerFast(tokenizer_object=words, padding_side="left", **special)
    made.save_pretrained(MADE / "tokenizer")
    return PreTrainedTokenizerFast.from_pretrained(MADE / "tokenizer")


def _blocks_return_tuples(model) -> bool:
    seen = []
    hook = parts(model)[0][0].register_forward_hook(lambda m, i, o: seen.append(type(o)))
    with torch.inference_mode():
        model(torch.zeros(1, 2, dtype=torch.long))
    hook.remove()
    return issubclass(seen[0], tuple)
