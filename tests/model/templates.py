"""Chat templates in the shapes of well-known families, written again as short as they can be.

What matters of each is kept: where it puts the system message, what it trims, what it refuses, which
earlier thinking it drops, what it writes by itself, and how its marks are spelled.
"""

# ruff: noqa: E501

from __future__ import annotations

_GEN = "{% if add_generation_prompt %}"
_END = "{% endif %}"


def _turns(
    before: str, after: str, opening: str, content: str = "m.content", lead: str = ""
) -> str:
    """Templates that do the same with every message."""
    return (
        f"{lead}{{% for m in messages %}}{before}{{{{ {content} }}}}{after}{{% endfor %}}"
        f"{_GEN}{opening}{_END}"
    )


_BOS = "{{ bos_token }}"
_ALTERNATE = (
    "{% for m in messages if m.role != 'system' %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate user/assistant') }}{% endif %}{% endfor %}"
)
# Thinking of earlier turns is dropped; that of the last is written between marks.
_QWEN3 = """{%- set ns = namespace(last=0) %}{%- for m in messages %}{%- if m.role == 'user' %}{%- set ns.last = loop.index0 %}{%- endif %}{%- endfor %}
{%- for m in messages %}{%- set content = m.content %}
{%- if m.role != 'assistant' %}{{- '<|im_start|>' + m.role + '\\n' + content + '<|im_end|>\\n' }}
{%- else %}{%- set thought = '' %}
{%- if m.reasoning_content is string %}{%- set thought = m.reasoning_content %}
{%- elif '</think>' in content %}{%- set thought = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}{%- set content = content.split('</think>')[-1].lstrip('\\n') %}{%- endif %}
{%- if loop.index0 > ns.last and (loop.last or thought) %}{{- '<|im_start|>' + m.role + '\\n<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
{%- else %}{{- '<|im_start|>' + m.role + '\\n' + content }}{%- endif %}{{- '<|im_end|>\\n' }}{%- endif %}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\nOPENING' }}{%- endif %}"""
_LLAMA2 = (
    "{% if messages[0].role == 'system' %}{% set rest = messages[1:] %}{% set sys = messages[0].content %}"
    "{% else %}{% set rest = messages %}{% set sys = false %}{% endif %}{% for m in rest %}"
    "{% if loop.index0 == 0 and sys %}{% set c = '<<SYS>>\n' + sys + '\n<</SYS>>\n\n' + m.content %}"
    "{% else %}{% set c = m.content %}{% endif %}{% if m.role == 'user' %}"
    "{{ bos_token + '[INST] ' + c.strip() + ' [/INST]' }}{% else %}"
    "{{ ' ' + c.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
_MISTRAL_3 = (  # the system message is put before the last question
    "{{ bos_token }}"
    + _ALTERNATE
    + "{% set sys = messages[0].content if messages[0].role == 'system' else none %}"
    "{% set rest = messages[1:] if sys else messages %}{% for m in rest %}{% if m.role == 'user' %}"
    "{{ '[INST] ' }}{% if sys and loop.last %}{{ sys + '\n\n' }}{% endif %}{{ m.content + '[/INST]' }}"
    "{% else %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}"
)
_DEEPSEEK = (
    "{{ bos_token }}{% for m in messages if m.role == 'system' %}{{ m.content }}{% endfor %}"
    "{% for m in messages if m.role != 'system' %}{% if m.role == 'user' %}{{ '<｜User｜>' + m.content }}"
    "{% else %}{% set c = m.content %}{% if '</think>' in c %}{% set c = c.split('</think>')[-1] %}{% endif %}"
    "{{ '<｜Assistant｜>' + c + '<｜end▁of▁sentence｜>' }}{% endif %}{% endfor %}"
    + _GEN + "{{ '<｜Assistant｜>OPENING' }}" + _END
)  # fmt: skip
_MAGISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% set begun, ended = {'system': ('[SYSTEM_PROMPT]', '[/SYSTEM_PROMPT]'),"
    " 'user': ('[INST]', '[/INST]'), 'assistant': ('', eos_token)}[m.role] %}{{ begun }}"
    "{% if m.content is string %}{{ m.content }}{% else %}{% for p in m.content %}"
    "{% if p.type == 'thinking' %}{{ '[THINK]' + p.thinking + '[/THINK]' }}{% else %}{{ p.text }}{% endif %}"
    "{% endfor %}{% endif %}{{ ended }}{% endfor %}"
)
_CHANNELS = (
    "{{ '<|start|>system<|message|>You are a model.\\nReasoning: medium<|end|>' }}{% for m in messages %}"
    "{% if m.role == 'system' %}{{ '<|start|>developer<|message|># Instructions\\n\\n' + m.content + '<|end|>' }}"
    "{% elif m.role == 'user' %}{{ '<|start|>user<|message|>' + m.content + '<|end|>' }}"
    "{% else %}{% if m.thinking and loop.last %}{{ '<|start|>assistant<|channel|>analysis<|message|>' + m.thinking + '<|end|>' }}{% endif %}"
    "{{ '<|start|>assistant<|channel|>final<|message|>' + m.content + ('<|return|>' if loop.last else '<|end|>') }}{% endif %}{% endfor %}"
    + _GEN + "{{ '<|start|>assistant' }}" + _END
)  # fmt: skip
_COMMAND = (
    "{{ bos_token }}{% for m in messages %}{{ '<|START_OF_TURN_TOKEN|>' }}"
    "{{ {'system': '<|SYSTEM_TOKEN|>', 'user': '<|USER_TOKEN|>', 'assistant': '<|CHATBOT_TOKEN|>'}[m.role] }}"
    "BEFORE{{ m.content AFTER }}{{ '<|END_OF_TURN_TOKEN|>' }}{% endfor %}"
    + _GEN + "{{ '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>' }}" + _END
)  # fmt: skip
_PLAIN_ROLES = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ m.content.strip() + 'SYS' }}"
    "{% elif m.role == 'user' %}{{ 'USER' + m.content.strip() + 'BETWEEN' }}"
    "{% else %}{{ 'BOT' + m.content.strip() + 'END' }}{% endif %}{% endfor %}" + _GEN + "{{ 'OPEN' }}" + _END
)  # fmt: skip


