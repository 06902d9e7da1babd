"""Files of an export for older readers too: transformers 4, PEFT before 0.14, vLLM, llama.cpp's converter.

transformers 5 writes some fields under new names only, and older readers take their defaults for what they do
not find: another rope base, float32, a tokenizer class that they lack. So both spellings are written, after a
check that transformers 5 reads the same values still. PEFT before 0.14 fails on fields that it does not know.
"""

import json
import tempfile
from pathlib import Path

from peft import PeftConfig
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase

from ..errors import RunFailed

# What transformers 4 called the base frequencies of full and of sliding attention, where layers differ.
LAYER_THETAS = {"gemma3_text": ("rope_theta", "rope_local_base_freq"),
                "gemma3n_text": ("rope_theta", "rope_local_base_freq"),
                "modernbert-decoder": ("global_rope_theta", "local_rope_theta"),
                "olmo3": ("rope_theta", "rope_theta")}
# What it called base frequency and rotated share elsewhere than under the usual names.
ROPE_NAMES = {"gpt_neox": ("rotary_emb_base", "rotary_pct"),
              "gpt_neox_japanese": ("rotary_emb_base", "rotary_pct")}
# What else it called otherwise: family: (older name, new name).
RENAMED = {"qwen3_moe": ("num_experts", "num_local_experts")}
OLDER_NAMES = {"rope_theta", "rope_scaling", "partial_rotary_factor", "torch_dtype", "_name_or_path",
               *sum(LAYER_THETAS.values(), ()), *sum(ROPE_NAMES.values(), ())}
# Tokenizer classes by which transformers 4 reads tokenizer.json as it is, and those that do so only without
# `add_prefix_space`: with it they build another tokenizer from a file of SentencePiece.
TOKENIZERS = ("GPT2Tokenizer", "Qwen2Tokenizer", "GPTNeoXTokenizer", "CohereTokenizer", "GemmaTokenizer",
              "LlamaTokenizer", "CodeLlamaTokenizer")
SPACE_SENSITIVE = ("LlamaTokenizer", "CodeLlamaTokenizer")
SAMPLE = "Hello,  world!\n\tÀ1 2345 naïve 北京 🙂 <s> it 's"
# Fields of adapters that any PEFT knows, written whatever their value; others only if they are no default.
ADAPTER_FIELDS = ("task_type", "peft_type", "base_model_name_or_path", "revision", "inference_mode", "r",
                  "lora_alpha", "lora_dropout", "target_modules", "fan_in_fan_out", "bias",
                  "num_virtual_tokens")


