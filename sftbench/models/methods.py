"""The five methods: which parameters train. Each, in `METHOD_FUNCTIONS`, makes a loaded model trainable.

A method only sets the trainable set; the loop, the data and the loss are the same for all. `save_stage_model`
turns the trained model into what the next stage starts from, such that the function it computes is kept.
"""

import copy
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, PrefixTuningConfig, get_peft_model, initialize_kv_prefix_from_text
from torch import nn
from transformers import AutoModelForCausalLM, GenerationConfig
from transformers.pytorch_utils import Conv1D

from ..errors import BadInput
from ..recipes.recipe import suggest_name
from ..recipes.stages import StageSettings
from .architecture import build_empty, expert_names, find_decoder_layers

# The layers that write into the residual stream; zero weights there make a new block the identity.
OUTPUT_PROJECTIONS = ("o_proj", "out_proj", "c_proj", "dense", "dense_4h_to_h", "down_proj", "fc2", "w2")


def full(model, tokenizer, settings: StageSettings, text: str):
    """Train every weight."""
    return model.requires_grad_(True)


def lora(model, tokenizer, settings: StageSettings, text: str):
    """Add low-rank matrices to the weight matrices and train only those (arXiv:2106.09685).

    The same function serves QLoRA (arXiv:2305.14314), whose model is loaded quantised.
    """
    targets, fused = settings.lora_target_modules, None
    if targets == "all-linear":  # peft 0.21 adds fused experts by itself for some families only
        fused = sorted({".".join(name.split(".")[-2:]) for name in expert_names(model)}) or None
    else:
        targets = _target_modules(model, targets)
    try:
        return get_peft_model(model, LoraConfig(
            task_type="CAUSAL_LM", r=settings.lora_r, lora_alpha=settings.lora_alpha,
            lora_dropout=settings.lora_dropout, target_modules=targets, target_parameters=fused,
            use_rslora=settings.use_rslora, use_dora=settings.use_dora))
    except ValueError as error:
        raise BadInput(f"LoRA cannot be added to {type(model).__name__}: {error}", field="method") from error


def _target_modules(model, targets: str) -> list[str]:
    """The modules that `lora_target_modules` names; raises BadInput for one that the model lacks."""
    fit = [name for name, module in model.named_modules()
           if isinstance(module, (nn.Linear, nn.Embedding, Conv1D))]
    wanted = [target.strip() for target in targets.split(",") if target.strip()]
    for target in wanted:
        if not any(f".{name}".endswith(f".{target}") for name in fit):
            known = sorted({name.split(".")[-1] for name in fit})
            raise BadInput(f"lora_target_modules: {type(model).__name__} has no module {target!r} that LoRA "
                           f"fits{suggest_name(target, known)}; there is {', '.join(known)}, or all-linear",
                           field="lora_target_modules")
    return wanted


def ptuning_v2(model, tokenizer, settings: StageSettings, text: str):
    """Train a prefix of keys and values in every layer (arXiv:2110.07602); the model's own weights stay.

    A prefix that starts from `text` is the model's own cache of that text. A model that already carries a
    prefix of an earlier stage goes on with it.
    """
    if isinstance(model, PeftModel):
        model.active_peft_config.inference_mode = False  # peft loads a prefix for inference only
        model.prompt_encoder.requires_grad_(True)
        return model
    model = get_peft_model(model, PrefixTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=settings.num_virtual_tokens, prefix_projection=False))
    if settings.prefix_init == "text":
        text = settings.prefix_init_text or text
        while len(tokenizer(text)["input_ids"]) < settings.num_virtual_tokens:
            text = text + "\n" + text
        model.eval()
        # more of the text would not be used, and might not fit the model's positions or its windows' cache
        initialize_kv_prefix_from_text(model, tokenizer, text=text, use_chat_template=False,
                                       max_length=settings.num_virtual_tokens)
    return model


