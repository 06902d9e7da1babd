"""The five methods: which parameters train. Each, in `METHOD_FUNCTIONS`, makes a loaded model trainable.

A method only sets the trainable set; the loop, the data and the loss are the same for all. `save_stage_model`
turns the trained model into what the next stage starts from, such that the function it computes is kept.
"""

from pathlib import Path

import torch
from peft import (
    LoraConfig,
    PeftModel,
    PrefixTuningConfig,
    get_peft_model,
    initialize_kv_prefix_from_past_key_values,
    initialize_kv_prefix_from_text,
)
from torch import nn
from transformers import AutoModelForCausalLM, GenerationConfig
from transformers.pytorch_utils import Conv1D

from ..errors import BadInput
from ..recipes.recipe import suggest_name
from ..recipes.stages import StageSettings
from .architecture import build_empty, expert_names
from .parts import check_rebuild, freeze

# Of these families peft 0.21 refuses the output layer, whose weight their kernels take past any adapter.
MAMBA, MAMBA_OUTPUT = ("falcon_h1", "mamba", "mamba2", "falcon_mamba", "nemotron_h"), ["out_proj"]


def full(model, tokenizer, settings: StageSettings, text: str):
    """Train every weight."""
    return model.requires_grad_(True)


def lora(model, tokenizer, settings: StageSettings, text: str):
    """Add low-rank matrices to the weight matrices and train only those (arXiv:2106.09685).

    The same function serves QLoRA (arXiv:2305.14314), whose model is loaded quantised.
    """
    targets, fused, left = settings.lora_target_modules, None, None
    if targets == "all-linear":
        left = MAMBA_OUTPUT if model.config.model_type in MAMBA else None
        # peft 0.21 adds fused experts by itself for some families only
        fused = sorted({".".join(name.split(".")[-2:]) for name in expert_names(model)}) or None
    else:
        targets = _target_modules(model, targets)
    try:
        return get_peft_model(model, LoraConfig(
            task_type="CAUSAL_LM", r=settings.lora_r, lora_alpha=settings.lora_alpha,
            lora_dropout=settings.lora_dropout, target_modules=targets, exclude_modules=left,
            target_parameters=fused,
            use_rslora=settings.use_rslora, use_dora=settings.use_dora))
    except ValueError as error:
        raise BadInput(f"LoRA cannot be added to {type(model).__name__}: {error}", field="method") from error


def _target_modules(model, targets: str) -> list[str]:
    """The modules that `lora_target_modules` names; raises BadInput for one that LoRA cannot adapt."""
    fit = [name for name, module in model.named_modules()
           if isinstance(module, (nn.Linear, nn.Embedding, Conv1D))]
    wanted, shared = [name.strip() for name in targets.split(",") if name.strip()], _shared_weights(model)
    for target in wanted:
        found = [name for name in fit if f".{name}".endswith(f".{target}")]
        if not found:
            known = sorted({name.split(".")[-1] for name in fit if name not in shared})
            raise _bad_targets(f"{type(model).__name__} has no module {target!r} that LoRA fits"
                               f"{suggest_name(target, known)}; there is {', '.join(known)}, or all-linear")
        if users := next((shared[name] for name in found if name in shared), None):
            raise _bad_targets(f"{' and '.join(users)} are one weight, of which LoRA would change one use in "
                               "training and all once it is merged; leave them out, or take method full, or "
                               "freeze with new_head, which unties an output head first")
        if model.get_output_embeddings() in map(model.get_submodule, found):  # TRL 1.16 takes its bare weight
            raise _bad_targets(f"the loss is computed from {target}'s own weight, so an adapter of it would "
                               "never be trained; leave it out, or take method freeze with head")
    return wanted


def _bad_targets(fault: str) -> BadInput:
    return BadInput(f"lora_target_modules: {fault}", field="lora_target_modules")


def _shared_weights(model) -> dict[str, list[str]]:
    """Of each module whose weight other modules use too: the names of all of them."""
    users = {}
    for name, module in model.named_modules():
        if isinstance(weight := getattr(module, "weight", None), nn.Parameter):
            users.setdefault(id(weight), []).append(name)
    return {name: names for names in users.values() if len(names) > 1 for name in names}


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
def ask_lora(model, settings: StageSettings) -> str:
    """Why a loaded model does not run with LoRA as a stage of these settings adds it; empty where it does."""
    name = type(model).__name__
    ids = torch.arange(2, 18, device=model.device)[None] % model.get_input_embeddings().weight.shape[0]
    try:
        lora(model, None, settings, "")(input_ids=ids, use_cache=False)
    except BadInput:
        raise
    except Exception as error:  # of layers that are used as more than rows times the input (DeepSeek V4)
        return f"{name} does not run with LoRA on {settings.lora_target_modules} ({error})"
    return ""


