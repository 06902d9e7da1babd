"""The forecast against the truth: memory and time of every stage of every mode by every method.

    python benchmarks/forecast.py [--model pocket|100m] [--modes 1,2] [--methods full,lora] [--steps 40]

Runs each mode by each method for a few steps and prints one line a stage that was trained, then the median
error of time and of peak memory. `100m` is a Qwen3 model of 100 million parameters made from a configuration
(its weights are random: neither time nor memory depends on them); its blocks are short, so that a step takes
about a second. Other work on the machine goes into the figures of time: run it alone.
"""

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

from sftbench.recipes.modes import MODES
from sftbench.recipes.recipe import METHODS, Recipe, override
from sftbench.runs.folder import read_result

BLOCKS = {"pocket": {}, "100m": {"max_length": 64, "per_device_train_batch_size": 1,
                                 "cpt_per_device_train_batch_size": 1, "probe_rows": 8, "yardstick": False}}


def model_of_100m(folder: Path) -> str:
    """A model of 100 million parameters with the pocket's tokenizer."""
    from transformers import AutoModelForCausalLM, Qwen3Config, set_seed

    from sftbench.models.loading import load_tokenizer
    set_seed(0)
    config = Qwen3Config(vocab_size=32_000, hidden_size=640, intermediate_size=2048, num_hidden_layers=15,
                         num_attention_heads=10, num_key_value_heads=5, head_dim=64,
                         tie_word_embeddings=True, max_position_embeddings=1024, pad_token_id=0,
                         eos_token_id=1, bos_token_id=None)
    model = AutoModelForCausalLM.from_config(config)
    sys.stdout.write(f"{model.num_parameters():,} parameters\n")
    model.save_pretrained(folder)
    load_tokenizer("pocket").save_pretrained(folder)
    return str(folder)


def files_of_the_pocket(folder: Path) -> dict[str, str]:
    """The pocket's data as files, for a model that is not the pocket."""
    import json

    from sftbench.pocket.world import world_rows
    from sftbench.recipes.recipe import ROLES
    for role in ROLES:
        rows = world_rows(role, "train", 0)
        (folder / f"{role}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {role: str(folder / f"{role}.jsonl") for role in ROLES}


def errors(result: dict) -> list[tuple]:
    """For each stage that was trained: its name, forecast and true seconds, forecast and true bytes, base."""
    told = result["forecast"]["stages"]
    return [(stage["name"], told[stage["name"]]["seconds"], stage["seconds"],
             told[stage["name"]]["peak_memory_bytes"], stage["peak_memory_bytes"],
             told[stage["name"]]["memory"]["base"])
            for stage in result["stages"] if not stage["reused"]]


def main() -> None:
    """Run, print, and sum up."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=BLOCKS, default="pocket")
    parser.add_argument("--modes", default=",".join(MODES))
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--steps", type=int, default=40)
    options = parser.parse_args()
    from sftbench.training.chain import run_chain
    found, whole = [], []
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        values = {"max_steps": options.steps, **BLOCKS[options.model]}
        if options.model == "100m":
            name = model_of_100m(folder / "model")
            values |= {"model": name, "chat_model": name, **files_of_the_pocket(folder)}
        for method in options.methods.split(","):
            for mode in options.modes.split(","):
                run = run_chain(override(Recipe(), **values, mode=mode, method=method,
                                         output_dir=str(folder / f"{mode}-{method}")))
                result = read_result(run)
                whole.append((result["forecast"]["seconds"], result["forecast"]["took"]["seconds"]))
                for name, *figures in errors(result):
                    found.append(figures)
                    time, took, memory, held, base = figures
                    sys.stdout.write(f"mode {mode} {method:<11}{name:<12} {time:7.1f} s, took {took:7.1f} s "
                                     f"({time / took - 1:+.0%})   {memory / 1e9:.2f} GB, held "
                                     f"{held / 1e9:.2f} GB ({memory / held - 1:+.0%}; beside the base "
                                     f"{(memory - base) / max(held - base, 1) - 1:+.0%})\n")
                    sys.stdout.flush()

    def median(pairs):
        return statistics.median(abs(told / true - 1) for told, true in pairs)
    sys.stdout.write(f"{options.model}, {len(found)} stages, median error: time of a stage "
                     f"{median([(time, took) for time, took, *_ in found]):.1%}, time of a run "
                     f"{median(whole):.1%}, peak memory "
                     f"{median([(memory, held) for _, _, memory, held, _ in found]):.1%}\n")


if __name__ == "__main__":
    main()
