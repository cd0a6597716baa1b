"""Tiny random models of every causal-LM class in transformers, built offline.

The point of these models is that a wrong tail shows: the head is untied and enlarged, norms have
weights far from 1, biases are not 0, and logit scales and softcaps act visibly. Shrinking is by
attribute name and general; `SPECIAL` holds what a single class needs besides.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
from typing import Any

import torch
import transformers
from torch import nn
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

VOCAB = 97
WIDTH = 32

# Every attribute is set only where the configuration has it.
SMALL: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": WIDTH,
    "d_model": WIDTH,
    "n_embd": WIDTH,
    "emb_dim": WIDTH,
    "embedding_size": WIDTH,
    "embedding_dim": WIDTH,
    "word_embed_proj_dim": WIDTH,
    "num_hidden_layers": 4,
    "n_layer": 4,
    "n_layers": 4,
    "num_layers": 4,
    "num_blocks": 4,
    "decoder_layers": 4,
    "num_decoder_layers": 4,
    "encoder_layers": 2,
    "num_encoder_layers": 2,
    "num_attention_heads": 4,
    "n_head": 4,
    "n_heads": 4,
    "num_heads": 4,
    "attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_attention_heads": 4,
    "num_decoder_attention_heads": 4,
    "num_encoder_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_kv_heads": 2,
    "head_dim": 8,
    "kv_channels": 8,
    "d_head": 8,
    "dim_head": 8,
    "attention_head_dim": 8,
    "attention_head_size": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 8,
    "qk_head_dim": 12,
    "v_head_dim": 8,
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "o_lora_rank": 16,
    "rotary_dim": 4,
    "intermediate_size": 48,
    "intermediate_size_mlp": 48,
    "dense_intermediate_size": 48,
    "ffn_hidden_size": 48,
    "ffn_dim": 48,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "expert_ffn_hidden_size": 24,
    "feed_forward_size": 48,
    "dim_ff": 48,
    "dff": 48,
    "d_inner": 48,
    "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 24,
    "shared_experts_intermediate_size": 24,
    "moe_shared_expert_intermediate_size": 24,
    "shared_intermediate_size": 24,
    "num_experts": 4,
    "n_routed_experts": 4,
    "num_local_experts": 4,
    "moe_num_experts": 4,
    "n_shared_experts": 1,
    "num_shared_experts": 1,
    "moe_num_shared_experts": 1,
    "zero_expert_num": 2,
    "num_experts_per_tok": 2,
    "num_experts_per_token": 2,
    "moe_k": 2,
    "moe_topk": 2,
    "n_group": 1,
    "num_expert_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "num_dense_layers": 1,
    "moe_layer_start_index": 1,
    "moe_layer_end_index": 3,
    "max_position_embeddings": 64,
    "n_positions": 64,
    "n_ctx": 64,
    "max_seq_len": 64,
    "context_length": 64,
    "max_target_positions": 64,
    "sliding_window": 32,
    "sliding_window_size": 32,
    "attention_window_size": 32,
    "window_size": 32,
    "attention_chunk_size": 32,
    "index_head_dim": 8,
    "index_n_heads": 2,
    "index_topk": 64,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_head_dim": 8,
    "linear_num_heads": 4,
    "mamba_d_state": 8,
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_n_groups": 1,
    "mamba_chunk_size": 16,
    "mamba_dt_rank": 4,
    "mamba_num_heads": 8,
    "mamba_head_dim": 8,
    "mamba_headdim": 8,
    "n_mamba_heads": 8,
    "mamba_d_ssm": 64,
    "ssm_state_size": 8,
    "state_size": 8,
    "time_step_rank": 4,
    "chunk_size": 16,
    "n_groups": 1,
    "lru_width": WIDTH,
    "attention_hidden_size": WIDTH,
    "hidden_size_global": WIDTH,
    "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": VOCAB,
    "laurel_rank": 8,
    "num_kv_shared_layers": 0,
    "query_pre_attn_scalar": 8,
    "ple_embed_dim": 16,
    "hc_lowrank": 8,
    "ngram_vocab_size_base": 100,
    "split_ngram_parts": 2,
    "swa_num_attention_heads": 4,
    "swa_num_key_value_heads": 2,
    "swa_head_dim": 8,
    "d_rel": 4,
    "rel_extent": 32,
    "router_hidden_size": 16,
    "adapter_rank": 8,
    "input_embedding_size": 16,
    "output_embedding_size": 24,
    "num_mel_bins": 8,
    "emb_pdrop": 0.0,
    # Visible: a tail that forgets one of these is caught.
    "tie_word_embeddings": False,
    "tie_weights": False,
    "final_logit_softcapping": 4.0,
    "logits_soft_cap": 4.0,
    "output_logit_soft_cap": 4.0,
    "logit_scale": 0.3,
    "logits_scaling": 4.0,
    "lm_head_multiplier": 0.4,
    "embedding_multiplier": 1.7,
    "residual_multiplier": 0.6,
    "is_decoder": True,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "sep_token_id": 2,
    "cls_token_id": 1,
    "decoder_start_token_id": 2,
}

# Multi-head latent attention counts heads differently.
LATENT: dict[str, Any] = {"head_dim": 4, "num_key_value_heads": 4}

# Parts that read images or sound: never run here, only small.
SIDE: dict[str, Any] = {"depth": 2, "num_hidden_layers": 2, "encoder_layers": 2, "image_size": 32}

DROP = object()

# What one class needs besides; keys are class names, then configuration attributes.
_MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
_MIXED = ["linear_attention", "full_attention"] * 2
_INDEXED = {
    "indexer_n_heads": 2,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 8,
    "indexer_budget": 32,
    "indexer_compress_ratio": 4,
}
SPECIAL: dict[str, dict[str, Any]] = {
    "BltForCausalLM": {"encoder_hash_byte_group_vocab": 64},
    "CohereCompassForCausalLM": {"rope_parameters": {"full_attention": _MROPE}},
    "DbrxForCausalLM": {
        "attn_config": {"rope_theta": 10000.0, "clip_qkv": 8.0},
        "ffn_config": {"ffn_hidden_size": 48},
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    },
    "Dots3NoteForCausalLM": {"num_key_value_heads": 4},
    "GPTNeoForCausalLM": {"attention_types": [[["global", "local"], 2]]},
    "GraniteMoeHybridForCausalLM": {"layer_types": _MIXED},
    "Lfm2MoeForCausalLM": {"layer_types": ["conv", "full_attention"] * 2},
    "LongcatFlashForCausalLM": {"num_key_value_heads": 4, "num_layers": 2},
    "Mamba2ForCausalLM": {"num_heads": 8},
    "MllamaForCausalLM": {"cross_attention_layers": [1]},
    "MuseSparkForConditionalGeneration": {
        "audio_config": {
            "num_hidden_layers": 4,
            "hidden_sizes": [8, 8, 8, 8],
            "out_hidden_size": WIDTH,
        },
    },
    "Qwen2VLForConditionalGeneration": {
        "text_config": {"rope_parameters": _MROPE},
        "vision_config": {"embed_dim": 32, "mlp_ratio": 2},
    },
    "Qwen2_5_VLForConditionalGeneration": {"text_config": {"rope_parameters": _MROPE}},
    "Qwen4ExpForCausalLM": {"layer_types": _MIXED, **_INDEXED},
    "ReformerModelWithLMHead": {
        "attn_layers": ["local", "lsh", "local", "lsh"],
        "axial_pos_shape": [8, 8],
        "axial_pos_embds_dim": [16, 16],
        "local_attn_chunk_length": 4,
        "lsh_attn_chunk_length": 4,
    },
    "RoCBertForCausalLM": {
        "shape_vocab_size": VOCAB,
        "shape_embed_dim": 16,
        "pronunciation_vocab_size": VOCAB,
        "pronunciation_embed_dim": 16,
    },
    "XLMWithLMHeadModel": {"causal": True},
    "XmodForCausalLM": {"default_language": "en_XX"},
    "Zamba2ForCausalLM": {
        "layers_block_type": ["linear_attention", "hybrid"] * 2,
        "head_dim": DROP,
        "num_key_value_heads": 4,
    },
    "ZambaForCausalLM": {
        "layers_block_type": ["linear_attention", "hybrid"] * 2,
        "attention_hidden_size": 64,
        "attention_head_dim": 16,
        "num_key_value_heads": 4,
    },
    "ZayaForCausalLM": {"num_experts_per_tok": 1},
}

# Text models inside multimodal wrappers, read without an image; and decoders that attend to an
# encoder. transformers has more of both: these are what can be built tiny without further packages.
WRAPPERS: list[str] = [
    "AriaForConditionalGeneration",
    "AyaVisionForConditionalGeneration",
    "Cohere2VisionForConditionalGeneration",
    "DeepseekVLForConditionalGeneration",
    "Exaone4_5_ForConditionalGeneration",
    "Idefics2ForConditionalGeneration",
    "Idefics3ForConditionalGeneration",
    "InternVLForConditionalGeneration",
    "Kimi_K25ForConditionalGeneration",
    "Lfm2VlForConditionalGeneration",
    "LightOnOcrForConditionalGeneration",
    "Llama4ForConditionalGeneration",
    "LlavaForConditionalGeneration",
    "LlavaNextForConditionalGeneration",
    "LlavaOnevisionForConditionalGeneration",
    "Mistral3ForConditionalGeneration",
    "MllamaForConditionalGeneration",
    "Ovis2ForConditionalGeneration",
    "PaliGemmaForConditionalGeneration",
    "Qwen2VLForConditionalGeneration",
    "Qwen2_5_VLForConditionalGeneration",
    "Qwen3VLForConditionalGeneration",
    "Qwen3VLMoeForConditionalGeneration",
    "Qwen3_5ForConditionalGeneration",
    "SmolVLMForConditionalGeneration",
    "VideoLlavaForConditionalGeneration",
    "VipLlavaForConditionalGeneration",
]
ENCODER_DECODERS: list[str] = [
    "BartForConditionalGeneration",
    "BigBirdPegasusForConditionalGeneration",
    "BlenderbotForConditionalGeneration",
    "LEDForConditionalGeneration",
    "LongT5ForConditionalGeneration",
    "M2M100ForConditionalGeneration",
    "MBartForConditionalGeneration",
    "MT5ForConditionalGeneration",
    "MarianMTModel",
    "MvpForConditionalGeneration",
    "NllbMoeForConditionalGeneration",
    "PLBartForConditionalGeneration",
    "PegasusForConditionalGeneration",
    "PegasusXForConditionalGeneration",
    "SwitchTransformersForConditionalGeneration",
    "T5ForConditionalGeneration",
    "T5GemmaForConditionalGeneration",
    "UMT5ForConditionalGeneration",
]
# These attend both ways in a prefix; a prompt is read as the part after it (token type 1).
PREFIX_MODELS = ["PaliGemmaForConditionalGeneration"]

CLASSES: list[str] = sorted(set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()))
_CONFIG_OF = {cls: kind for kind, cls in reversed(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items())}


@contextlib.contextmanager
def quiet():
    """No warnings of transformers about odd token ids and missing kernels."""
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(logging.NOTSET)
        transformers.logging.set_verbosity(level)


def build(name: str, *, seed: int = 0, dtype: torch.dtype = torch.float32, **overrides: Any):
    """The class `name` of transformers, tiny and random, in eval mode."""
    cls = getattr(transformers, name)
    with quiet():
        config = tiny_config(name, **overrides)
        torch.manual_seed(seed)
        model = cls(config)
        disturb(model, seed)
    return model.to(dtype).eval()


def tiny_config(name: str, **overrides: Any):
    """The configuration class of `name` with small values, its parts (text, vision, …) too."""
    config_class = getattr(transformers, name).config_class
    return config_class(**merged(tiny_values(config_class), SPECIAL.get(name, {}), overrides))


def merged(*layers: dict[str, Any]) -> dict[str, Any]:
    """Later layers win; dictionaries inside are merged; a value of `DROP` removes the key."""
    out: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            if isinstance(value, dict) and isinstance(out.get(key), dict):
                out[key] = merged(out[key], value)
            else:
                out[key] = value
    return {k: v for k, v in out.items() if v is not DROP}


def tiny_values(config_class) -> dict[str, Any]:
    values = small_values(config_class)
    try:
        default = config_class()
    except Exception:  # a class with no valid default is wholly described in SPECIAL
        return values
    for key, part in vars(default).items():
        if isinstance(part, transformers.PreTrainedConfig):
            values[key] = {"model_type": part.model_type, **tiny_values(type(part))}
            if not key.startswith(("text", "decoder", "encoder", "attn", "ffn")):
                values[key].update({k: v for k, v in SIDE.items() if hasattr(part, k)})
    return values


def small_values(config_class) -> dict[str, Any]:
    known = set(inspect.signature(config_class.__init__).parameters)
    for base in config_class.__mro__:
        known |= set(getattr(base, "__annotations__", {}))
    values = {k: v for k, v in SMALL.items() if k in known}
    if "qk_rope_head_dim" in known:  # latent attention: one rotary head, no grouped keys
        values.update({k: v for k, v in LATENT.items() if k in known})
    return values


def disturb(model: nn.Module, seed: int) -> None:
    """Make every piece of a tail visible: norms far from 1, biases far from 0, an enlarged head."""
    rng = torch.Generator().manual_seed(seed + 1)

    def noise(p):
        return torch.randn(p.shape, generator=rng)

    with torch.no_grad():
        for _, module in model.named_modules():
            for name, p in module.named_parameters(recurse=False):
                if "norm" in type(module).__name__.lower() and p.dim() == 1:
                    p.add_(noise(p) * 0.3)
                elif name == "bias" and isinstance(module, nn.Linear):
                    p.add_(noise(p) * 0.1)
        for name, buffer in model.named_buffers():
            if "final_logits_bias" in name:
                buffer.copy_(noise(buffer))
        head = model.get_output_embeddings()
        if head is not None and getattr(head, "weight", None) is not None:
            head.weight.copy_(noise(head.weight) * 0.6)
            if getattr(head, "bias", None) is not None:
                head.bias.copy_(noise(head.bias))
