"""Tiny models of every decoder-only family that transformers knows, and what each method does with them.

`benchmarks/families.py` makes the table of docs/models.md of it.

The sizes are set by the names that configurations share, so a family that a new transformers brings needs no
line here.
"""

import json
import re
import warnings
from pathlib import Path

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from sftbench.errors import BadInput, RunFailed
from sftbench.models.architecture import build_empty
from sftbench.recipes.recipe import METHODS, Recipe, override
from tests.conftest import small_rows

# The first pattern that a field's name matches decides; a field that is None, text or a switch stays.
SIZES = (
    (r"index_topk", 256),  # more than a row has tokens, as in the real ones
    (r"vocab_size(_per_layer_input)?|n_vocab", "vocabulary"),
    (r".*(max_position_embeddings|n_positions|n_ctx|max_seq_len|context_length|seq_length)", 256),
    (r"(sliding_window|attention_chunk_size|window_size|attention_window_size)", 16),
    (r"(qk_rope_head_dim|qk_nope_head_dim|partial_rotary_dim|rotary_dim|rotary_ndims|index_head_dim)", 8),
    (r".*(head_dim|dim_head|head_size|d_kv|v_head_dim|mamba_d_head)", 16),
    (r"mamba_(n|num)_heads", 8),
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
    (r"(intermediate_size|ffn_dim|n_inner|d_ff|ffn_hidden_size|.*ffn_dim|d_inner|dim_ff|"
     r"mamba_d_ssm|block_ff_dim|mlp_dim)", 128),
    (r"(attention_)?hidden_size|n_embd|d_model|dim|embed_dim|emb_dim|embedding_size|lru_width|model_dim", 64),
    (r"hidden_size_per_layer_input", 16),
)
LARGEST = 2 * 10**7  # parameters of a tiny model
HEADS = {"num_key_value_heads": 4, "head_dim": 8}  # latent attention has keys and values for every head
ROUTES = {"num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "n_routed_experts": 4}
# What only this family's configuration knows: which layers are of which kind, and sizes that hang together.
OWN = {
    **dict.fromkeys(("axk1", "axk2", "deepseek_v3", "deepseek_v32", "glm_moe_dsa", "longcat_flash", "youtu",
                     "glm4_moe_lite", "minicpm3"), HEADS),
    "bailing_hybrid": {"layer_group_size": 2, "num_key_value_heads": 4}, "bamba": {"attn_layer_indices": [1]},
    "cwm": {"bos_token_id": 2}, "modernbert-decoder": {"bos_token_id": 2},
    "deepseek_v2": HEADS | ROUTES, "dots1": ROUTES | {"n_shared_experts": 1},
    "dots3_note_text": {"num_key_value_heads": 4},
    "gemma3n_text": {"num_kv_shared_layers": 0, "layer_types": ["sliding_attention", "full_attention"]},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "kimi_linear": {"num_key_value_heads": 4, "layer_types": ["linear_attention", "full_attention"]},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "mamba2": {"num_heads": 8, "head_dim": 16, "n_groups": 1},
    "nemotron_h": {"layer_types": ["mamba", "attention"]},
    "olmo_hybrid": {"layer_types": ["linear_attention", "full_attention"]},
    **dict.fromkeys(("qwen3_5_text", "qwen3_5_moe_text", "qwen3_next"),
                    {"layer_types": ["linear_attention", "full_attention"], "linear_num_value_heads": 4}),
    "recurrent_gemma": {"block_types": ["recurrent", "attention"]},
    "xlstm": {"num_heads": 4},
    "zamba": {"layer_types": ["mamba", "hybrid"]}, "zamba2": {"layer_types": ["mamba", "hybrid"]},
    "zaya": {"num_experts_per_tok": 1},
}


def causal_families() -> list[str]:
    """The model types of transformers' mapping for causal language models."""
    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def other_kind(family: str) -> str:
    """Why a family of the mapping is no decoder-only language model; empty where it is one or may be one."""
    try:
        config = CONFIG_MAPPING[family]()
    except Exception:  # Gemma 4's assistant, which drafts for a model beside it
        return "a family without a model of its own"
    try:
        several = config.get_text_config() is not config
    except ValueError:  # of two texts' parts (MusicGen)
        several = True
    if several:
        return "a model of several parts"
    beside = config.is_encoder_decoder or hasattr(config, "decoder_layers")
    return "a decoder beside an encoder" if beside else ""


def tiny_config(family: str, vocabulary: int, **changes):
    """A family's configuration of two layers with small sizes; `changes` go on top."""
    kind = CONFIG_MAPPING[family]
    values = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        default = kind()
    for name, value in vars(default).items():
        if name in ("head_dim", "num_key_value_heads") and value is None:
            value = 1  # some families have None here, and fail by it
        if name.startswith("_") or isinstance(value, bool) or not isinstance(value, int):
            continue
        for pattern, size in SIZES:
            if re.fullmatch(pattern, name):
                values[name] = {"vocabulary": vocabulary, "layers": 2}.get(size, size)
                break
    return kind(**values | OWN.get(family, {}) | changes)


def save_tiny(family: str, tokenizer, folder: Path, **changes) -> str:
    """Write a random model of the family and the tokenizer into a folder, and return its path."""
    config = tiny_config(family, len(tokenizer), **changes)
    if (size := build_empty(config).num_parameters()) > LARGEST:
        raise ValueError(f"{size:,} parameters, whose sizes are named as in no other family")
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def try_method(folder: Path, model: str, method: str) -> dict:
    """Train two steps by a method, hand over and export; what came of it in plain words, or the refusal.

    Returns `{"packs": bool, "steps": 2, "exports": form}`, `{"refused": field, "sentence": …}` of a refusal
    before any work, or `{"failed": …}`.
    """
    from sftbench.export.export import export_stage
    from sftbench.training.chain import run_chain
    from sftbench.training.prepare import prepare_recipe
    data = folder / "domain_tasks.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in small_rows("domain_tasks", 10)))
    recipe = override(
        Recipe(), mode="1", method=method, model=model, domain_tasks=str(data), max_steps=2, probe_share=0.2,
        probe_rows=1, yardstick=False, max_new_tokens=2, num_virtual_tokens=4, max_length=48,
        trainable_parts="last:1, norm", learning_rate=1e-3, pretraining_learning_rate=1e-3, warmup_ratio=0.0,
        output_dir=str(folder / f"run-{method}"))
    try:
        ready = prepare_recipe(recipe)
    except BadInput as error:
        return {"refused": error.field, "sentence": str(error)}
    try:
        run = run_chain(ready, timed=False)
        (run / "loss.png").touch()  # a run that has its curve is not drawn anew
        done = export_stage(run, folder / f"export-{method}")
    except (BadInput, RunFailed) as error:
        return {"failed": f"{type(error).__name__}: {error}"}
    return {"packs": ready.recipe.packing, "exports": done["form"], "equal": done["equal"] == done["prompts"]}


def try_family(family: str, tokenizer, folder: Path) -> dict:
    """What each method does with a tiny model of the family; `built` is the reason where none can be made."""
    try:
        model = save_tiny(family, tokenizer, folder / "model")
    except Exception as error:  # whatever a configuration of odd sizes raises
        return {"built": " ".join(f"{type(error).__name__}: {error}".split())[:200]}
    found = {}
    for method in METHODS:
        try:
            found[method] = try_method(folder, model, method)
        except Exception as error:
            found[method] = {"failed": " ".join(f"{type(error).__name__}: {error}".split())[:300]}
    return found
