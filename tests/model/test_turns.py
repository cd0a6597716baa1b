"""Who speaks: every token of a chat belongs to whom its words came from, in every shape of template."""

from __future__ import annotations

import re
from functools import cache

import pytest
from transformers import PreTrainedTokenizerFast

from logitlens.model.chat import chat_ids
from logitlens.model.tokens import Vocabulary
from logitlens.model.turns import Turns, marks_of
from tests.model.templates import FIELDS, MARKS, NO_SYSTEM, TEMPLATES
from tests.models import tiny_tokenizer

SYSTEM = "Answer in one word, please."
# Words that begin and end in characters that tokenizers join with what stands beside them.
CHATS = {
    "words": ("The Eiffel Tower is in", "Paris.", "And the tower of Pisa?"),
    "signs": ("(Paris?)", "«Ça va!»", "1 + 1 = 2\n\nor 3"),
    "scripts": ("埃菲尔铁塔在哪里。", "巴黎！", "где Париж 🗼"),
    "tags": ("<b>The tower</b> | {x} is in", "<i>Paris</i>", "[INST]"),
}
_TAG = re.compile(r"<[^<>\n]{1,30}>|\[[^\[\]\n]{1,20}\]")


@cache
def _with_tags(tags: tuple[str, ...]) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=tiny_tokenizer().backend_tokenizer, bos_token="<s>", eos_token="</s>",
        additional_special_tokens=list(tags),
    )  # fmt: skip


def vocabulary(name: str, special: bool) -> Vocabulary:
    """A byte-level tokenizer with a template, whose tags are tokens, or spelled out."""
    template = TEMPLATES[name]
    tags = tuple(dict.fromkeys(_TAG.findall(template))) if special else ()
    tokenizer = _with_tags(tags)
    tokenizer.chat_template = template
    return Vocabulary(tokenizer)


def said(turns: Turns, ids: list[int], vocabulary: Vocabulary) -> list[tuple[str, str, str]]:
    """[(role, section, text)] of everything but the template."""
    out: list[list] = []
    for t, (role, section) in enumerate(zip(turns.role, turns.section, strict=True)):
        if out and out[-1][:2] == [role, section]:
            out[-1][2].append(ids[t])
        else:
            out.append([role, section, [ids[t]]])
    return [(r, s, vocabulary.text(i).strip()) for r, s, i in out if s != "template"]


@pytest.mark.parametrize("special", [True, False], ids=["tags are tokens", "tags are spelled"])
@pytest.mark.parametrize("name", TEMPLATES)
def test_every_message_has_its_own_words_and_the_template_the_rest(name, special):
    words = vocabulary(name, special)
    for chat in CHATS.values():
        messages = [{"role": r, "content": c} for r, c in zip(("user", "assistant", "user"), chat)]
        if name not in NO_SYSTEM:
            messages.insert(0, {"role": "system", "content": SYSTEM})
        ids = chat_ids(messages, words.tokenizer)
        turns = Turns(messages, words)
        found = said(turns, ids, words)
        expected = [
            (m["role"], "answer" if m["role"] == "assistant" else "content", m["content"])
            for m in messages
        ]
        assert sorted(found) == sorted(expected)  # some put the system message elsewhere
        assert all((role == "") == (s == "template") for role, s in zip(turns.role, turns.section))


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_marks_of_thinking_are_the_templates_own(name):
    marks = marks_of(vocabulary(name, True).tokenizer)
    assert (marks and (marks.open.decode(), marks.close.decode())) == MARKS.get(name)


@pytest.mark.parametrize("special", [True, False], ids=["tags are tokens", "tags are spelled"])
@pytest.mark.parametrize("name", FIELDS)
def test_thinking_in_a_field_of_its_own(name, special):
    words = vocabulary(name, special)
    answer = {"role": "assistant", "content": "the city", FIELDS[name]: "Is it Paris?\nIn Paris."}
    messages = [{"role": "user", "content": "The tower"}, answer]
    ids = chat_ids(messages, words.tokenizer)
    assert said(Turns(messages, words), ids, words) == [
        ("user", "content", "The tower"),
        ("assistant", "thinking", "Is it Paris?\nIn Paris."),
        ("assistant", "answer", "the city"),
    ]


