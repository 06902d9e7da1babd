"""Models and tokenizers: find them and load them safely. Nothing is trained here."""

import contextlib
import ctypes
import gc
import hashlib
import os
import sys
import warnings
from pathlib import Path

import huggingface_hub
import torch
import transformers
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import GatedRepoError, HTTPError, OfflineModeIsEnabled
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from ..errors import BadInput, file_error
from ..named.models import NAMED, ORIGIN, absent_error, hub_name
from ..pocket import FOLDERS
from ..recipes.recipe import Recipe
from ..recipes.stages import StageSettings
from ..runs.folder import try_read_json
from ..runs.stage_store import file_sha256, find_damage
from ..sources.names import find_model_folder
from ..templates.rendering import default_template, set_rendering
from .architecture import with_attention

# What of a hub model is fetched: nothing that could carry code, no second copy in another format.
FETCHED = ("*.json", "*.jinja", "*.safetensors", "*.model", "*.txt")
NOT_FETCHED = ("*/*", "consolidated*")
HUB_TIMEOUT = 2  # seconds the hub may take to answer; huggingface_hub tries twice


def select_device() -> torch.device:
    """CUDA where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def supports_bf16() -> bool:
    """Whether the device computes in bfloat16 by itself, not by emulation."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    units = torch.cpu.get_capabilities()
    return any(units.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def locate_model(name: str) -> str:
    """A model's folder for the pocket's names, models made here and local folders, else the hub's name.

    Raises BadInput for a local path that does not exist or holds no model that can be read safely.
    """
    folder = find_model_folder(name)
    if folder is None:
        return hub_name(name)
    if name not in FOLDERS:
        check_model_folder(folder)
    return str(folder)


def check_model_folder(path: Path) -> None:
    """Refuse a folder that is no model, or whose weights could carry code."""
    if (path / "adapter_config.json").exists():
        raise file_error(path, "an adapter (adapter_config.json), which goes with its own base only; "
                               "merge it into that, or export it --merged", "model")
    if not (path / "config.json").exists():
        raise file_error(path, "no config.json; a model folder as save_pretrained writes it is needed",
                         "model")
    if not list(path.glob("*.safetensors")):
        others = sorted(file.name for kind in ("*.bin", "*.pt", "*.pth") for file in path.glob(kind))
        only = f" (only {others[0]})" if others else ""
        raise file_error(path, f"no .safetensors weights{only}; other formats can carry code and are not "
                               "read", "model")


def fetch_model(name: str, revision: str | None = None) -> Path:
    """The model's folder: its own, or that of a hub model's commit in the cache, fetched if need be.

    Of a hub model only configuration, tokenizer and safetensors are fetched. What is cached is used without
    a request to the hub. Raises BadInput with the command that fetches it where the hub cannot be reached.
    """
    given, name = name, locate_model(name)
    if Path(name).is_dir():
        return Path(name)
    files = {"allow_patterns": FETCHED, "ignore_patterns": NOT_FETCHED}
    with contextlib.suppress(OSError, BadInput):
        folder = Path(snapshot_download(name, revision=revision, local_files_only=True, **files))
        check_model_folder(folder)
        return folder
    command = f"hf download {name}" + (f" --revision {revision}" if revision else "")
    try:
        # before the download, since snapshot_download waits for ever for a silent hub (huggingface_hub 1)
        commit = HfApi().model_info(name, revision=revision, timeout=HUB_TIMEOUT).sha
        folder = Path(snapshot_download(name, revision=commit, **files))
    except GatedRepoError as error:
        raise BadInput(f"model {name!r} is gated: accept its terms at https://huggingface.co/{name} and "
                       "set HF_TOKEN in the environment", field="model", where=name) from error
    except (OSError, HTTPError, OfflineModeIsEnabled) as error:
        if given in NAMED:
            raise absent_error(given) from error
        raise BadInput(f"model {name!r} is not cached and cannot be fetched from here; where there is a "
                       f"network, fetch it with: {command}", field="model", where=name) from error
    check_model_folder(folder)
    return folder


def load_model_config(name: str, revision: str | None = None):
    """The model's configuration; raises BadInput where it is torn or needs code of the model's own."""
    path = fetch_model(name, revision) / "config.json"
    try:
        # `auto_map` beside a family that transformers knows is passed over: many hub models still carry it
        return AutoConfig.from_pretrained(path.parent, trust_remote_code=False)
    except (OSError, ValueError) as error:
        code = "auto_map" in path.read_text(encoding="utf-8", errors="replace")
        fault = ("the model needs code of its own (auto_map), which is never run; take one of a family that "
                 "transformers knows" if code else f"cannot be used: {error}")
        raise file_error(path, fault, "model") from error


def resolve_revision(name: str, revision: str | None = None) -> str:
    """What pins the weights: a hub model's commit, or a hash over a folder's configuration and weights.

    Of a model that was made from a file it is that file's hash. Raises BadInput for weights in the hub's
    cache that are not those the hub sent, and for a model made from a file that is no longer as it was made.
    """
    folder = fetch_model(name, revision)
    if not Path(locate_model(name)).is_dir():
        for path in sorted(folder.glob("*.safetensors")):
            sent = path.resolve().name  # the cache names a large file by its sha256
            if len(sent) == 64 and file_sha256(path) != sent:
                raise file_error(path, f"damaged, it differs from what the hub sent; remove {path.resolve()} "
                                 f"and fetch it again with: hf download {name} --revision {folder.name}",
                                 "model")
        return folder.name
    if (folder / ORIGIN).exists():  # of its file, since transformers' versions write the folder otherwise
        if damaged := find_damage(folder):
            raise file_error(damaged, f"damaged; remove {folder} and make it anew: sftbench fetch {name}",
                             "model")
        return try_read_json(folder / ORIGIN)["sha256"][:20]
    files = sorted([*folder.glob("*.safetensors"), *folder.glob("*.json"), *folder.glob("*.jinja")])
    digests = "".join(f"{path.name} {file_sha256(path)}\n" for path in files)
    return hashlib.sha256(digests.encode()).hexdigest()[:20]


def load_tokenizer(name: str, revision: str | None = None) -> transformers.PreTrainedTokenizerBase:
    """The model's tokenizer, padding on the left, with a pad token and a chat template in any case."""
    folder = Path(name) if (Path(name) / "tokenizer_config.json").exists() else fetch_model(name, revision)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # whatever a torn file makes a parser raise
        raise file_error(folder, f"its tokenizer cannot be read: {error}", "model") from error
    if len(tokenizer) < 2:
        raise file_error(folder, "no tokenizer files beside the weights", "model")
    if tokenizer.eos_token is None:
        raise file_error(name, "its tokenizer has no end-of-sequence token, so a model could never learn to "
                               "stop", "model")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token  # harmless: labels are masked by position, not by token
    if tokenizer.chat_template is None:
        tokenizer.chat_template = default_template(tokenizer)
    tokenizer.padding_side = "left"
    return tokenizer


def load_recipe_tokenizer(name: str, recipe: Recipe) -> transformers.PreTrainedTokenizerBase:
    """The tokenizer of a recipe's start model, or of a stage, which renders and masks as the recipe says."""
    return set_rendering(load_tokenizer(name, recipe.model_revision), recipe.template_date,
                         recipe.train_thoughts)


def load_model(name: str, revision: str | None = None, *, dtype: torch.dtype = torch.float32,
               quantization: BitsAndBytesConfig | None = None, on_cpu: bool = False):
    """The causal language model on `select_device()`, from undamaged safetensors, with no code of its own.

    With `on_cpu` it stays in main memory: to be sharded over GPUs, none of which could hold all of it. Raises
    BadInput, naming the file, for weights that are cut, of another shape, missing or no numbers.
    """
    load_model_config(name, revision)
    folder = fetch_model(name, revision)
    check_weights(folder)
    extra = {"quantization_config": quantization, "device_map": {"": select_device()}} if quantization else {}
    try:
        # the attention that plain transformers takes too, so training, scores, chat and export compute alike
        model, report = with_attention(lambda kind: AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, use_safetensors=True, trust_remote_code=False, attn_implementation=kind,
            output_loading_info=True, **extra))
    except torch.OutOfMemoryError:
        raise
    except (OSError, RuntimeError, ValueError) as error:
        raise file_error(folder, f"its weights cannot be read: {error}", "model") from error
    absent = sorted(report["missing_keys"])  # transformers 5.23 draws those at random and only warns
    wrong = absent or [name for name, weight in model.named_parameters()
                       if weight.is_floating_point() and not weight.sum(dtype=torch.float32).isfinite()]
    if wrong:
        fault = "missing" if absent else "no numbers"
        raise file_error(folder, f"{len(wrong)} of its weights are {fault}, such as {wrong[0]}; fetch or "
                                 "write the model anew", "model")
    if quantization is None:
        return model if on_cpu else model.to(select_device())
    for module in model.modules():
        # On CPUs with AVX512-BF16 bitsandbytes (0.50) packs a layer's weights when it first runs without
        # gradients, as in a probe, and for good: then no gradient passes through the layer in training.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model


