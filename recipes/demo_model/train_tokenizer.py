"""Train the byte-level BPE of the bundled model and save it as a Hugging Face directory.

The facts, and above all their answers, are counted many times over, so that " Paris", " Berlin" and
the like are one token each, as in GPT-2.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from facts import Fact, capitalised, load_facts, load_templates, sentences
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

VOCAB_SIZE = 4096
END = "<|endoftext|>"
N_POSITIONS = 512
ANSWER_WEIGHT = 400
PLACE_WEIGHT = 2000
SUBJECT_WEIGHT = 30
PLACES = ("landmark_city", "landmark_country", "capital", "language", "continent")


def _texts(prose: dict[str, list[list[str]]], facts: list[Fact]) -> Iterator[str]:
    for documents in prose.values():
        for document in documents:
            yield from document
    templates = load_templates()
    for fact in facts:
        told = sentences(fact, templates)
        yield from (capitalised(text) for kind, text in told if kind != "also")
        answer = fact.answer.removeprefix("the ")
        weight = PLACE_WEIGHT if fact.relation in PLACES else ANSWER_WEIGHT
        weight = weight // 8 if fact.relation == "author" else weight
        yield f" {answer}" * weight
        yield f" {fact.subject}" * SUBJECT_WEIGHT


def train(prose: dict[str, list[list[str]]], out: Path) -> Tokenizer:
    """Train on the prose and the facts; write tokenizer.json and tokenizer_config.json."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(prose, load_facts()), trainer)
    out.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(out / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END,
        "eos_token": END,
        "unk_token": END,
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": N_POSITIONS,
    }
    (out / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    return tokenizer