@torch.no_grad()
def ask_prefix(model) -> str:
    """Why a loaded model takes no prefix; empty where it does. It trains, answers and is changed by one."""
    name, ids = type(model).__name__, torch.arange(2, 34, device=model.device).view(2, 16)
    batch = {"input_ids": ids % model.get_input_embeddings().weight.shape[0],
             "attention_mask": torch.ones_like(ids)}
    try:
        before = model.eval()(**batch, use_cache=False).logits
        prefixed = get_peft_model(model, PrefixTuningConfig(
            task_type="CAUSAL_LM", num_virtual_tokens=4, prefix_projection=False)).eval()
        after = prefixed(**batch, use_cache=False).logits
        answer = prefixed.generate(**batch, max_new_tokens=2, min_new_tokens=2, do_sample=False)
        again = prefixed(input_ids=answer[:, :-1], attention_mask=torch.ones_like(answer[:, :-1]),
                         use_cache=False).logits[:, -1].argmax(-1)
    except Exception as error:  # whatever a family's cache makes of keys and values that it did not write
        return f"{name} takes no prefix of keys and values ({type(error).__name__}: {error})"
    if after.shape != before.shape or not after.isfinite().all() or torch.equal(after, before):
        return f"{name} does not read a prefix of keys and values"
    if not torch.equal(again, answer[:, -1]):
        return f"{name} answers otherwise than it trains under a prefix"
    return ""


def freeze(model, tokenizer, settings: StageSettings, text: str):
    """Train chosen parts only (`trainable_parts`): layers, norm or head, or parts added as the identity.

    `last:N`, `layers:A-B` (counted from 0), `head`, `norm`, `new_blocks:N`, `new_head`; several with commas.
    """
    model.requires_grad_(False)
    for part in settings.trainable_parts.split(","):
        name, _, value = part.strip().partition(":")
        if name not in PARTS:
            raise _bad_parts(f"unknown part {part.strip()!r}; parts are {', '.join(PARTS)}")
        for module in PARTS[name](model, value):
            module.requires_grad_(True)
    return model


def check_parts(config, settings: StageSettings) -> None:
    """Raise BadInput where a stage's settings name parts that a model of this configuration lacks."""
    if settings.method in ("freeze", "lora", "qlora"):
        model = build_empty(config)
        with torch.device("meta"):
            METHOD_FUNCTIONS[settings.method](model, None, settings, "")


METHOD_FUNCTIONS = {"full": full, "lora": lora, "qlora": lora, "ptuning_v2": ptuning_v2, "freeze": freeze}


def _bad_parts(fault: str) -> BadInput:
    return BadInput(f"trainable_parts: {fault}", field="trainable_parts")


def _last_layers(model, value: str) -> list[nn.Module]:
    layers = list(find_decoder_layers(model)[2])
    return layers[-_parse_number("last", value, len(layers)):]


def _layer_range(model, value: str) -> list[nn.Module]:
    layers = list(find_decoder_layers(model)[2])
    first, _, last = value.partition("-")
    if not (first.isdigit() and last.isdigit() and int(first) <= int(last) < len(layers)):
        raise _bad_parts(f"layers:{value} is not a range within 0-{len(layers) - 1}")
    return layers[int(first):int(last) + 1]


def _head(model, value: str) -> list[nn.Module]:
    if _tied(model):
        raise _bad_parts("this model's output head is its input embedding, so training it changes both; "
                         "take new_head, which unties them first")
    return [model.get_output_embeddings()]


def _norm(model, value: str) -> list[nn.Module]:
    """The normalisation between the last layer and the output head."""
    norms = [child for name, child in find_decoder_layers(model)[0].named_children()
             if "norm" in type(child).__name__.lower() and "emb" not in name]
    if not norms:
        raise BadInput(f"{type(model).__name__}: no final normalisation beside its layers", field="model")
    return norms[-1:]


def _new_head(model, value: str) -> list[nn.Module]:
    """An output head of its own, at first equal to the shared embedding; an earlier stage's goes on."""
    head = model.get_output_embeddings()
    if not _tied(model):
        return [head]
    head.weight = nn.Parameter(model.get_input_embeddings().weight.detach().clone())
    model.config.tie_word_embeddings = model.config.get_text_config().tie_word_embeddings = False
    # transformers lists tied weights per instance, and would save one tensor for both
    model.all_tied_weights_keys = {}
    return [head]


def _new_blocks(model, value: str) -> list[nn.Module]:
    """N copies of layers, spread over the depth, whose output projections are zero (arXiv:2401.02415).

    A few tokens check that they leave the function unchanged. Where an earlier stage added blocks (the
    configuration's `added_blocks`), those train on and no more are added.
    """
    parent, name, layers = find_decoder_layers(model)
    if getattr(model.config, "added_blocks", None):
        return [layers[index] for index in model.config.added_blocks]
    count = _parse_number("new_blocks", value, len(layers))
    probe = torch.arange(8, device=next(model.parameters()).device)[None]
    probe %= model.config.get_text_config().vocab_size
    before = _logits(model, probe)
    borders = {round((number + 1) * len(layers) / count) - 1 for number in range(count)}
    sources = sorted([*range(len(layers)), *borders])  # a copy comes after its layer
    indices = [index for index in range(1, len(sources)) if sources[index] == sources[index - 1]]
    blocks = [_silent_copy(layers[source]) if index in indices else layers[source]
              for index, source in enumerate(sources)]
    setattr(parent, name, nn.ModuleList(blocks))
    _renumber(model.config.get_text_config(), blocks, sources)
    model.config.added_blocks = indices
    if before is not None and not torch.equal(before, _logits(model, probe)):
        raise BadInput(f"new_blocks: a copied layer of {type(model).__name__} with zero output projections "
                       "still changes the function, so blocks cannot be added to this family",
                       field="trainable_parts")
    return [blocks[index] for index in indices]


