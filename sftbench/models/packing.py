"""Rows in one sequence: whether a model keeps them apart, as the loaded model shows, and what is fastest."""

import math
import random
from collections.abc import Callable

import torch
from torch import nn

from ..data.packing import collate_batch, spread_rows
from ..errors import BadInput
from .architecture import one_line, table_positions
from .logits import all_logits, prefix_length

# Tokens of the two rows that share a block and of a third beside them, by the longest of them: of different
# lengths, so long that a recurrent state has something to carry over and DeepSeek V4 something to compress.
ASKED_ROWS, ASKED_TOKENS = (0.8, 0.5, 1), 160
# Of the logits' spread, from which on two computations differ: float32 rounds to 1e-6 of it. Coarser types
# differ as much between a batch and a single row, so ten times that difference counts where it is more.
TOLERANCE, NOISE = 1e-4, 10
# Behind a prefix rows in one sequence come with a mask and rows alone without: by rounding the logits of a
# trained SmolLM2-135M differ by 1.8 of that limit then, where rows see each other by tens of thousands of it.
PREFIX_ROUNDING = 10
ALL_SCORES = 256  # tokens of a sequence up to which attention in bfloat16 on a CPU is faster with all scores


def make_collator(model, pad_token_id: int, packing: bool) -> Callable[[list[dict]], dict]:
    """Blocks to a batch: their rows in as many sequences as this model computes fastest, where it may.

    Behind a prefix each block is one row; where the model keeps rows apart they share sequences all the same.
    """
    prefix = prefix_length(model)
    packing = packing or prefix is not None and keeps_rows_apart(model)
    cost = attention_cost(model) if packing else 0.0
    # beyond their positions some families lack a mask too (GPT-Neo), though each row's positions begin at 0
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    context = context - prefix if context and prefix else context

    def collate(blocks: list[dict]) -> dict[str, torch.Tensor]:
        return collate_batch(spread_rows(blocks, cost, context) if packing else blocks, pad_token_id, packing)

    return collate


def holds_scores(width: int, bf16: bool) -> bool:
    """Whether attention over sequences of so many tokens is computed fastest with all its scores at once.

    In bfloat16 on a CPU it is while they are few: on two cores with AVX512-BF16 forward and back take 2.5 ms
    for four sequences of 80 tokens where the fused kernel takes 5.4, 4.7 and 7.8 ms for two of 164, and no
    less from 512 tokens on (torch 2.13, 9 heads of 64).
    """
    return bf16 and width <= ALL_SCORES and not torch.cuda.is_available()


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


@torch.no_grad()
def ask_packing(model) -> str:
    """Why rows may not share a block of the loaded model; empty where they may, since they do not notice.

    The batch is one as training builds it. Raises BadInput for a model that cannot be trained as a causal
    one: it does not run, gives no numbers, or lets a token see what comes after it.
    """
    model.eval()
    name, rows = type(model).__name__, _asked_rows(model)
    try:
        alone, limit = _read_alone(model, rows)
        short = _logits(model, input_ids=rows[0][None, :len(rows[1])])[0]
        model.generate(input_ids=rows[1].expand(2, -1), attention_mask=torch.ones_like(rows[1].expand(2, -1)),
                       max_new_tokens=2, min_new_tokens=2, do_sample=False)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever a family raises that cannot do without an image, say
        raise BadInput(f"{name} cannot read and write text alone ({one_line(error)}); take a decoder-only "
                       "language model", field="model") from error
    if not _distance(short, alone[0][:len(short)]) <= limit:
        raise BadInput(f"{name}: a token's logits change with the tokens after it, or are no numbers, so it "
                       "is no causal language model; take a decoder-only one (an encoder may be made one by "
                       "is_decoder in its config.json)", field="model")
    return _packed_difference(model, rows, alone, limit)


@torch.no_grad()
def keeps_rows_apart(model) -> bool:
    """Whether rows may share a sequence behind a prefix, which the model's own masks know nothing of.

    Windows and chunks of attention are such masks, and longer than the rows that are tried here.
    """
    config = model.config.get_text_config()
    if getattr(config, "sliding_window", None) or set(getattr(config, "layer_types", None) or ()) - {
            "full_attention"}:
        return False
    training, rows = model.training, _asked_rows(model)
    model.eval()
    try:
        alone, limit = _read_alone(model, rows)
        return not _packed_difference(model, rows, alone, PREFIX_ROUNDING * limit)
    except torch.OutOfMemoryError:
        raise
    except Exception:  # more tokens than positions, say
        return False
    finally:
        model.train(training)


def _read_alone(model, rows: list[torch.Tensor]) -> tuple[list[torch.Tensor], float]:
    """The rows' logits, each alone, and how far others may be from them by rounding, as in a batch of two."""
    alone = [_logits(model, input_ids=row[None])[0] for row in rows]
    noise = max(_distance(row, alone[0]) for row in _logits(model, input_ids=rows[0].expand(2, -1)))
    return alone, max(TOLERANCE * max(logits.std().item() for logits in alone), NOISE * noise)


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
        return f"{type(model).__name__} takes no block of several rows ({one_line(error)})"
    parts = packed[0, :len(first)], packed[0, len(first):len(first) + len(second)], packed[1, :len(third)]
    far = max((_distance(part, row) for part, row in zip(parts, alone, strict=True)),
              key=lambda distance: float("inf") if math.isnan(distance) else distance)
    if far <= limit:
        return ""
    return (f"rows in one block would see each other: their logits change by up to {far:.2g} in "
            f"{type(model).__name__}")


def _asked_rows(model) -> list[torch.Tensor]:
    """Three rows of tokens drawn at random, none of them of a meaning of its own."""
    config = model.config.get_text_config()
    special = {value for name, value in vars(config).items() if name.endswith(("_token_id", "_token_index"))
               and isinstance(value, int)}
    words = [token for token in range(model.get_input_embeddings().weight.shape[0]) if token not in special]
    longest = min(table_positions(model, getattr(config, "max_position_embeddings", None)) or ASKED_TOKENS,
                  ASKED_TOKENS)
    lengths = [int(share * longest) for share in ASKED_ROWS]
    chosen = torch.tensor(random.Random(0).choices(words, k=sum(lengths)), device=model.device)
    return list(chosen.split(lengths))


def _to_device(model, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: values.to(model.device) for name, values in batch.items() if name != "labels"}


def _logits(model, **batch: torch.Tensor) -> torch.Tensor:
    return all_logits(model, **batch).float()


def _distance(one: torch.Tensor, other: torch.Tensor) -> float:
    """The largest difference between two rows' logits; NaN where one is no number."""
    return (one - other).abs().max().item()
