"""LLaMA-Factory 0.9.5 in an environment of its own, timed step by step, with blocks packed from texts.

    runs/llamafactory/bin/python benchmarks/llama_factory.py ARGUMENTS.json

`trainers.py` writes the arguments, which are LLaMA-Factory's own, and calls this by the environment's python.
Prints one line of JSON as `trainers.py` does. `make_environment` needs none of its packages.
"""

import itertools
import json
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
ENVIRONMENT = ROOT / "runs" / "llamafactory"
PYTHON = ENVIRONMENT / "bin" / "python"
# Its own requirements have torchaudio and torchvision too, of which training on text uses nothing.
PACKAGES = ("transformers==5.5.0 datasets==4.0.0 accelerate==1.11.0 peft==0.18.1 trl==0.24.0 "
            "torchdata==0.11.0 gradio==5.50.0 einops scipy sentencepiece tiktoken tyro<0.9.0 av fire "
            "omegaconf uvicorn fastapi sse-starlette pydantic matplotlib modelscope hf-transfer").split()


def make_environment() -> None:
    """Install LLaMA-Factory with sftbench's torch, unless that is done."""
    done = ENVIRONMENT / "complete"
    if done.exists():
        return
    shutil.rmtree(ENVIRONMENT, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", str(ENVIRONMENT)], check=True)
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    torch = next(line for line in lines if line.startswith("torch=="))
    install = [str(PYTHON), "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-input"]
    subprocess.run([*install, "--no-deps", "llamafactory==0.9.5"], check=True)
    subprocess.run([*install, torch, *PACKAGES], check=True)
    printed = subprocess.run([str(PYTHON), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
                             check=True, capture_output=True, text=True)
    audio = Path(printed.stdout.strip()) / "torchaudio"  # imported for sound, of which there is none
    audio.mkdir()
    (audio / "__init__.py").write_text('__version__ = "0"\n')
    done.touch()


def train(arguments: dict) -> dict:
    """Train, and say when each step ended."""
    from llamafactory.train.tuner import run_exp
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        times: list[float] = []
        losses: list[float] = []

        def on_train_begin(self, *_, **__):
            self.times.append(time.perf_counter())

        def on_log(self, args, state, control, logs, **_):
            if "loss" in logs:
                self.times.append(time.perf_counter())
                self.losses.append(float(logs["loss"]))

    clock = Clock()
    run_exp(arguments, [clock])
    tokens = [arguments["per_device_train_batch_size"] * arguments["cutoff_len"]] * len(clock.losses)
    return {"seconds": [after - before for before, after in itertools.pairwise(clock.times)],
            "tokens": tokens, "computed": tokens, "losses": clock.losses,  # its blocks are all full
            "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}


if __name__ == "__main__":
    result = train(json.loads(Path(sys.argv[1]).read_text()))
    sys.stdout.write(json.dumps(result) + "\n")