PARTS = {"last": _last_layers, "layers": _layer_range, "head": _head, "norm": _norm,
         "new_blocks": _new_blocks, "new_head": _new_head}


def _parse_number(name: str, value: str, limit: int) -> int:
    if not (value.isdigit() and 1 <= int(value) <= limit):
        raise _bad_parts(f"{name}:{value or '?'} needs a number from 1 to {limit}")
    return int(value)


def _tied(model) -> bool:
    return model.get_output_embeddings().weight is model.get_input_embeddings().weight


@torch.no_grad()
def _logits(model, tokens: torch.Tensor) -> torch.Tensor | None:
    """The logits, or None on the meta device, where a model has no values."""
    if tokens.is_meta:
        return None
    model.eval()
    return model(input_ids=tokens, use_cache=False).logits


def _silent_copy(layer: nn.Module) -> nn.Module:
    """A copy of a decoder layer whose output projections, weights and biases, are zero."""
    block = copy.deepcopy(layer)
    for name, parameter in block.named_parameters():
        if any(word in OUTPUT_PROJECTIONS for word in name.split(".")):
            nn.init.zeros_(parameter)
    return block


def _renumber(config, blocks: list[nn.Module], sources: list[int]) -> None:
    """Give every layer its index (the cache needs it) and stretch the configuration's per-layer lists."""
    for index, block in enumerate(blocks):
        for module in block.modules():
            if isinstance(getattr(module, "layer_idx", None), int):
                module.layer_idx = index
    if getattr(config, "layer_types", None):
        config.layer_types = [config.layer_types[source] for source in sources]
    config.num_hidden_layers = len(blocks)


def trainable_parameters(model) -> dict[str, int]:
    """Names and sizes of the parameters that train."""
    return {name: weight.numel() for name, weight in model.named_parameters() if weight.requires_grad}


def _with_conv1d(model):
    """The model with GPT-2's transposed layers, which bitsandbytes 0.50 turns into linear ones for good."""
    with torch.device("meta"):
        family = AutoModelForCausalLM.from_config(model.config)
    for name, kind in family.named_modules():
        linear = model.get_submodule(name)
        if isinstance(kind, Conv1D) and isinstance(linear, nn.Linear):
            layer = Conv1D(linear.out_features, linear.in_features).to(linear.weight.device)
            layer.weight = nn.Parameter(linear.weight.detach().T.contiguous())
            layer.bias = nn.Parameter(linear.bias.detach())
            model.set_submodule(name, layer)
    return model


def save_stage_model(model, method: str, folder: Path):
    """Write the trained stage into `folder` and return the model that computes the same function.

    `full` and `freeze`: weights in `model/`. LoRA: adapter in `adapter/`, merged weights in `model/`; QLoRA
    the same after dequantising, since merging into 4-bit weights rounds the adapter away. P-tuning v2 has
    nothing to merge: only `adapter/` is written, and the prefix goes on top of the parent's weights.
    """
    folder = Path(folder)
    if method in ("lora", "qlora", "ptuning_v2"):
        model.save_pretrained(folder / "adapter")
    if method == "ptuning_v2":
        return model
    if method == "lora":
        model = model.merge_and_unload()
    if method == "qlora":
        plain = _with_conv1d(model.unload().dequantize())
        model = PeftModel.from_pretrained(plain, folder / "adapter").merge_and_unload()
    _save_weights(model, folder / "model")
    return model


def _save_weights(model, folder: Path) -> None:
    """Write a model; its generation settings as they are, whatever counts of them.

    transformers (5.23) refuses to save settings with a flag that does not count (`temperature` without
    `do_sample`) once it has filled in the tokenizer's ends, which would lose a training at its end.
    """
    settings, model.generation_config = model.generation_config, GenerationConfig()
    model.save_pretrained(folder)
    model.generation_config = settings
    settings.to_json_file(folder / "generation_config.json", keys_to_pop=["compile_config"])
