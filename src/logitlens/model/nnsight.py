"""Read a model inside an nnsight trace: statistics are made where it runs, so only top k leaves it.

    from logitlens.model import nnsight as lens

    with model.trace(ids):                                  # remote=True: on NDIF
        h = [model.transformer.h[0].input]
        for block in model.transformer.h:
            h.append(block.output)
        tail = lambda x: model.lm_head(model.transformer.ln_f(x))
        found = lens.statistics(h, tail, model.lm_head.output, ids, k=5).save()
    reading = lens.reading(found, ids, tokenizer=model.tokenizer, name="gpt2")

`statistics` uses torch alone, so that `nnsight.register(lens)` can send it to a server that does not
have this package. The tail is the caller's, and it is checked: the last row is compared with the
model's own logits there, and `reading` refuses a difference.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from logitlens.anatomy.check import Check


def statistics(
    h: Sequence[Any],
    tail: Callable[[Tensor], Tensor],
    logits_1TV: Tensor,
    ids: Any,
    *,
    k: int = 10,
    track: Sequence[int] = (),
) -> dict[str, Any]:
    """Residuals of one prompt, from the embedding to the last block → a Reading's numbers, as tensors.

    h            values in a trace: what the first block receives, then what each block returns,
                 (1, T, D) or a tuple that begins with it
    tail         (1, T, D) → (1, T, V): final norm, head and whatever the model does to its logits
    logits_1TV   the model's own logits
    ids          the prompt's T token ids; track: ids to follow in every cell

    One layer's logits are held at a time, beside the final ones. Natural logarithms, nats.
    """
    with torch.no_grad():
        states = [x[0] if isinstance(x, (tuple, list)) else x for x in h]
        T = states[-1].shape[1]
        own_TV = logits_1TV[0].float().log_softmax(-1)
        ids_T = torch.as_tensor(ids, device=own_TV.device).flatten()[-T:]
        targets_TM = torch.cat([ids_T[1:], ids_T[:1]])[:, None]
        followed_M = torch.tensor(list(track), dtype=torch.long, device=own_TV.device)
        targets_TM = torch.cat([targets_TM, followed_M.expand(T, -1)], 1)
        kept: dict[str, list[Tensor]] = {}
        last_1TV = tail(states[-1])
        final_TV = last_1TV[0].float().log_softmax(-1)
        p_TV = final_TV.exp()
        for depth, h_1TD in enumerate(states):
            last = depth == len(states) - 1
            logp_TV = final_TV if last else tail(h_1TD)[0].float().log_softmax(-1)
            ids_TK = logp_TV.topk(k, dim=-1).indices.sort(-1).values  # ties: the lower id first
            values_TK, order_TK = logp_TV.gather(-1, ids_TK).sort(
                stable=True, dim=-1, descending=True
            )
            ids_TK = ids_TK.gather(-1, order_TK)
            own_TM = logp_TV.gather(-1, targets_TM.to(logp_TV.device))
            kl_T = torch.where(p_TV > 0, p_TV * (final_TV - logp_TV), 0).sum(-1)
            above = [(logp_TV > own_TM[:, m, None]).sum(-1) for m in range(own_TM.shape[1])]
            row = {
                "top_ids": ids_TK,
                "top_logprobs": values_TK,
                "entropy": -torch.where(logp_TV > -1e30, logp_TV.exp() * logp_TV, 0).sum(-1),
                "kl": torch.zeros_like(kl_T) if last else kl_T.clamp(min=0),
                "target_logprobs": own_TM,
                "target_ranks": 1 + torch.stack(above, -1),
            }
            for name, value in row.items():
                kept.setdefault(name, []).append(value.cpu())
        out: dict[str, Any] = {name: torch.stack(rows) for name, rows in kept.items()}
        out |= compared(logits_1TV[0], last_1TV[0], states[-1])
        out["dtype"] = str(states[-1].dtype).replace("torch.", "")
        out["track"] = [int(i) for i in track]
    return out


def compared(own_TV: Tensor, ours_TV: Tensor, h_1TD: Tensor) -> dict[str, float]:
    """The model's own logits against those of the tail given: what `anatomy.check.compare` measures
    of a head that is only called.

    Both are made by the same modules from the same rows, so that they differ by two orders of
    summation in float32, and in half precision by a rounding the other way after each.
    """
    unit = max(torch.finfo(t.dtype).eps / 2 for t in (own_TV, ours_TV, h_1TD))
    unit, unit32, D = (unit if unit > 1e-5 else 0.0), 2.0**-24, h_1TD.shape[-1]
    own_TV, ours_TV = own_TV.float(), ours_TV.float().to(own_TV.device)
    forbidden_TV = (own_TV < -1e30) & (ours_TV < -1e30)
    size_TV = own_TV.abs().masked_fill(forbidden_TV, 0)
    rms_T1 = size_TV.square().mean(-1, keepdim=True).sqrt()
    bound_TV = (4 * unit + 8 * unit32) * size_TV + unit * rms_T1
    bound_TV += 2 * min(D, 8 * D**0.5) * unit32 * (D**0.5 * rms_T1 + size_TV)
    off_TV = ((own_TV - ours_TV).abs() / bound_TV).masked_fill(own_TV == ours_TV, 0)
    apart_TV = (own_TV.log_softmax(-1) - ours_TV.log_softmax(-1)).abs()
    return {
        "worst": float(off_TV.masked_fill(forbidden_TV, 0).max()),
        "max_abs_diff": float(apart_TV.masked_fill(forbidden_TV, 0).max()),
        "tolerance": 2 * float(bound_TV.max()),
    }


def reading(
    found: dict[str, Any],
    ids: Any,
    *,
    tokenizer: Any = None,
    name: str = "traced model",
    prompt: str | None = None,
) -> Any:
    """What `statistics` saved → a Reading with every view.

    Raises UnsupportedModel where the last row was not the model's own output.
    """
    from logitlens.model.tokens import Vocabulary
    from logitlens.reading import Reading
    from logitlens.select import layer_label

    ids_T = torch.as_tensor(ids).flatten().cpu()
    check = _check(found, len(ids_T), name)
    vocabulary = Vocabulary(tokenizer)
    next_T = torch.cat([ids_T[1:], ids_T.new_tensor([-1])])
    logprobs_LTM, ranks_LTM = found["target_logprobs"].clone(), found["target_ranks"].clone()
    logprobs_LTM[:, -1, 0], ranks_LTM[:, -1, 0] = float("nan"), 0
    occurring = {*ids_T.tolist(), *found["track"], *found["top_ids"].unique().tolist()}
    return Reading(
        ids=ids_T.numpy(),
        pieces=vocabulary.pieces(ids_T.tolist()),
        layers=[layer_label(depth) for depth in range(len(found["top_ids"]))],
        top_ids=found["top_ids"].numpy(),
        top_logprobs=found["top_logprobs"].numpy(),
        entropy=found["entropy"].numpy(),
        kl=found["kl"].numpy(),
        next_ids=next_T.numpy(),
        next_logprobs=logprobs_LTM[:, :, 0].numpy(),
        next_ranks=ranks_LTM[:, :, 0].numpy(),
        track_ids=torch.tensor(found["track"], dtype=torch.int32, device="cpu").numpy(),
        track_logprobs=logprobs_LTM[:, :, 1:].numpy(),
        track_ranks=ranks_LTM[:, :, 1:].numpy(),
        vocab={i: vocabulary.piece(i) for i in sorted(occurring)},
        meta={
            **_provenance(found, len(ids_T), name, prompt),
            "check": check.to_meta(),
            "vocab_bytes": {str(i): b for i, b in vocabulary.fragments(occurring).items()},
            "special_ids": sorted(i for i in occurring if vocabulary.is_special(i)),
        },
    )


def _check(found: dict[str, Any], positions: int, name: str) -> Check:
    """The Check of a traced last row. Raises UnsupportedModel where it is not the model's own."""
    from logitlens.anatomy.check import Check
    from logitlens.errors import UnsupportedModel

    # No logit is off by more than its bound: the likeliest token agrees, or ties.
    check = Check(
        max_abs_diff=found["max_abs_diff"],
        tolerance=found["tolerance"],
        positions=positions,
        top1_agree=True,
        dtype=found["dtype"],
        method="trace",
        worst=found["worst"],
    )
    if not check.ok:
        raise UnsupportedModel(
            f"{name}: the last row is not the model's own output: {check.line()}; the tail given "
            "lacks a norm, a scale or a softcap"
        )
    return check


def _provenance(found: dict[str, Any], T: int, name: str, prompt: str | None) -> dict[str, Any]:
    import logitlens

    return {
        "prompt": prompt,
        "prompt_tokens": T,
        "positions": list(range(T)),
        "model": name,
        "n_blocks": len(found["top_ids"]) - 1,
        "lens": {"name": "logit"},
        "stream": "resid",
        "dtype": found["dtype"],
        "kernel": "nnsight trace",
        "versions": {"logitlens": logitlens.__version__, "torch": torch.__version__},
    }
