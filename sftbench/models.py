"""Models and tokenizers: find them, load them safely, and name their parts. Nothing is trained here."""

import contextlib
import ctypes
import gc
import hashlib
import os
import sys
import warnings
from pathlib import Path

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedTokenizerBase,
)

from . import pocket, template
from .errors import BadInput
from .store import sha256_of


def device() -> torch.device:
    """CUDA where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def has_bf16() -> bool:
    """Whether the accelerator computes in bfloat16 by itself; on a CPU it brought nothing at small sizes."""
    return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)


def locate(name: str) -> str:
    """A model's folder for the pocket's names and for local folders, else the hub name as it is.

    Raises BadInput for a local path that is not there or has no safetensors weights.
    """
    if name in pocket.FOLDERS:
        return str(pocket.FOLDERS[name])
    path = Path(name)
    if path.is_dir():
        if not (path / "config.json").exists():
            raise BadInput(f"{path}: no config.json; a model folder as save_pretrained writes it is needed")
        if not list(path.glob("*.safetensors")):
            raise BadInput(f"{path}: no .safetensors weights; other formats can carry code and are not read")
        return str(path)
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") != 1:
        raise BadInput(f"model {name!r}: no such folder, and no hub name of the form owner/name; "
                       f"embedded models are {', '.join(pocket.FOLDERS)}")
    return name


def load_config(name: str, revision: str | None = None):
    """The model's configuration; raises BadInput with the command that fetches a model not at hand."""
    place = locate(name)
    try:
        return AutoConfig.from_pretrained(place, revision=revision, trust_remote_code=False)
    except (OSError, ValueError) as error:
        if Path(place).is_dir():
            raise BadInput(f"{place}: its config.json cannot be used: {error}") from error
        at = f" --revision {revision}" if revision else ""
        raise BadInput(f"model {name!r} cannot be read; fetch it with: hf download {name}{at}") from error


def revision_of(name: str, revision: str | None = None) -> str:
    """What pins the weights: a hub model's commit, or a hash over a folder's configuration and weights."""
    place = locate(name)
    if not Path(place).is_dir():
        return load_config(name, revision)._commit_hash
    files = sorted([*Path(place).glob("*.safetensors"), *Path(place).glob("*.json"),
                    *Path(place).glob("*.jinja")])
    digests = "".join(f"{path.name} {sha256_of(path)}\n" for path in files)
    return hashlib.sha256(digests.encode()).hexdigest()[:20]


def load_tokenizer(name: str, revision: str | None = None) -> PreTrainedTokenizerBase:
    """The model's tokenizer, padding on the left, with a pad token and a chat template in any case."""
    place = name if (Path(name) / "tokenizer_config.json").exists() else locate(name)
    tokenizer = AutoTokenizer.from_pretrained(place, revision=revision, trust_remote_code=False)
    if tokenizer.eos_token is None:
        raise BadInput(f"{name}: its tokenizer has no end-of-sequence token, "
                       "so a model could never learn to stop")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token  # harmless: labels are masked by position, not by token
    if tokenizer.chat_template is None:
        tokenizer.chat_template = template.default_for(tokenizer)
    tokenizer.padding_side = "left"
    return tokenizer


def load_model(name: str, revision: str | None = None, *, dtype: torch.dtype = torch.float32,
               quantization: BitsAndBytesConfig | None = None):
    """The causal language model on `device()`, from safetensors only, with no code of the model's own."""
    place = locate(name)
    load_config(name, revision)
    extra = {"quantization_config": quantization, "device_map": {"": device()}} if quantization else {}
    try:
        # sdpa builds the block-diagonal mask from position ids for every batch size; packing relies on that
        model = AutoModelForCausalLM.from_pretrained(
            place, revision=revision, dtype=dtype, use_safetensors=True, trust_remote_code=False,
            attn_implementation="sdpa", **extra)
    except OSError as error:
        raise BadInput(f"{place}: its weights cannot be read: {error}") from error
    if quantization is None:
        return model.to(device())
    for module in model.modules():
        # On CPUs with AVX512-BF16 bitsandbytes (0.50) packs a layer's weights when it is first asked without
        # gradients, as by a probe, and keeps them so: then no gradient passes through the layer in training.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model


def load_for(name: str, revision: str | None, settings: dict):
    """The model as a stage of these settings trains it: quantised for QLoRA, a bf16 adapter's in bfloat16."""
    half = settings["bf16"] and settings["method"] in ("lora", "qlora", "ptuning_v2")
    model = load_model(name, revision, dtype=torch.bfloat16 if half else torch.float32,
                       quantization=nf4_config(settings) if settings["method"] == "qlora" else None)
    release_memory()  # of the weights before they were quantised
    return model


def nf4_config(settings: dict) -> BitsAndBytesConfig:
    """QLoRA's 4-bit configuration from a stage's settings."""
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type=settings["bnb_4bit_quant_type"],
        bnb_4bit_use_double_quant=settings["bnb_4bit_use_double_quant"],
        bnb_4bit_compute_dtype=getattr(torch, settings["bnb_4bit_compute_dtype"]))


def card_of(name: str, revision: str | None = None) -> dict:
    """What the model's configuration says of its pre-training, under the key `sftbench`; empty if nothing."""
    return getattr(load_config(name, revision), "sftbench", None) or {}


def decoder_layers(model: nn.Module) -> tuple[nn.Module, str, nn.ModuleList]:
    """The module that holds the decoder layers, their attribute name in it, and the list of layers itself.

    Raises BadInput where the model has no single list of `num_hidden_layers` layers.
    """
    count = model.config.get_text_config().num_hidden_layers
    found = [(module, name, child) for module in model.modules() for name, child in module.named_children()
             if isinstance(child, nn.ModuleList) and len(child) == count
             and name in ("layers", "h", "blocks")]
    if len(found) != 1:
        raise BadInput(f"{type(model).__name__}: its decoder layers cannot be found ({len(found)} candidates "
                       f"for {count} layers); method freeze needs them, the other methods do not")
    return found[0]


def final_norm(model: nn.Module) -> nn.Module:
    """The normalisation between the last layer and the output head; raises BadInput where there is none."""
    parent, _, _ = decoder_layers(model)
    norms = [child for name, child in parent.named_children()
             if "norm" in type(child).__name__.lower() and "emb" not in name]
    if not norms:
        raise BadInput(f"{type(model).__name__}: no final normalisation beside its layers")
    return norms[-1]


def quiet_libraries() -> None:
    """Keep the libraries' progress bars and notices out of the terminal; their errors still show."""
    import datasets
    import transformers
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    # peft 0.21 still reads the old name
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated",
                            category=FutureWarning)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()


def count_parameters(config) -> int:
    """Parameters of a model of this configuration, counted without memory for them."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config).num_parameters()


def release_memory() -> None:
    """Give back what a finished stage held, to the system too: else it would stay in this process's heap."""
    gc.collect()
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # not every C library has it
            ctypes.CDLL(None).malloc_trim(0)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
