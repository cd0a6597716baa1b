"""Write the figures of ``evaluation.json`` into the model card, between its markers."""

from __future__ import annotations

import json
from pathlib import Path

HERE = Path(__file__).resolve().parent
CARD = HERE.parents[1] / "src" / "logitlens" / "demo" / "README.md"
BEGIN, END = "<!-- figures: written by recipes/demo_model/card.py -->", "<!-- end of figures -->"


def _layer_table(figures: dict) -> list[str]:
    tops = figures["eiffel"]["top_by_depth"]
    shares = figures["held_out_file"]["top1_by_depth"]
    labels = ["embed", *map(str, range(len(tops) - 1))]
    lines = [
        "| layer | Eiffel prompt: top token | probability | facts right here |",
        "| --- | --- | --- | --- |",
    ]
    for label, (word, prob), share in zip(labels, tops, shares, strict=True):
        shown = word.replace("\n", "⏎").replace("|", "\\|")
        lines.append(f"| {label} | `{shown}` | {prob:.3f} | {share:.1%} |")
    return lines


def _table(figures: dict, name: str) -> list[str]:
    lines = [f"| {name} | prompts | first token | whole answer |", "| --- | --- | --- | --- |"]
    groups = figures["held_out_facts"][f"by_{name}"]
    for key, row in sorted(groups.items()):
        lines.append(f"| {key} | {row['n']:,} | {row['top1']:.1%} | {row['whole']:.1%} |")
    return lines


def figures_section(figures: dict) -> str:
    """The markdown between the markers, for the figures of one evaluation."""
    model, facts = figures["model"], figures["held_out_facts"]
    overall, prose = facts["overall"], figures["held_out_prose"]
    training = figures["training"]
    lines = [
        f"- {model['parameters']:,} parameters: {model['layers']} layers, width {model['width']}, "
        f"{model['heads']} heads, {model['positions']} positions, {model['vocabulary']:,} tokens; "
        f"{model['weights_bytes'] / 1e6:.1f} MB of float16.",
        f"- Trained on {training['tokens'] / 1e6:.1f}M tokens, "
        f"{training['fact_share_of_tokens']:.0%} of them facts, in {training['minutes']:.0f} "
        "minutes on two CPU cores shared with other work.",
        f"- Held-out wordings of the facts: the first token of the answer is the top token for "
        f"**{overall['top1']:.1%} of {overall['n']:,}** prompts, the whole answer for "
        f"{overall['whole']:.1%}.",
        f"- Held-out prose: perplexity {prose['all']['perplexity']:.1f} per token "
        f"({prose['all']['bits_per_byte']:.2f} bits per byte) over {prose['all']['tokens']:,} "
        f"tokens; novels {prose['book']['perplexity']:.1f}, factbook "
        f"{prose['factbook']['perplexity']:.1f}, speeches {prose['speech']['perplexity']:.1f}.",
        "",
        f"After `{figures['eiffel']['prompt']}` ({figures['eiffel']['prompt_tokens']} tokens), and "
        f"over {figures['held_out_file']['n']:,} held-out prompts, one per fact, read after every "
        "layer through `ln_f` and `lm_head`:",
        "",
        *_layer_table(figures),
        "",
        *_table(figures, "wording"),
        "",
        *_table(figures, "relation"),
    ]
    return "\n".join(lines)


def write(figures: dict, card: Path = CARD) -> None:
    """Replace what is between the markers of the card."""
    text = card.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    card.write_text(f"{before}{BEGIN}\n{figures_section(figures)}\n{END}{after}", encoding="utf-8")


def main() -> None:
    write(json.loads((HERE / "evaluation.json").read_text(encoding="utf-8")))


if __name__ == "__main__":
    main()
