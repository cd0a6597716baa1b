"""Token ids → pieces: bytes, not decoded strings, decide (FIELD trap E)."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import AutoTokenizer, GPT2TokenizerFast, PreTrainedTokenizerFast

import logitlens
from logitlens import PromptError, Reading
from logitlens.model.tokens import Vocabulary
from tests.architectures.build import build
from tests.architectures.laws import plain_logprobs


@pytest.mark.parametrize("number", [np.int32, np.int64, np.uint16])
def test_numpys_integers_are_ids(byte_level, number):
    vocabulary = Vocabulary(byte_level)
    ids = [3, 4, 5]
    assert vocabulary.pieces(np.array(ids, dtype=number)) == vocabulary.pieces(ids)
    assert vocabulary.piece(number(3)) == vocabulary.piece(3)


@pytest.fixture(scope="module")
def byte_level() -> PreTrainedTokenizerFast:
    """A byte-level BPE that knows Paris, and the euro sign only as bytes."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|endoftext|>"],
    )
    tokenizer.train_from_iterator(["in Paris in Paris the city of Paris"] * 50, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|endoftext|>", bos_token="<|endoftext|>"
    )


@pytest.fixture(scope="module")
def sentencepiece() -> PreTrainedTokenizerFast:
    """A byte-fallback BPE in SentencePiece's manner."""
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2}
    vocab |= {f"<0x{b:02X}>": 3 + b for b in range(256)}
    vocab |= {piece: 259 + i for i, piece in enumerate(["▁", "P", "a", "▁P", "▁Pa", "Pa"])}
    merges = [("▁", "P"), ("▁P", "a"), ("P", "a")]
    tokenizer = Tokenizer(
        models.BPE(vocab=vocab, merges=merges, byte_fallback=True, unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def test_byte_fragments_are_shown_by_their_bytes(byte_level):
    vocabulary = Vocabulary(byte_level)
    ids = vocabulary.encode("€")
    assert len(ids) == 3
    alone = [vocabulary.piece(i) for i in ids]
    assert alone == ["⟨E2⟩", "⟨82⟩", "⟨AC⟩"]
    assert vocabulary.fragments(ids) == dict(zip(ids, ["e2", "82", "ac"]))


def test_a_split_glyph_is_whole_and_marked_at_each_of_its_positions(byte_level):
    vocabulary = Vocabulary(byte_level)
    ids = vocabulary.encode(" Paris €é")
    pieces = vocabulary.pieces(ids)
    assert pieces[0] == " Paris"
    assert [p for p in pieces if "⟨" in p] == ["€⟨1/3⟩", "€⟨2/3⟩", "€⟨3/3⟩", "é⟨1/2⟩", "é⟨2/2⟩"]


def test_a_fragment_that_never_completes_stays_bytes(byte_level):
    vocabulary = Vocabulary(byte_level)
    first = vocabulary.encode("€")[0]
    paris = vocabulary.encode(" Paris")[0]
    assert vocabulary.pieces([first, paris, first]) == ["⟨E2⟩", " Paris", "⟨E2⟩"]


def test_sentencepiece_spaces_and_bytes(sentencepiece):
    vocabulary = Vocabulary(sentencepiece)
    assert vocabulary.piece(263) == " Pa"
    assert vocabulary.piece(264) == "Pa"
    assert vocabulary.piece(3 + 0xE2) == "⟨E2⟩"
    assert vocabulary.piece(3 + 0x0A) == "\n"
    assert vocabulary.piece(1) == "<s>"
    assert vocabulary.is_special(1)


def test_ids_that_decode_to_one_string_are_read_and_followed_apart(sentencepiece, tmp_path):
    """A byte token and the letter it stands for: the same text, two tokens, two probabilities."""
    byte, letter = 3 + ord("P"), 260
    assert sentencepiece.decode([byte]) == sentencepiece.decode([letter]) == "P"
    hf = build("LlamaForCausalLM", vocab_size=265)
    model = logitlens.load(hf, tokenizer=sentencepiece)
    reading = model.read("Pa P", track=[byte, letter], top=265)
    assert reading.track == ["P", "P"]
    truth = plain_logprobs(hf, reading.ids.tolist()).float()
    for token in (byte, letter):
        np.testing.assert_allclose(np.log(reading.prob(token)[-1]), truth[:, token], atol=1e-4)
        assert (reading.rank(token)[-1] == 1 + (truth > truth[:, [token]]).sum(-1).numpy()).all()
    assert (reading.prob(byte) != reading.prob(letter)).all()
    with pytest.raises(
        PromptError, match=rf"'P' is the text of several tokens.*\[{byte}, {letter}\]"
    ):
        reading.prob("P")
    assert model.read("Pa P", track="P").track_ids.tolist() == [letter]
    for suffix in ("json", "parquet", "html"):
        again = Reading.load(reading.save(tmp_path / f"a.{suffix}"))
        np.testing.assert_allclose(again.track_logprobs, reading.track_logprobs, atol=0.02)
        assert again.track_ids.tolist() == [byte, letter]


def test_ids_beyond_the_tokenizer_are_numbers(byte_level):
    assert Vocabulary(byte_level).piece(10_000) == "⟨10000⟩"
    assert Vocabulary(None).pieces([5, 7]) == ["⟨5⟩", "⟨7⟩"]


def test_every_piece_is_valid_unicode_and_agrees_with_the_decoder(byte_level):
    vocabulary = Vocabulary(byte_level)
    for token in range(len(byte_level)):
        vocabulary.piece(token).encode("utf-8")
        decoded = byte_level.decode([token])
        if "�" not in decoded:
            assert vocabulary.piece(token) == decoded


@pytest.mark.parametrize(
    ("name", "cls"), [("gpt2-tokenizer", GPT2TokenizerFast), ("stories260k", AutoTokenizer)]
)
def test_real_tokenizers_round_trip_bytes(shared_data, name, cls):
    tokenizer = cls.from_pretrained(shared_data / name)
    vocabulary = Vocabulary(tokenizer)
    text = "The Eiffel Tower — 50 € in Zürich, 東京 👩‍👩‍👧.\n\tNaïve."
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    joined = b"".join(vocabulary.raw(i) or b"" for i in ids).decode("utf-8")
    assert joined.lstrip(" ") == text
    assert not any("�" in piece for piece in vocabulary.pieces(ids))


def test_track_says_how_a_word_is_split(byte_level):
    vocabulary = Vocabulary(byte_level)
    assert vocabulary.single(" Paris", 300) == vocabulary.encode(" Paris")[0]
    with pytest.raises(
        PromptError, match=r"'Paris' is 2 tokens \('Pa' 'ris'\). Did you mean ' Paris' \(one"
    ):
        vocabulary.single("Paris", 300)
    with pytest.raises(PromptError, match=r"'Eiffel' is 6 tokens .*Give one of its parts"):
        vocabulary.single("Eiffel", 300)
    with pytest.raises(PromptError, match="outside the vocabulary"):
        vocabulary.single(300, 300)
    with pytest.raises(PromptError, match="without a tokenizer"):
        Vocabulary(None).single(" Paris", 300)


def test_every_token_with_a_text_of_its_own_is_tracked_by_that_text(byte_level, sentencepiece):
    for tokenizer in (byte_level, sentencepiece):
        vocabulary, size = Vocabulary(tokenizer), len(tokenizer)
        texts = {i: vocabulary.piece(i) for i in range(size) if i not in vocabulary.fragments([i])}
        for text in texts.values():
            assert texts[vocabulary.single(text, size)] == text


def test_exact_text_wins_over_the_space_that_sentencepiece_adds(sentencepiece):
    vocabulary = Vocabulary(sentencepiece)
    assert sentencepiece("Pa", add_special_tokens=False)["input_ids"] == [263]  # "▁Pa"
    assert vocabulary.single("Pa", 265) == 264
    assert vocabulary.single(" Pa", 265) == 263


def test_a_token_that_differs_from_what_was_asked_for_is_named():
    vocab = {"<unk>": 0, "[CLS]": 1, "▁Lily": 2, "▁": 3, "L": 4, "london": 5}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    spaced = Vocabulary(PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>"))
    with pytest.raises(PromptError, match=r"'Lily' is not a token.* mean ' Lily' \(one token\)"):
        spaced.single("Lily", 6)
    assert spaced.single(" Lily", 6) == 2
    with pytest.raises(PromptError, match=r"'London' is not in the vocabulary.* as '<unk>'"):
        spaced.single("London", 6)
    assert spaced.single("<unk>", 6) == 0
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    uncased = Vocabulary(PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>"))
    with pytest.raises(PromptError, match=r"'London' is not a token.* mean 'london' \(one token\)"):
        uncased.single("London", 6)


@pytest.mark.parametrize("token", [3, np.int64(3), np.uint8(3), np.array(3), torch.tensor(3)])
def test_whole_numbers_of_any_library_are_token_ids(byte_level, token):
    assert Vocabulary(byte_level).single(token, 300) == 3


@pytest.mark.parametrize(
    "token",
    [3.0, 3.7, np.float32(3), torch.tensor(3.0), None, True, np.bool_(True), torch.tensor(True),
     [3], b"a", ("a",)],
)  # fmt: skip
def test_what_is_no_token_cannot_be_tracked(byte_level, token):
    with pytest.raises(PromptError, match="cannot track .*expected a token's text, or its id"):
        Vocabulary(byte_level).single(token, 300)


@pytest.mark.parametrize("appends", [False, True])
def test_text_of_a_chat_template_gets_no_second_first_token(sentencepiece, appends):
    tokenizer = copy.deepcopy(sentencepiece)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>" if appends else "<s> $A", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    tokenizer.chat_template = (
        "{{ bos_token }}{% for m in messages %}{{ m['content'] }}{{ eos_token }}{% endfor %}"
    )
    messages = [{"role": "user", "content": "Pa"}, {"role": "assistant", "content": "Pa Pa"}]
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    its_own = tokenizer.apply_chat_template(messages, return_dict=False)
    assert tokenizer(text)["input_ids"][:2] == [1, 1], "what the tokenizer does by itself"
    assert Vocabulary(tokenizer).encode(text) == its_own
    plain = tokenizer("Pa Pa")["input_ids"]
    assert plain[0] == 1
    assert Vocabulary(tokenizer).encode("Pa Pa") == plain


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "prompt is empty"),
        ("<|endoftext|>", "special tokens only"),
        ("<|endoftext|>" * 3, "only"),
    ],
)
def test_prompts_without_content_are_refused(byte_level, text, says):
    with pytest.raises(PromptError, match=says):
        Vocabulary(byte_level).encode(text)


class PanicException(BaseException):
    """What a panic of the tokenizers library is in Python: no Exception."""


@pytest.mark.parametrize("error", [PanicException("index\nout of bounds"), TypeError("index out")])
def test_what_a_tokenizer_raises_is_one_line(byte_level, error, monkeypatch):
    tokenizer = copy.deepcopy(byte_level)
    vocabulary = Vocabulary(tokenizer)

    def fail(self, *args, **options):
        raise error

    monkeypatch.setattr(type(tokenizer), "__call__", fail)
    with pytest.raises(
        PromptError, match=f"raises {type(error).__name__} on 'some text': index out"
    ):
        vocabulary.encode("some text")


def test_an_interrupt_in_a_tokenizer_is_an_interrupt(byte_level, monkeypatch):
    def interrupt(self, *args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(type(byte_level), "__call__", interrupt)
    with pytest.raises(KeyboardInterrupt):
        Vocabulary(byte_level).encode("some text")