def add_older_spellings(folder: Path, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Rewrite the configurations of model, tokenizer and adapter that a folder has so that older readers fit.

    Returns the names that are left out because transformers would then read another model; raises RunFailed
    where a file reads back otherwise than before.
    """
    left_out = _rewrite_config(folder) if (folder / "config.json").exists() else []
    if (folder / "tokenizer.json").exists():
        _rewrite_tokenizer_config(folder, tokenizer)
    if (folder / "adapter_config.json").exists():
        _rewrite_adapter_config(folder)
    return left_out


def _rewrite_config(folder: Path) -> list[str]:
    """Add `torch_dtype`, `rope_theta` and the like to config.json, so far as it then reads as before."""
    path = folder / "config.json"
    new = json.loads(path.read_text(encoding="utf-8"))
    new.pop("auto_map", None)  # names code that is not in the folder
    older, left_out = _with_older_names(new), []
    if _read_config(older) != _read_config(new):
        left_out = sorted(set(older) - set(new) - {"torch_dtype"})
        older = {name: value for name, value in older.items() if name not in left_out}
    path.write_text(json.dumps(older, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return left_out


def _read_config(config: dict) -> dict:
    """What transformers reads from a configuration, without the older names."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(config), encoding="utf-8")
        return _without_older_names(AutoConfig.from_pretrained(folder, trust_remote_code=False).to_dict())


def _without_older_names(values: dict) -> dict:
    names = OLDER_NAMES if "model_type" in values else {"type"}
    return {name: _without_older_names(value) if isinstance(value, dict) else value
            for name, value in values.items() if name not in names}


def _with_older_names(config: dict) -> dict:
    """The configuration, and those inside it, with the names of transformers 4 beside the new ones."""
    config = {name: _with_older_names(value) if isinstance(value, dict) and "model_type" in value else value
              for name, value in config.items()}
    renamed = ("torch_dtype", "dtype"), RENAMED.get(config.get("model_type"), ())
    older = {names[0]: config[names[1]] for names in renamed if names and config.get(names[1]) is not None}
    return config | older | _older_rope(config)


def _older_rope(config: dict) -> dict:
    """The rotary embedding's settings under their older names; empty where transformers 4 had none.

    `{"rope_theta": 5e5, "rope_type": "linear", "factor": 2.0}` was `rope_theta` and
    `rope_scaling {"rope_type": "linear", "type": "linear", "factor": 2.0}`.
    """
    rope, family = config.get("rope_parameters") or {}, config.get("model_type")
    older = {}
    if any(isinstance(value, dict) for value in rope.values()):
        if family not in LAYER_THETAS:
            return {}  # a family newer than transformers 4
        theta, local_theta = LAYER_THETAS[family]
        older[local_theta] = rope["sliding_attention"]["rope_theta"]
        rope, share = rope["full_attention"], "partial_rotary_factor"
    else:
        theta, share = ROPE_NAMES.get(family, ("rope_theta", "partial_rotary_factor"))
    rest = {name: value for name, value in rope.items() if value is not None}
    for name, new_name in ((theta, "rope_theta"), (share, "partial_rotary_factor")):
        if new_name in rest:
            older[name] = rest.pop(new_name)
    if set(rest) - {"rope_type"} or rest.get("rope_type", "default") != "default":
        older["rope_scaling"] = rest | {"type": rest["rope_type"]}
        if family == "phi3":  # transformers 4 takes exactly these three
            older["rope_scaling"] = {name: older["rope_scaling"][name]
                                     for name in ("type", "short_factor", "long_factor")}
    return older


def _rewrite_tokenizer_config(folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Name class, defaults and special tokens as transformers 4 reads them; check that all is as before."""
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    for name in ("backend", "is_local", "local_files_only", "auto_map"):  # of where it was written
        config.pop(name, None)
    if isinstance(config.get("extra_special_tokens"), list):  # in transformers 4 a dict has this name
        config["additional_special_tokens"] = config.pop("extra_special_tokens")
    splitting = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["pre_tokenizer"] or {}
    space = splitting.get("add_prefix_space", config.pop("add_prefix_space", None))
    if space is not None:
        config["add_prefix_space"] = space
    kind = config["tokenizer_class"]
    if kind not in TOKENIZERS or (kind in SPACE_SENSITIVE and space is not None):
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
    ids, template = tokenizer("a")["input_ids"], tokenizer.chat_template
    added = {number: token.__getstate__() for number, token in tokenizer.added_tokens_decoder.items()}
    config |= {
        "added_tokens_decoder": added,  # llama.cpp's converter knows those beside tokenizer.model from here
        # by default transformers 4 gives out token_type_ids too, which a decoder's generate() refuses
        "model_input_names": tokenizer.model_input_names,
        "clean_up_tokenization_spaces": tokenizer.clean_up_tokenization_spaces,
        "add_bos_token": ids[0] == tokenizer.bos_token_id, "add_eos_token": ids[-1] == tokenizer.eos_token_id,
        "chat_template": [{"name": name, "template": text} for name, text in template.items()]
        if isinstance(template, dict) else template}  # chat_template.jinja is read from 4.50 on
    path.write_text(json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
    _check_tokenizer(folder, tokenizer)


def _check_tokenizer(folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise RunFailed where a folder's tokenizer differs from this one."""
    read = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    texts = [SAMPLE, "".join(tokenizer.all_special_tokens), *map(str, tokenizer.get_added_vocab())]
    differ = [name for name in ("special_tokens_map", "chat_template", "model_max_length",
                                "model_input_names") if getattr(read, name) != getattr(tokenizer, name)]
    if set(read.all_special_tokens) != set(tokenizer.all_special_tokens):
        differ.append("all_special_tokens")
    if read(texts)["input_ids"] != tokenizer(texts)["input_ids"]:
        differ.append("input_ids")
    if differ:
        raise RunFailed(f"the exported tokenizer reads back otherwise ({', '.join(differ)})", "export")


def _rewrite_adapter_config(folder: Path) -> None:
    """Leave out what is the default anyway and what an older PEFT may not know; the rest reads as before."""
    path = folder / "adapter_config.json"
    before = PeftConfig.from_pretrained(folder)
    defaults = type(before)().to_dict() | {"peft_version": before.peft_version}
    config = json.loads(path.read_text(encoding="utf-8"))
    config = {name: value for name, value in config.items()
              if name in ADAPTER_FIELDS or value != defaults.get(name)}
    path.write_text(json.dumps(config, indent=2, sort_keys=True), encoding="utf-8")
    if PeftConfig.from_pretrained(folder) != before:
        raise RunFailed(f"{path.name} reads back otherwise without its defaults", "export")
