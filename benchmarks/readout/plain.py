"""Plain transformers: residuals by hooks, the model's norm and head, and what people do next.

Also the arithmetic of libraries, of our own writing: see `contenders.STAND_INS`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from benchmarks.readout.contenders import Read, Result
from benchmarks.readout.shapes import parts

Reduce = Callable[[Tensor, torch.nn.Module, Tensor], tuple[Callable[[], Tensor], object]]


def naive(model) -> Read:
    """All layers' logits at once, log-probabilities, top 10."""

    def reduce(x_LTD, head, _ids):
        top = head(x_LTD).float().log_softmax(-1).topk(10, -1)
        return lambda: top.indices[-1, :, 0], top

    return _with_residuals(model, reduce)


def naive_all(model) -> Read:
    """All layers' logits at once, every statistic."""

    def reduce(x_LTD, head, ids):
        top, *rest = statistics(head(x_LTD).float(), ids)
        return lambda: top.indices[-1, :, 0], (top, rest)

    return _with_residuals(model, reduce)


def layer_by_layer(model) -> Read:
    """One layer's logits at a time, top 10 kept."""

    def reduce(x_LTD, head, _ids):
        kept = [head(x).float().log_softmax(-1).topk(10, -1) for x in x_LTD]
        return lambda: kept[-1].indices[:, 0], kept

    return _with_residuals(model, reduce)


def layer_by_layer_all(model) -> Read:
    """One layer's logits at a time beside the last one's, every statistic kept."""

    def reduce(x_LTD, head, ids):
        final = head(x_LTD[-1:]).float()
        kept = [statistics(torch.cat([head(x[None]).float(), final]), ids) for x in x_LTD]
        return lambda: kept[-1][0].indices[-1, :, 0], kept

    return _with_residuals(model, reduce)


def logitlenskit(model) -> Read:
    """logitlenskit's `collect_logit_lens`: per layer softmax, top k and entropy, probabilities of
    all layers held; then, per position, those of every token in any layer's top k."""

    def reduce(x_LTD, head, _ids):
        probs, top, entropy = [], [], []
        for x_TD in x_LTD[1:]:  # it reads block outputs, not the embedding
            p = head(x_TD).softmax(-1)
            probs.append(p)
            top.append(p.topk(10, -1).indices)
            entropy.append(-(p * (p + 1e-10).log()).sum(-1))
        paths = []
        for t in range(x_LTD.shape[1]):
            seen = torch.cat([ids[t] for ids in top]).unique()
            paths.append((seen, torch.stack([p[t, seen] for p in probs])))
        return lambda: top[-1][:, 0], (torch.stack(top), torch.stack(entropy), paths)

    return _with_residuals(model, reduce)


def softmax(model) -> Read:
    """nnsight's tutorial and nnterp: the probabilities of every layer held."""

    def reduce(x_LTD, head, _ids):
        probs = torch.stack([head(x).softmax(-1) for x in x_LTD[1:]])
        return lambda: probs[-1].argmax(-1), probs

    return _with_residuals(model, reduce)


def tuned_lens(model) -> Read:
    """tuned-lens' trajectory: float32 log-probabilities of all layers held in one array."""

    def reduce(x_LTD, head, _ids):
        logp = np.array([head(x).float().log_softmax(-1).numpy() for x in x_LTD])
        return lambda: torch.from_numpy(logp[-1]).argmax(-1), logp

    return _with_residuals(model, reduce)


def transformer_lens(model) -> Read:
    """TransformerLens' recipe: all residuals stacked, normed, unembedded, log-softmax, held."""

    def reduce(x_LTD, head, _ids):
        logp = head(x_LTD).log_softmax(-1)
        return lambda: logp[-1].argmax(-1), logp

    return _with_residuals(model, reduce)


def _with_residuals(model, reduce: Reduce) -> Read:
    blocks, norm, head = parts(model)

    def read(ids: Tensor, last: bool) -> Result:
        kept = []
        hooks = [
            block.register_forward_hook(lambda m, i, o: kept.append(_rows(o))) for block in blocks
        ]
        hooks.append(blocks[0].register_forward_pre_hook(lambda m, i: kept.append(i[0])))
        try:
            model(ids[None], use_cache=False)
        finally:
            for hook in hooks:
                hook.remove()
        h_LTD = torch.stack([h[0, -1:] if last else h[0] for h in kept])
        return Result(*reduce(norm(h_LTD), head, ids[-1:] if last else ids))

    return read


def statistics(z_LTV: Tensor, ids: Tensor):
    logp = z_LTV.log_softmax(-1)
    p = logp.exp()
    entropy = -(p * logp).sum(-1)
    kl = (p[-1] * (logp[-1] - logp)).sum(-1)
    return logp.topk(10, -1), entropy, kl, _ranks(logp, ids)


def _ranks(logp_LTV: Tensor, ids: Tensor) -> Tensor:
    following = torch.cat([ids[1:], ids[:1]])
    own = logp_LTV.gather(-1, following[None, :, None].expand(len(logp_LTV), -1, 1))
    return 1 + (logp_LTV > own).sum(-1)


def _rows(output) -> Tensor:
    return output[0] if isinstance(output, tuple) else output
