"""Chats: messages through the tokenizer's own template, and one line for what is no chat."""

from __future__ import annotations

import pytest

import logitlens
from logitlens import PromptError
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
    equal(model.read_batch([ASK, "The city"])[0], reading)
    written = model.generate(ASK, max_new_tokens=3)
    assert written.ids.tolist()[: len(ids)] == ids
    assert written.meta["generation"]["prompt_tokens"] == len(ids)


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
        (MARKED, [*ASK, {"role": "assistant", "content": ""}], "an assistant's and empty"),
    ],
    ids=["no template", "refused", "role", "no content", "empty"],
)
def test_what_is_no_chat_is_said_in_one_line(template, messages, line):
    with pytest.raises(PromptError) as caught:
        loaded(template).read(messages)
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


def test_messages_for_a_model_without_a_tokenizer():
    with pytest.raises(PromptError, match="messages need a tokenizer with a chat template"):
        logitlens.load(tiny_gpt2()).generate(ASK)
