"""What a model's family can do, found on the model itself, since no list of families stays true.

Sizes are read off a model on PyTorch's meta device, which has shapes and no data.
"""

import contextlib
import copy
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import AutoModelForCausalLM

from ..data.rows import cache_folder
from ..errors import BadInput
from ..runs.folder import write_json
from ..runs.stage_store import file_sha256, hash_key

TABLE_MARGIN = 8  # rows that a table of positions has beyond the model's positions, at most (OPT: 2)
POSITION_NAMES = re.compile(r"pos(?!t)|wpe")


def with_attention(make: Callable[[str], Any]):
    """`make("sdpa")`, or `make("eager")` for a family without sdpa in transformers (Gemma 2, gpt-oss)."""
    try:
        return make("sdpa")
    except ValueError as error:
        if "scaled_dot_product_attention" not in str(error):
            raise
        return make("eager")


@contextlib.contextmanager
def keep_config(model):
    """Undo what is written into the configuration for a training, which would be saved with the model.

    transformers 5.23 switches the cache of keys and values off, TRL 1.16 changes a mixture's router.
    """
    names = ("use_cache", "output_router_logits", "router_aux_loss_coef")
    configs = (model.config, model.config.get_text_config())
    before = [(config, name, getattr(config, name)) for config in configs for name in names
              if hasattr(config, name)]
    yield
    for config, name, value in before:
        setattr(config, name, value)


def build_empty(config, **options):
    """The model of a configuration on the meta device: shapes and no data."""
    with torch.device("meta"):
        # a copy, since a model's parts are written into its configuration
        return with_attention(lambda kind: AutoModelForCausalLM.from_config(
            copy.deepcopy(config), attn_implementation=kind, **options))


def measure_architecture(config) -> dict[str, Any]:
    """What a configuration's model has, as `Facts` name it; takes no memory.

    `parameters`, of these fused `experts`, `vocabulary` (rows of the input embedding), `context` (positions
    that the configuration states), `positions` (that a table has, beyond which no token can stand; None
    without a table) and `attention` (sdpa or eager). It is stored, since a family's code takes some seconds
    to load, and nothing else asks for it before training.
    """
    key = hash_key(config=json.loads(config.to_json_string()), torch=torch.__version__,
                   transformers=transformers.__version__, code=file_sha256(Path(__file__)))
    path = cache_folder() / f"architecture-{key}.json"
    with contextlib.suppress(OSError, ValueError):
        return json.loads(path.read_text(encoding="utf-8"))
    measured = _measure_architecture(config)
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, measured)
    return measured


def _measure_architecture(config) -> dict[str, Any]:
    text_config = config.get_text_config()
    if getattr(config, "is_encoder_decoder", False):
        raise BadInput(f"model_type {config.model_type} has an encoder beside its decoder; take a "
                       "decoder-only language model", field="model")
    try:
        model = build_empty(config)
    except Exception as error:  # of no family with a language model, or of sizes that do not fit
        raise BadInput(f"model_type {config.model_type}: transformers builds no causal language model from "
                       f"its config.json ({one_line(error)}); take a decoder-only one",
                       field="model") from error
    fused, context = set(expert_names(model)), getattr(text_config, "max_position_embeddings", None)
    return {"parameters": model.num_parameters(),
            "experts": sum(weight.numel() for name, weight in model.named_parameters() if name in fused),
            "vocabulary": model.get_input_embeddings().weight.shape[0], "context": context,
            "positions": table_positions(model, context), "attention": model.config._attn_implementation}


def table_positions(model: nn.Module, context: int | None) -> int | None:
    """The positions of the model's shortest table of them, learned or computed; None without one."""
    found = []
    for name, module in model.named_modules():
        if context is None or hasattr(module, "make_weights"):  # a table that grows (XGLM)
            continue
        # RoBERTa counts from behind the padding's row, OPT and BART from an `offset`
        padding = getattr(module, "padding_idx", None)
        skipped = getattr(module, "offset", 0) if padding is None else padding + 1
        for own, tensor in [*vars(module).items(), *module._parameters.items(), *module._buffers.items()]:
            table = isinstance(tensor, torch.Tensor) and tensor.ndim == 2 and POSITION_NAMES.search(
                f"{name}.{own}".lower())
            if table and context <= len(tensor) <= context + TABLE_MARGIN:
                found.append(len(tensor) - skipped)
    return min(found, default=None)


def expert_names(model: nn.Module) -> list[str]:
    """Names of the weights in which a mixture's experts are fused: three dimensions, not a layer each."""
    return [name for name, weight in model.named_parameters() if weight.ndim == 3 and ".experts." in name]


def find_decoder_layers(model: nn.Module) -> tuple[nn.Module, str, nn.ModuleList]:
    """The parent module of the decoder layers, their attribute name in it, and the list of layers itself.

    Raises BadInput where the model has no single list of `num_hidden_layers` layers.
    """
    count = model.config.get_text_config().num_hidden_layers
    lists = [(module, name, child) for module in model.modules() for name, child in module.named_children()
             if isinstance(child, nn.ModuleList) and len(child) == count
             and name in ("layers", "h", "blocks")]
    if len(lists) != 1:
        raise BadInput(f"{type(model).__name__}: its decoder layers cannot be found ({len(lists)} candidates "
                       f"for {count} layers); method freeze needs them, the other methods do not",
                       field="model")
    return lists[0]


@torch.no_grad()
def gives_router_logits(model) -> bool:
    """Whether a mixture gives what its experts can be balanced by, as TRL 1.16 takes it; Doge does not."""
    config = model.config.get_text_config()
    names = ("output_router_logits", "num_experts", "num_experts_per_tok")
    if not all(hasattr(config, name) for name in names):
        return False
    ids = torch.zeros(1, 2, dtype=torch.long, device=model.device)
    try:
        output = model(input_ids=ids, output_router_logits=True, use_cache=False)
    except Exception:  # Flint balances what it never gathered (transformers 5.23)
        return False
    return bool(getattr(output, "router_logits", None))


def one_line(error: Exception) -> str:
    """An error's kind and message in one line of at most 200 characters."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