def check_weights(folder: Path) -> None:
    """Refuse safetensors that are cut off or whose header is damaged, naming the file."""
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt") as file:
                file.keys()
        except (SafetensorError, OSError) as error:
            raise file_error(path, f"damaged or cut off ({error}); fetch or write it anew",
                             "model") from error


def load_for_training(name: str, revision: str | None, settings: StageSettings, on_cpu: bool = False):
    """The model as a stage of these settings trains it: quantised for QLoRA, a bf16 adapter's in bfloat16.

    A prefix is stored beside the weights and not merged into them, so it trains on them as they are stored.
    """
    half = settings.bf16 and (settings.method in ("lora", "qlora") or settings.method == "ptuning_v2"
                              and load_model_config(name, revision).dtype == torch.bfloat16)
    quantization = make_bnb_config(settings) if settings.method == "qlora" else None
    model = load_model(name, revision, dtype=torch.bfloat16 if half else torch.float32,
                       quantization=quantization, on_cpu=on_cpu)
    release_memory()  # of the weights before they were quantised
    return model


def make_bnb_config(settings: StageSettings) -> BitsAndBytesConfig:
    """QLoRA's 4-bit configuration from a stage's settings."""
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type=settings.bnb_4bit_quant_type,
        bnb_4bit_use_double_quant=settings.bnb_4bit_use_double_quant,
        bnb_4bit_compute_dtype=getattr(torch, settings.bnb_4bit_compute_dtype))


def silence_libraries() -> None:
    """Keep the libraries' progress bars and notices out of the terminal; their errors still show."""
    import datasets
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    # else the first request to a hub waits 3 s more for a list of programs it may be used by (2.4)
    huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY = True
    # peft 0.21 still reads the old name
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
    # peft 0.21 warns of the pattern that it sets itself for fused experts
    warnings.filterwarnings("ignore", "The following (rank|alpha)_pattern keys did not match", RuntimeWarning)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()


def release_memory() -> None:
    """Give a finished stage's memory back, to the system too: else it would stay in this process's heap."""
    gc.collect()
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # not every C library has it
            ctypes.CDLL(None).malloc_trim(0)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