@pytest.mark.parametrize("name", ["Qwen 3", "SmolLM 3", "Magistral", "Nemotron"])
def test_thinking_within_the_content(name):
    """Of the last message it is shown; of earlier ones most templates leave it out."""
    words = vocabulary(name, True)
    opening, close = MARKS[name]
    thought = f"{opening}\nIs it Paris?\n{close}\n\n"
    parts = [{"type": "thinking", "thinking": "Is it Paris?"}, {"type": "text", "text": "the city"}]
    answer = {
        "role": "assistant",
        "content": parts if name == "Magistral" else thought + "the city",
    }
    ask = {"role": "user", "content": "The tower"}
    expected = [
        ("user", "content", "The tower"),
        ("assistant", "thinking", "Is it Paris?"),
        ("assistant", "answer", "the city"),
    ]
    chats = [[ask, answer], [ask, answer, ask]]
    if name == "Nemotron":  # transformers refuses to go on with a message that is not shown whole
        chats = chats[1:]
    for messages in chats:
        ids = chat_ids(messages, words.tokenizer)
        rest = expected[: len(messages) - 2]
        kept = name == "Magistral" or len(messages) == 2
        shown = expected if kept else [expected[0], expected[2]]
        assert said(Turns(messages, words), ids, words) == shown + rest


@pytest.mark.parametrize("special", [True, False], ids=["tags are tokens", "tags are spelled"])
@pytest.mark.parametrize("name", MARKS)
def test_what_the_model_writes_is_thought_until_its_own_mark(name, special):
    words = vocabulary(name, special)
    messages = [{"role": "user", "content": "The tower"}]
    turns = Turns(messages, words)
    opening, close = MARKS[name]
    prompt = chat_ids(messages, words.tokenizer)
    begun = words.text(prompt).rstrip().endswith(opening)
    text = ("" if begun else opening) + "in the city" + close + "of Paris"
    written = words.plain(text)
    for token in written:
        turns.follow(token)
    assert said(turns, prompt + written, words)[1:] == [
        ("assistant", "thinking", "in the city"),
        ("assistant", "answer", "of Paris"),
    ]
    assert len(turns.role) == len(turns.section) == len(prompt) + len(written)


def test_a_mark_that_closes_what_no_mark_has_opened():
    words = vocabulary("SmolLM 3", True)
    turns = Turns([{"role": "user", "content": "The tower"}], words, dropped=3)
    written = words.plain("in the city</think>of Paris")
    for token in written:
        turns.follow(token)
    ids = chat_ids([{"role": "user", "content": "The tower"}], words.tokenizer)[3:] + written
    assert said(turns, ids, words)[1:] == [
        ("assistant", "thinking", "in the city"),
        ("assistant", "answer", "of Paris"),
    ]


def test_calls_of_tools_are_the_assistants_words():
    words = vocabulary("ChatML", True)
    words.tokenizer.chat_template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content or '' }}{% for c in m.tool_calls or [] %}"
        "[call {{ c.function | tojson }}]{% endfor %}{% endfor %}"
    )
    call = {"type": "function", "function": {"name": "find", "arguments": {"city": "Paris"}}}
    messages = [
        {"role": "user", "content": "Where?"},
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "content": "here"},
    ]
    turns = Turns(messages, words)
    found = said(turns, chat_ids(messages, words.tokenizer), words)
    assert [role for role, _, _ in found] == ["user", "assistant", "tool"]
    assert found[1][2].startswith("find")
    assert found[1][2].endswith("Paris")


def test_words_that_a_template_leaves_out_or_refuses_to_change_are_nobodys():
    words = vocabulary("ChatML", True)
    words.tokenizer.chat_template = (
        "{% for m in messages %}{% if m.content != 'the city' and m.role == 'user' %}"
        "{{ raise_exception('other words') }}{% endif %}<{{ m.role }}>"
        "{{ m.content if m.role == 'user' }}{% endfor %}"
    )
    messages = [{"role": "system", "content": "Paris"}, {"role": "user", "content": "the city"}]
    assert set(Turns(messages, words).section) == {"template"}