@torch.no_grad()
def ask_quantised(model, settings: StageSettings) -> str:
    """Why a model that was loaded in 4 bit cannot be trained by QLoRA; empty where it can."""
    name = type(model).__name__
    ids = torch.arange(2, 18, device=model.device)[None] % model.get_input_embeddings().weight.shape[0]
    try:
        adapted = lora(model, None, settings, "")
        finite = all(adapted.train(mode)(input_ids=ids, use_cache=False).logits.isfinite().all()
                     for mode in (True, False))  # to answer, RWKV scales weights in place (transformers 5.23)
        adapted.unload().dequantize()
    except BadInput:
        raise
    except Exception as error:  # whatever a family raises that computes with the numbers of its weights
        return f"{name} does not run in 4 bit ({type(error).__name__}: {error})"
    return "" if finite else f"{name} gives no numbers in 4 bit"


SAME_LOGITS = 0.05  # of their spread: bfloat16 rounds to less, and a prefix read otherwise changes more


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
        cache = model(input_ids=batch["input_ids"][:1], use_cache=True).past_key_values
        initialize_kv_prefix_from_past_key_values(prefixed, past_key_values=cache, num_virtual_tokens=4)
        answer = prefixed.generate(**batch, max_new_tokens=2, min_new_tokens=2, do_sample=False,
                                   return_dict_in_generate=True, output_logits=True)
        read = answer.sequences[:, :-1]
        again = prefixed(input_ids=read, attention_mask=torch.ones_like(read), use_cache=False).logits[:, -1]
    except Exception as error:  # whatever a family's cache makes of keys and values that it did not write
        return f"{name} takes no prefix of keys and values ({type(error).__name__}: {error})"
    if after.shape != before.shape or not after.isfinite().all() or torch.equal(after, before):
        return f"{name} does not read a prefix of keys and values"
    # as they come from the model, since generate() forbids the end that a trained one may give at once
    if not (answer.logits[-1] - again).abs().max() <= SAME_LOGITS * again.std():
        return f"{name} answers otherwise than it trains under a prefix"
    return ""


def check_parts(config, settings: StageSettings):
    """The configuration after a stage of these settings, where a model of this one can be trained so.

    Raises BadInput for parts that the model lacks, for LoRA on shared weights, and for parts which, added to
    this family, could not be loaded again.
    """
    if settings.method not in ("freeze", "lora", "qlora"):
        return config
    model = build_empty(config)
    with torch.device("meta"):
        model = METHOD_FUNCTIONS[settings.method](model, None, settings, "")
    if settings.method == "freeze" and model.config.to_dict() != config.to_dict():
        check_rebuild(model)
    return model.config


METHOD_FUNCTIONS = {"full": full, "lora": lora, "qlora": lora, "ptuning_v2": ptuning_v2, "freeze": freeze}


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


def compute_in_float32(model):
    """The trained model with its own weights widened to float32, in which it computes from now on.

    LoRA merged into bfloat16 is rounded away: of SmolLM2-135M after 120 steps 0.14 nats were lost. 4-bit
    weights stay, and bitsandbytes (0.50) widens what it reads from them to the type it computes in.
    """
    model.zero_grad()
    for tensor in [*model.parameters(), *model.buffers()]:
        if tensor.dtype in (torch.bfloat16, torch.float16):
            tensor.data = tensor.data.float()
    for module in model.modules():
        if hasattr(module, "compute_type_is_set"):
            module.compute_dtype = torch.float32
    return model


def save_stage_model(model, method: str, folder: Path):
    """Write the trained stage into `folder` and return the model that computes the same function.

    `full` and `freeze`: weights in `model/`. LoRA: adapter in `adapter/`, merged weights in `model/`; QLoRA
    the same after dequantising, since merging into 4-bit weights rounds the adapter away. P-tuning v2 has
    nothing to merge: only `adapter/` is written, and the prefix goes on top of the parent's weights. Merged
    and written in float32, into the weights that were trained beside: a base loaded anew is not rounded as
    that one was.
    """
    folder, model = Path(folder), compute_in_float32(model)
    if method in ("lora", "qlora", "ptuning_v2"):
        model.save_pretrained(folder / "adapter")
    if method == "ptuning_v2":
        return model
    if method == "lora":
        model = model.merge_and_unload()
    if method == "qlora":
        plain = compute_in_float32(_with_conv1d(model.unload().dequantize()))
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
