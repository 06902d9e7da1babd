"""What a stage's training holds in memory, counted on a model without weights before anything is loaded.

The stage's model is built on PyTorch's meta device, where tensors have shapes and no data, and takes one step
forward and back there, while every tensor's size is added up and taken off again as it would be for real.
That covers every family, method and option alike. It predicts tensors: glibc keeps freed pieces of changing
sizes, and a process that trains for long on a CPU in bfloat16 took up to a third more.
"""

import contextlib
import json
import resource
import sys
import weakref
from dataclasses import asdict, replace
from unittest import mock

import psutil
import torch
from torch import nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..models.architecture import build_empty
from ..models.loading import select_device
from ..models.methods import METHOD_FUNCTIONS, trainable_parameters
from ..models.packing import holds_scores
from ..recipes.stages import StageSettings

# Numbers up to which the logits of a batch are in memory at once: 64 MiB in float32 on a GPU, whose kernels
# beyond are fast, and 512 MiB on a CPU, where each piece is computed twice (TRL 1.16).
MAX_LOGITS = {"cuda": 2**24, "cpu": 2**27}
LOSS_TILE = (4096, 32768)  # tokens by vocabulary that TRL 1.16 takes at once where there are more
NF4_BYTES = {True: 0.5 + 1 / 64, False: 0.5 + 4 / 64}  # a weight's 4 bit, and its share of a block's scale
# Settings that move no byte: a prediction holds for all their values.
IRRELEVANT_SETTINGS = ("learning_rate", "warmup_ratio", "num_train_epochs", "max_steps", "max_length",
                       "weight_decay", "max_grad_norm", "lr_scheduler_type", "seed", "prefix_init",
                       "prefix_init_text")
_predicted: dict[str, dict] = {}  # of this process, since a look and a run need the same


def max_logits() -> int:
    """Numbers that the logits of a batch may have here, to be computed all at once."""
    return MAX_LOGITS[select_device().type]