def _plain_roles(**words: str) -> str:
    text = _PLAIN_ROLES
    for name, word in words.items():
        text = text.replace(f"'{name}'", repr(word))
    return text


CHATML = _turns(
    "{{ '<|im_start|>' + m.role + '\n' }}",
    "{{ '<|im_end|>\n' }}",
    "{{ '<|im_start|>assistant\n' }}",
)

TEMPLATES: dict[str, str] = {
    "ChatML": CHATML,
    "Qwen 2.5": "{% if messages[0].role != 'system' %}{{ '<|im_start|>system\nYou are Qwen, a helpful assistant.<|im_end|>\n' }}{% endif %}"
    + CHATML,
    "InternLM": _BOS + CHATML,
    "Llama 2": _LLAMA2,
    "Llama 3": _turns(
        "{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' }}", "<|eot_id|>",
        "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}", "m.content | trim", _BOS,
    ),
    "Llama 3 with a date": _turns(
        "{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' }}{% if m.role == 'system' %}{{ 'Today Date: 26 Jul 2024\n\n' }}{% endif %}",
        "<|eot_id|>", "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}", "m.content | trim", _BOS,
    ),
    "Gemma": "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    + _ALTERNATE
    + _turns("{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' }}",
             "{{ '<end_of_turn>\n' }}", "{{ '<start_of_turn>model\n' }}", "m.content | trim"),
    "Gemma 3": "{{ bos_token }}{% if messages[0].role == 'system' %}{% set first = messages[0].content + '\n\n' %}{% set rest = messages[1:] %}"
    "{% else %}{% set first = '' %}{% set rest = messages %}{% endif %}"
    + _turns("{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' + (first if loop.first else '') }}",
             "{{ '<end_of_turn>\n' }}", "{{ '<start_of_turn>model\n' }}", "m.content | trim").replace("in messages", "in rest"),
    "Mistral 1": "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('Only user and assistant roles') }}{% endif %}"
    + _ALTERNATE
    + "{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}{% else %}{{ m.content + eos_token }}{% endif %}{% endfor %}",
    "Mistral 3": _MISTRAL_3,
    "Mistral tekken": _MISTRAL_3.replace("[INST] ", "[INST]").replace("' ' + m.content", "m.content"),
    "Magistral": _MAGISTRAL,
    "Qwen 3": _QWEN3.replace("OPENING", ""),
    "Qwen 3, always thinking": _QWEN3.replace("OPENING", "<think>\\n"),
    "Qwen 3, never thinking": _QWEN3.replace("OPENING", "<think>\\n\\n</think>\\n\\n"),
    "DeepSeek R1": _DEEPSEEK.replace("OPENING", "<think>\\n"),
    "DeepSeek V3.1": _DEEPSEEK.replace("OPENING", "</think>"),
    "Granite": _turns("{{ '<|start_of_role|>' + m.role + '<|end_of_role|>' }}", "{{ '<|end_of_text|>\n' }}",
                      "{{ '<|start_of_role|>assistant<|end_of_role|>' }}"),
    "Command R": _COMMAND.replace("BEFORE", "").replace("AFTER", "| trim"),
    "Command A": _COMMAND.replace(
        "BEFORE", "{% if m.role == 'assistant' %}{% if m.thinking %}{{ '<|START_THINKING|>' + m.thinking + '<|END_THINKING|>' }}{% endif %}{{ '<|START_RESPONSE|>' }}{% endif %}"
    ).replace("AFTER", "+ ('<|END_RESPONSE|>' if m.role == 'assistant' else '')"),
    "Phi 3": _turns("{{ '<|' + m.role + '|>\n' }}", "{{ '<|end|>\n' }}", "{{ '<|assistant|>\n' }}"),
    "Phi 4": _turns("{{ '<|im_start|>' + m.role + '<|im_sep|>' }}", "<|im_end|>", "<|im_start|>assistant<|im_sep|>"),
    "GLM 4": _turns("{{ '<|' + m.role + '|>\n' }}", "", "<|assistant|>", lead="[gMASK]<sop>"),
    "GLM 4.5": _turns(
        "{{ '<|' + m.role + '|>\n' }}{% if m.role == 'assistant' %}{{ '<think>' + (m.reasoning_content or '').strip() + '</think>\n' }}{% endif %}",
        "", "<|assistant|>", "m.content.strip()", "[gMASK]<sop>"),
    "OLMo 2": _turns("{{ '<|' + m.role + '|>\n' }}", "{{ eos_token + '\n' if m.role == 'assistant' else '\n' }}",
                     "{{ '<|assistant|>\n' }}", lead=_BOS),
    "Zephyr": _turns("{{ '<|' + m.role + '|>\n' }}", "{{ eos_token + '\n' }}", "{{ '<|assistant|>\n' }}"),
    "Vicuna": _plain_roles(SYS=" ", USER="USER: ", BETWEEN=" ", BOT="ASSISTANT: ", END="</s>", OPEN="ASSISTANT:"),
    "Falcon": _plain_roles(SYS="\n\n", USER="User: ", BETWEEN="\n\n", BOT="Falcon: ", END="\n\n", OPEN="Falcon:"),
    "Alpaca": _plain_roles(SYS="\n\n", USER="### Instruction:\n", BETWEEN="\n\n", BOT="### Response:\n", END="\n\n",
                           OPEN="### Response:\n"),
    "SmolLM 3": "{{ '<|im_start|>system\n## Metadata\n\nReasoning Mode: /think\n\n' }}"
    "{% if messages[0].role == 'system' %}{{ '## Custom Instructions\n\n' + messages[0].content }}{% endif %}{{ '<|im_end|>\n' }}"
    + _turns("{% if m.role != 'system' %}{{ '<|im_start|>' + m.role + '\n' }}", "{{ '<|im_end|>\n' }}{% endif %}",
             "{{ '<|im_start|>assistant\n' }}", "(m.content.split('</think>')[-1] if m.role == 'assistant' and not loop.last else m.content).lstrip()"),
    "Nemotron": _turns(
        "{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' }}{% set c = m.content %}{% if m.role == 'assistant' and '</think>' in c %}{% set c = c.split('</think>')[-1].lstrip() %}{% endif %}",
        "<|eot_id|>", "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}", "c | trim", _BOS),
    "Nemotron 4": _turns("{{ '<extra_id_' + ('0>System' if m.role == 'system' else '1>User' if m.role == 'user' else '1>Assistant') + '\n' }}",
                         "{{ '\n' }}", "{{ '<extra_id_1>Assistant\n' }}", "m.content.strip()"),
    "EXAONE": _turns("{{ '[|' + m.role + '|]' }}", "{{ '[|endofturn|]\n' }}", "[|assistant|]"),
    "channels": _CHANNELS,
}  # fmt: skip

# Templates that take no system message.
NO_SYSTEM = ("Gemma", "Mistral 1")
# How an assistant's thinking is handed to those that know of it.
FIELDS = {
    "Qwen 3": "reasoning_content", "Qwen 3, always thinking": "reasoning_content",
    "Qwen 3, never thinking": "reasoning_content", "GLM 4.5": "reasoning_content",
    "Command A": "thinking", "channels": "thinking",
}  # fmt: skip
# What they write around it.
MARKS = {
    "Magistral": ("[THINK]", "[/THINK]"), "SmolLM 3": ("<think>", "</think>"),
    "DeepSeek R1": ("<think>", "</think>"), "DeepSeek V3.1": ("<think>", "</think>"),
    "Nemotron": ("<think>", "</think>"), "Qwen 3": ("<think>", "</think>"),
    "Qwen 3, always thinking": ("<think>", "</think>"), "Qwen 3, never thinking": ("<think>", "</think>"),
    "GLM 4.5": ("<think>", "</think>"), "Command A": ("<|START_THINKING|>", "<|END_THINKING|><|START_RESPONSE|>"),
    "channels": ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>"),
}  # fmt: skip
