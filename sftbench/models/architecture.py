"""What a model's family can do, found on the model itself, since no list of families stays true.

Sizes are read off a model on PyTorch's meta device, which has shapes and no data. Whether rows may share a
block, and whether a token sees what comes after it, is answered by the loaded model.
"""

import contextlib
import copy
import json
import math
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import AutoModelForCausalLM

from ..data.packing import collate_batch
from ..data.rows import cache_folder
from ..errors import BadInput
from ..runs.folder import write_json
from ..runs.stage_store import file_sha256, hash_key

# Tokens of the two rows that share a block and of a third beside them, by the longest of them: of different
# lengths, so long that a recurrent state has something to carry over and DeepSeek V4 something to compress.
ASKED_ROWS, ASKED_TOKENS = (0.8, 0.5, 1), 160
# Of the logits' spread, from which on two computations differ: float32 rounds to 1e-6 of it. Coarser types
# differ as much between a batch and a single row, so ten times that difference counts where it is more.
TOLERANCE, NOISE = 1e-4, 10
ALL_SCORES = 256  # tokens of a sequence up to which attention in bfloat16 on a CPU is faster with all scores
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


def holds_scores(width: int, bf16: bool) -> bool:
    """Whether attention over sequences of so many tokens is computed fastest with all its scores at once.

    In bfloat16 on a CPU it is while they are few: on two cores with AVX512-BF16 forward and back take 2.5 ms
    for four sequences of 80 tokens where the fused kernel takes 5.4, 4.7 and 7.8 ms for two of 164, and no
    less from 512 tokens on (torch 2.13, 9 heads of 64).
    """
    return bf16 and width <= ALL_SCORES and not torch.cuda.is_available()


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
                       f"its config.json ({_one_line(error)}); take a decoder-only one",
                       field="model") from error
    fused, context = set(expert_names(model)), getattr(text_config, "max_position_embeddings", None)
    return {"parameters": model.num_parameters(),
            "experts": sum(weight.numel() for name, weight in model.named_parameters() if name in fused),
            "vocabulary": model.get_input_embeddings().weight.shape[0], "context": context,
            "positions": _table_positions(model, context), "attention": model.config._attn_implementation}


def _table_positions(model: nn.Module, context: int | None) -> int | None:
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


def attention_cost(model: nn.Module) -> float:
    """What a token's attention to one more token costs, as a share of all else that the token costs.

    By multiplications: two for each number of the heads in every layer, beside one for each weight that is
    not of the embeddings. The pocket's steps (four blocks of 128, 256, 512 tokens) give 0.8 of it.
    """
    config = model.config.get_text_config()
    embeddings = {id(layer.weight): layer.weight.numel() for layer in (
        model.get_input_embeddings(), model.get_output_embeddings())}
    weights = model.num_parameters() - sum(embeddings.values())
    return 2 * config.num_hidden_layers * config.hidden_size / max(weights, 1)


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


@torch.no_grad()
def ask_packing(model) -> str:
    """Why rows may not share a block of the loaded model; empty where they may, since they do not notice.

    The batch is one as training builds it. Raises BadInput for a model that cannot be trained as a causal
    one: it does not run, gives no numbers, or lets a token see what comes after it.
    """
    model.eval()
    name, rows = type(model).__name__, _asked_rows(model)
    try:
        alone = [_logits(model, input_ids=row[None])[0] for row in rows]
        short = _logits(model, input_ids=rows[0][None, :len(rows[1])])[0]
        twice = _logits(model, input_ids=rows[0].expand(2, -1))
        model.generate(input_ids=rows[1].expand(2, -1), attention_mask=torch.ones_like(rows[1].expand(2, -1)),
                       max_new_tokens=2, min_new_tokens=2, do_sample=False)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever a family raises that cannot do without an image, say
        raise BadInput(f"{name} cannot read and write text alone ({_one_line(error)}); take a decoder-only "
                       "language model", field="model") from error
    noise = max(_distance(row, alone[0]) for row in twice)
    limit = max(TOLERANCE * max(logits.std().item() for logits in alone), NOISE * noise)
    if not _distance(short, alone[0][:len(short)]) <= limit:
        raise BadInput(f"{name}: a token's logits change with the tokens after it, or are no numbers, so it "
                       "is no causal language model; take a decoder-only one (an encoder may be made one by "
                       "is_decoder in its config.json)", field="model")
    return _packed_difference(model, rows, alone, limit)


def _packed_difference(model, rows: list[torch.Tensor], alone: list[torch.Tensor], limit: float) -> str:
    """How the packed rows' logits differ from theirs alone; empty where they do not."""
    first, second, third = (row.tolist() for row in rows)
    blocks = [{"input_ids": first + second, "seq_lengths": [len(first), len(second)]},
              {"input_ids": third, "seq_lengths": [len(third)]}]
    batch = collate_batch([block | {"labels": block["input_ids"]} for block in blocks], 0, packed=True)
    try:
        packed = _logits(model, **_to_device(model, batch))
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        return f"{type(model).__name__} takes no block of several rows ({_one_line(error)})"
    parts = packed[0, :len(first)], packed[0, len(first):len(first) + len(second)], packed[1, :len(third)]
    far = max((_distance(part, row) for part, row in zip(parts, alone, strict=True)),
              key=lambda distance: float("inf") if math.isnan(distance) else distance)
    if far <= limit:
        return ""
    return (f"rows in one block would see each other: their logits change by up to {far:.2g} in "
            f"{type(model).__name__}")


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def _asked_rows(model) -> list[torch.Tensor]:
    """Three rows of tokens drawn at random, none of them of a meaning of its own."""
    config = model.config.get_text_config()
    special = {value for name, value in vars(config).items() if name.endswith(("_token_id", "_token_index"))
               and isinstance(value, int)}
    words = [token for token in range(model.get_input_embeddings().weight.shape[0]) if token not in special]
    longest = min(_table_positions(model, getattr(config, "max_position_embeddings", None)) or ASKED_TOKENS,
                  ASKED_TOKENS)
    lengths = [int(share * longest) for share in ASKED_ROWS]
    chosen = torch.tensor(random.Random(0).choices(words, k=sum(lengths)), device=model.device)
    return list(chosen.split(lengths))


def _to_device(model, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: values.to(model.device) for name, values in batch.items() if name != "labels"}


def _logits(model, **batch: torch.Tensor) -> torch.Tensor:
    return model(**batch, use_cache=False).logits.float()


def _distance(one: torch.Tensor, other: torch.Tensor) -> float:
    """The largest difference between two rows' logits; NaN where one is no number."""
    return (one - other).abs().max().item()
