"""Tiny models of every causal family that transformers knows, built from a configuration alone.

The sizes are set by the names that configurations share, so a family that a new transformers brings needs no
line here.
"""

import re
import warnings

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

# The first pattern that a field's name matches decides; a field that is None, text or a switch stays.
SIZES = (
    (r"vocab_size(_per_layer_input)?|n_vocab", "vocabulary"),
    (r".*(max_position_embeddings|n_positions|n_ctx|max_seq_len|context_length|seq_length)", 256),
    (r"(sliding_window|attention_chunk_size|window_size|attention_window_size)", 16),
    (r"(qk_rope_head_dim|qk_nope_head_dim|partial_rotary_dim|rotary_dim|rotary_ndims|index_head_dim)", 8),
    (r".*(head_dim|dim_head|head_size|d_kv|v_head_dim|mamba_d_head)", 16),
    (r".*(kv_heads|key_value_heads|query_groups|n_groups|linear_num_key_heads)", 2),
    (r".*(experts_per_tok(en)?|moe_top_?k|topk|top_k_experts|num_selected_experts|moe_k|router_topk)", 2),
    (r"(n_group|topk_group)", 1),
    (r".*(n_routed_experts|num_(local_)?experts|moe_num_experts|num_moe_experts|n_experts)", 4),
    (r".*(n_shared_experts|num_shared_experts)", 1),
    (r".*(num_.*heads|n_heads?|num_heads|attention_heads|n_head)", 4),
    (r".*(num_hidden_layers|n_layers?|num_layers|decoder_layers|num_blocks)", "layers"),
    (r".*(kv_lora_rank|q_lora_rank|o_lora_rank|lora_rank|d_state|state_size|ssm_state_size|time_step_rank|"
     r"mamba_dt_rank|lora_dim)", 16),
    (r".*(moe|shared|expert).*(intermediate|ffn|hidden|dim|size).*", 32),
    (r"(intermediate_size|ffn_dim|n_inner|d_ff|ffn_hidden_size|.*ffn_dim|d_inner|dim_ff|attention_hidden_size|"
     r"mamba_d_ssm|block_ff_dim|mlp_dim)", 128),
    (r"(hidden_size|n_embd|d_model|dim|embed_dim|emb_dim|embedding_size|lru_width|model_dim)", 64),
    (r"(hidden_size_per_layer_input)", 16),
)


def causal_families() -> list[str]:
    """The model types of transformers' mapping for causal language models."""
    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def tiny_config(family: str, vocabulary: int, layers: int = 2, **changes):
    """A family's configuration with small sizes, as its default sets the rest; `changes` go on top."""
    kind = CONFIG_MAPPING[family]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        default = kind()
    values = {}
    for name, value in vars(default).items():
        if name.startswith("_") or isinstance(value, bool) or not isinstance(value, int):
            continue
        for pattern, size in SIZES:
            if re.fullmatch(pattern, name):
                values[name] = {"vocabulary": vocabulary, "layers": layers}.get(size, size)
                break
    values |= {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None} | changes
    return kind(**values)


def tiny_model(family: str, vocabulary: int, **changes):
    """A random model of the family."""
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(tiny_config(family, vocabulary, **changes))