def read_memory() -> int:
    """Memory in use: on CUDA the peak since the stage began, else this process's resident memory."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return psutil.Process().memory_info().rss


def read_peak_memory() -> int:
    """The peak of memory since `reset_peak_memory`, CUDA's or resident; off Linux since the process began."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    with contextlib.suppress(OSError, StopIteration):
        with open("/proc/self/status", encoding="utf-8") as file:
            return int(next(line for line in file if line.startswith("VmHWM")).split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def reset_peak_memory() -> None:
    """Let `read_peak_memory` count from now on."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w", encoding="utf-8") as file:
        file.write("5")


def predict_memory(config, settings: StageSettings, tokenizer, width: int,
                   trained: int | None = None) -> dict[str, int]:
    """Bytes of `weights`, `gradients`, `optimiser` and `activations` at the peak of a step, by their sum.

    `width` is what a block of the batch has computed, in tokens; `trained` are the tokens that train in all
    of the batch (default: all). `activations` are all that is not of the other three:
    what the backward pass needs, and what is there for a moment only. `hand_over` is what storing the stage
    takes beyond all of these, since its weights are merged and scored in float32.
    """
    relevant = asdict(settings) | dict.fromkeys(IRRELEVANT_SETTINGS)
    trained = trained or settings.per_device_train_batch_size * width
    key = json.dumps([config.to_dict(), relevant, width, trained], default=str, sort_keys=True)
    if key not in _predicted:
        dtype = torch.bfloat16 if settings.bf16 else torch.float32
        try:
            _predicted[key] = _predict_memory(config, settings, tokenizer, (width, trained), dtype)
        except RuntimeError:  # grouped experts are known to the meta device in bfloat16 only (torch 2.13)
            parts = _predict_memory(config, settings, tokenizer, (width, trained), torch.bfloat16)
            _predicted[key] = parts | {"activations": parts["activations"] * 2}
        parts = _predicted[key]
        parts["hand_over"] = max(parts["hand_over"] - sum(parts.values()) + parts["hand_over"], 0)
    return dict(_predicted[key])


def _predict_memory(config, settings: StageSettings, tokenizer, shape: tuple[int, int],
                    dtype: torch.dtype) -> dict[str, int]:
    with torch.device("meta"):
        model = build_empty(config, dtype=dtype)
        linears = [module.weight.numel() for module in model.modules()
                   if isinstance(module, nn.Linear) and module is not model.get_output_embeddings()]
        stored = model.num_parameters()
        model = METHOD_FUNCTIONS[settings.method](
            model, tokenizer, replace(settings, prefix_init="random"), "")
        trained = sum(trainable_parameters(model).values())
        moving = _step_bytes(model, settings, *shape, config.get_text_config().vocab_size)
    added = max(sum(parameter.numel() for parameter in model.parameters()) - stored, 0)
    loaded = 2 if settings.bf16 and settings.method in ("lora", "qlora", "ptuning_v2") else 4
    weights = stored * loaded + added * 4
    # as they were counted in `moving`
    gradients = sum(parameter.nbytes for parameter in model.parameters() if parameter.requires_grad)
    if settings.method == "qlora" and linears:
        packed = NF4_BYTES[settings.bnb_4bit_use_double_quant]
        weights += int(sum(linears) * (packed - loaded))
        moving += max(linears) * loaded  # one matrix at a time is dequantised
    elif settings.bf16 and loaded == 4:
        moving += trained * 2  # autocast keeps a copy of what trains
    merged = 2 * max(linears, default=0) if settings.method in ("lora", "qlora") else 0
    return {"weights": weights, "gradients": trained * 4, "optimiser": trained * 8,
            "activations": max(moving - gradients, 0), "hand_over": (stored + added + merged) * 4}


def _step_bytes(model, settings: StageSettings, width: int, logits: int, vocabulary: int) -> int:
    """The peak, over one step forward and back, of all that comes and goes beside the weights."""
    batch = settings.per_device_train_batch_size
    tiled = logits * vocabulary > max_logits()
    if settings.gradient_checkpointing:
        model.activation_checkpointing_enable()
    model.train()
    ids = torch.zeros(batch, width, dtype=torch.long)
    # a complete mask: on the meta device no library can look into a short one
    mask = (torch.ones_like(ids) if settings.method == "ptuning_v2"
            else torch.ones(batch, 1, width, width, dtype=torch.bool))
    # on the meta device PyTorch 2.13 takes the one attention that holds all scores
    fused = contextlib.nullcontext() if holds_scores(width, settings.bf16) else mock.patch.object(
        functional, "scaled_dot_product_attention",
        lambda query, key, value, *_, **__: _Attention.apply(query, key, value))
    with _Tally(limit=batch * width * vocabulary if tiled else None) as counted, fused:
        if not tiled:
            model.get_output_embeddings().register_forward_pre_hook(
                lambda layer, inputs: (inputs[0].flatten(0, 1)[:logits][None], *inputs[1:]))
        output = model(input_ids=ids, attention_mask=mask, use_cache=False).logits.flatten(0, 1)
        functional.cross_entropy(output.float(), ids.flatten()[:len(output)]).backward()
    if not tiled:
        return counted.peak
    tile = min(batch * width, LOSS_TILE[0]) * min(vocabulary, LOSS_TILE[1]) * 4
    head = model.get_output_embeddings().weight
    return counted.peak + 2 * tile + head.numel() * 4 * head.requires_grad


class _Tally(TorchDispatchMode):
    """Adds up the bytes of every tensor that an operation creates, until it is freed; `peak` is the maximum.

    Tensors of `limit` numbers and more are passed over: logits that the real step never holds.
    """

    def __init__(self, limit: int | None):
        super().__init__()
        self.limit, self.now, self.peak, self.sizes = limit, 0, 0, {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and not (self.limit and tensor.numel() >= self.limit):
                storage = tensor.untyped_storage()
                if storage._cdata not in self.sizes:
                    self.sizes[storage._cdata] = storage.nbytes()
                    self.now += storage.nbytes()
                    self.peak = max(self.peak, self.now)
                    weakref.finalize(storage, self._free, storage._cdata)
        return result

    def _free(self, key: int) -> None:
        self.now -= self.sizes.pop(key, 0)


class _Attention(torch.autograd.Function):
    """Attention as a fused kernel holds it: inputs, output and one number a query; nothing is computed."""

    @staticmethod
    def forward(ctx, query, key, value):
        """An output of the query's shape."""
        out = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, out, query.new_empty(query.shape[:-1], dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx, _):
        """Gradients of the inputs' shapes."""
        return tuple(torch.empty_like(tensor) for tensor in ctx.saved_tensors[:3])
