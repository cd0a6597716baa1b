# %% [markdown]
# # The logit lens, by hand and in three lines
#
# This is the tutorial that logitlens began with: read the output of every layer of a GPT-2 through the
# model's own final norm and unembedding, and see which word it would say. First by hand with
# [nnsight](https://nnsight.net), as the original does (its `LanguageModel` is now called
# `TransformersModel`); then with logitlens; then the two are compared. It runs on the model that comes
# with logitlens, so nothing is downloaded.
#
# `pip install 'logitlens[plot,nnsight]' seaborn`

# %%
import nnsight
import torch
from nnsight import TransformersModel
from transformers import AutoModelForCausalLM, AutoTokenizer

import logitlens
import logitlens.demo

prompt = "The Eiffel Tower is in the city of"
path = logitlens.demo.path()

# %% [markdown]
# ## By hand
#
# The model is a GPT-2, so its parts have GPT-2's names: the blocks are `transformer.h`, the final
# norm `transformer.ln_f`, the unembedding `lm_head`.

# %%
gpt2 = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
tokenizer = AutoTokenizer.from_pretrained(path)
model = TransformersModel(gpt2, tokenizer=tokenizer, task="text-generation")

layers = model.transformer.h
probs_layers = []
with model.trace(prompt):
    for layer in layers:
        # A block's output is a tensor or a tuple, by the version of transformers.
        output = layer.output
        hidden = output[0] if isinstance(output, tuple) else output
        logits = model.lm_head(model.transformer.ln_f(hidden))
        probs_layers.append(torch.nn.functional.softmax(logits, dim=-1).save())

probs = torch.cat(list(probs_layers)).detach()
max_probs, tokens = probs.max(dim=-1)
words = [
    [tokenizer.decode(t).encode("unicode_escape").decode() for t in layer_tokens]
    for layer_tokens in tokens
]
input_words = [tokenizer.decode(t) for t in tokenizer(prompt)["input_ids"]]

# %% [markdown]
# The heatmap: layers down, tokens across, the top token in each cell, its probability as colour.

# %%
import matplotlib.pyplot as plt
import seaborn as sns

by_hand, axes = plt.subplots(figsize=(10, 6))
sns.heatmap(
    max_probs.numpy(),
    ax=axes,
    annot=words,
    fmt="",
    cmap=sns.diverging_palette(255, 0, as_cmap=True),
    linewidths=0.5,
    xticklabels=input_words,
    cbar_kws={"label": "Probability"},
)
axes.xaxis.tick_top()
axes.tick_params(axis="x", rotation=90)
axes.set_ylabel("Layers")
axes.set_xlabel("Input tokens")
plt.show()

# %% [markdown]
# ## With logitlens
#
# Three lines. The reading also holds the ranks, the entropy and the divergence from the final layer, and
# its last row has been checked against the model's own logits.

# %%
reading = logitlens.load().read(prompt)
print(reading)
reading.figure(cmap="seed")

# %% [markdown]
# ## The same
#
# The table made by hand starts with the output of block 0; a reading starts one row earlier, with what
# goes into block 0.

# %%
ours = reading.words[1:]
ours = [[word.encode("unicode_escape").decode() for word in row] for row in ours]
difference = abs(torch.tensor(reading.probs[1:, :, 0]) - max_probs).max().item()
assert reading.layers[1:] == [str(i) for i in range(len(layers))]
assert ours == words, "the words differ"
assert difference < 1e-5, f"the probabilities differ by {difference}"
print(f"{len(words)} layers × {len(input_words)} tokens: every word equal, ", end="")
print(f"largest difference in probability {difference:.1e} (nnsight {nnsight.__version__})")
