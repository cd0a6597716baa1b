"""Chats: messages through the tokenizer's own template, and one line for what is no chat."""

from __future__ import annotations

import numpy as np
import pytest

import logitlens
from logitlens import PromptError, Reading
from tests.model.test_chunks import equal
from tests.models import tiny_gpt2, tiny_tokenizer

# Shapes of templates: marks around every turn; a first token that the tokenizer would also put there;
# turns in brackets, the system message inside the first; and one that trims and refuses.
MARKED = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
BEGUN = "{{ bos_token }}" + MARKED
BRACKETS = (
    "{% for m in messages %}{% if m.role == 'user' %}[Q] {{ m.content }} [/Q]"
    "{% elif m.role == 'system' %}({{ m.content }}) {% else %} {{ m.content }}{% endif %}{% endfor %}"
)
STRICT = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('turns must alternate') }}{% endif %}{{ m.role }}: {{ m.content | trim }}; {% endfor %}"
)
SHAPES = {"marked": MARKED, "begun": BEGUN, "brackets": BRACKETS, "strict": STRICT}
ASK = [{"role": "user", "content": "The Eiffel Tower is in"}]


def loaded(template: str | None):
    tokenizer = tiny_tokenizer().__class__(
        tokenizer_object=tiny_tokenizer().backend_tokenizer,
        bos_token="<|endoftext|>", eos_token="<|endoftext|>",
    )  # fmt: skip
    tokenizer.chat_template = template
    return logitlens.load(tiny_gpt2(n_positions=256), tokenizer=tokenizer)


@pytest.mark.parametrize("shape", SHAPES)
def test_messages_read_as_the_ids_of_their_template(shape):
    model = loaded(SHAPES[shape])
    text = model.tokenizer.apply_chat_template(ASK, tokenize=False, add_generation_prompt=True)
    ids = model.tokenizer(text, add_special_tokens=False)["input_ids"]
    reading = model.read(ASK)
    assert reading.ids.tolist() == ids  # and no second first token
    equal(reading, model.read(ids))
    encoded = model.tokenizer.apply_chat_template(ASK, add_generation_prompt=True)
    assert set(encoded) >= {"input_ids", "attention_mask"}  # no list of ids, as it once was
    equal(reading, model.read(encoded))
    equal(model.read_batch([ASK, "The city"])[0], reading)
    written = model.generate(ASK, max_new_tokens=3)
    assert written.ids.tolist()[: len(ids)] == ids
    assert written.meta["generation"]["prompt_tokens"] == len(ids)


def test_who_speaks_is_kept_wherever_a_chat_is_read_and_saved(tmp_path):
    model = loaded(MARKED)
    chat = [{"role": "system", "content": "the city"}, *ASK]
    written = model.generate(chat, max_new_tokens=3)
    said = {
        role: "".join(p for p, r in zip(written.pieces, written.role) if r == role)
        for role in ("system", "user")
    }
    assert said == {"system": "the city", "user": "The Eiffel Tower is in"}
    assert set(written.section[written.role == ""]) == {"template"}
    assert set(written.section[(written.role != "") & ~written.generated]) == {"content"}
    assert set(written.section[written.generated]) == {"answer"}
    assert written.meta["messages"] == chat
    for reading in (model.read(chat), model.read_batch([chat, "Paris"])[0]):
        assert reading.role.tolist() == written.role[~written.generated].tolist()
    part = model.readout(model.capture(chat), positions="-3:")
    assert part.section.tolist() == reading.section[-3:].tolist()
    assert not model.read("Paris").role.any()
    for suffix in ("json", "parquet", "html"):
        again = Reading.load(written.save(tmp_path / f"chat.{suffix}"))
        assert again.role.tolist() == written.role.tolist()
        assert again.section.tolist() == written.section.tolist()
        assert again.meta["messages"] == chat
    lines = str(written).splitlines()
    assert any("user ─" in line for line in lines)
    assert not any("user ─" in line for line in str(model.read("user")).splitlines())


def test_a_prompt_cut_at_its_front_keeps_who_speaks():
    model = loaded(MARKED)
    chat = [{"role": "user", "content": "the city " * 300}, {"role": "assistant", "content": "Pa"}]
    cut = model.generate(chat, truncate=True, max_new_tokens=3)
    assert cut.meta["truncated"] > 0
    assert cut.role[0] == "user"
    assert "".join(np.array(cut.pieces)[(cut.role == "assistant") & ~cut.generated]) == "Pa"


def test_an_assistants_last_words_are_gone_on_with():
    model = loaded(MARKED)
    begun = [*ASK, {"role": "assistant", "content": " the city"}]
    assert model.read(begun).prompt.endswith("<|assistant|> the city")


@pytest.mark.parametrize(
    ("template", "messages", "line"),
    [
        (None, ASK, "the tokenizer has no chat template"),
        (STRICT, ASK * 2, "the chat template refuses these messages: turns must alternate"),
        (
            MARKED,
            [{"role": "robot", "content": "x"}],
            "message 0: role='robot': expected one of system",
        ),
        (MARKED, [{"role": "user"}], "message 0 (user) has no content"),
        (MARKED, [{"role": "user", "content": "\ud83d"}], "message 0 (user): expected what can be"),
        (MARKED, [ASK[0] | {5: "x"}], "message 0 (user): expected what can be written as JSON"),
        (MARKED, [ASK[0] | {"image": object()}], "message 0 (user): expected what can be"),
        (MARKED, [*ASK, {"role": "assistant", "content": ""}], "an assistant's and empty"),
    ],
    ids=["no template", "refused", "role", "no content", "half", "key", "object", "empty"],
)
def test_what_is_no_chat_is_said_in_one_line(template, messages, line):
    with pytest.raises(PromptError) as caught:
        loaded(template).read(messages)
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


def test_messages_for_a_model_without_a_tokenizer():
    with pytest.raises(PromptError, match="messages need a tokenizer with a chat template"):
        logitlens.load(tiny_gpt2()).generate(ASK)
