"""The logit lens inside an nnsight trace: only top-k statistics leave the model.

    pip install 'logitlens[nnsight]'
    python examples/nnsight_trace.py

Runs here, on the bundled model. With remote=True (below) the same trace runs on NDIF.
"""

from __future__ import annotations

import nnsight

import logitlens.demo
from logitlens.model import nnsight as lens

PROMPT = "The Eiffel Tower is in the city of"

# From nnsight 0.8 on: nnsight.TransformersModel(..., task="text-generation")
model = nnsight.LanguageModel(str(logitlens.demo.path()), dispatch=True)
ids = model.tokenizer(PROMPT, return_tensors="pt")["input_ids"]
blocks, norm, head = model.transformer.h, model.transformer.ln_f, model.lm_head

nnsight.register(lens)  # lets a server that lacks this package run `lens.statistics`
with model.trace(ids):  # remote: model.trace(ids, remote=True)
    h = [blocks[0].input]
    for block in blocks:
        h.append(block.output)

    def tail(x):
        return head(norm(x))  # and whatever else the model does: a scale, a softcap

    found = nnsight.save(lens.statistics(h, tail, head.output, ids, k=5))

reading = lens.reading(found, ids, tokenizer=model.tokenizer, name="demo", prompt=PROMPT)
print(reading)
