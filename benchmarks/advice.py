"""What the advised values are worth: each swept alone, on a real model and on the pocket.

    python benchmarks/advice.py [--model smollm2] [--table NAME] [--half 0] [--minutes N] [--range]

A point is one training with one value changed, and the loss of held-out questions after it, in nats per
token. Points are added to `benchmarks/advice.json` one by one and none is measured twice; docs/advice.md is
written from them. SmolLM2-135M-Instruct learns 200 defaults of the installed libraries' configurations, in
one pass where passes are not swept, and is asked 50 others; the pocket learns its domain's tasks as advised,
after CPT on its handbook by `full`. `--half 1` measures, on other rows or another company, only what is
advised and what was best. `--range` measures the range tests of the methods whose rates are swept, to be
held beside the sweeps. `--minutes 0` measures nothing and writes the page.
"""

import argparse
import json
import sys
import time

from performance import MARKS, ROOT, RUNS, fetch_model, write_rows
from performance_page import write_between

from sftbench.recipes.facts import Facts
from sftbench.recipes.hyperparameters import resolve_recipe
from sftbench.recipes.recipe import Recipe, override

PAGE, MEASURED = ROOT / "docs" / "advice.md", ROOT / "benchmarks" / "advice.json"
MODELS = {"smollm2": "SmolLM2-135M", "pocket": "pocket"}
HELD_OUT = 50  # rows of each half of the real model's
MLP, ATTENTION = "gate_proj,up_proj,down_proj", "q_proj,k_proj,v_proj,o_proj"
NAMES = {MLP: "MLP only", ATTENTION: "attention only"}
LORA, CHAIN = {"method": "lora"}, {"mode": "2", "method": "full"}
LORA_RATES, FULL_RATES = (5e-4, 1.5e-3, 3e-3, 6e-3), (3e-5, 1e-4, 3e-4, 1e-3)
# by table: the field, its values (what is advised is added to them), and what else is set
TABLES = {
    "learning rate, lora": ("learning_rate", LORA_RATES, LORA),
    "learning rate, full": ("learning_rate", FULL_RATES, {"method": "full"}),
    "learning rate, ptuning_v2": ("learning_rate", (3e-3, 1e-2, 3e-2, 1e-1), {"method": "ptuning_v2"}),
    "learning rate, freeze": ("learning_rate", (*FULL_RATES[1:], 3e-3), {"method": "freeze"}),
    "learning rate, qlora": ("learning_rate", LORA_RATES, {"method": "qlora"}),
    "LoRA targets": ("lora_target_modules", ("all-linear", MLP, ATTENTION), LORA),
    "batch": ("per_device_train_batch_size", (1, 2, 4, 8, 16), LORA),
    "block length": ("max_length", (128, 256, 512), LORA),
    "warm-up": ("warmup_ratio", (0.0, 0.01, 0.1, 0.2), LORA),
    "passes": ("num_train_epochs", (1.0, 3.0, 10.0), LORA),
    "dropout": ("lora_dropout", (0.0, 0.05, 0.2), LORA | {"num_train_epochs": 3.0}),
    "CPT rate, full": ("cpt_learning_rate", (1e-4, 3e-4, 1e-3, 3e-3), CHAIN)}


def points(table: str, facts: Facts) -> tuple[list[dict], dict]:
    """What is set in each point of a table, and in the one that is advised."""
    field, values, others = TABLES[table]
    best = getattr(resolve_recipe(override(Recipe(), **others), facts)[0], field)
    best = float(f"{best:.2g}") if isinstance(best, float) else best
    every = [others | {field: value} for value in dict.fromkeys((*values, best))]
    if field == "max_length":  # the tokens of a step stay the same
        every = [one | {"per_device_train_batch_size": max(4 * 128 // one[field], 1)} for one in every]
    return sorted(every, key=lambda one: str(one[field]) if isinstance(best, str) else one[field]), next(
        one for one in every if one[field] == best)


def source(model: str, half: int, table: str) -> dict:
    """The recipe's fields that name start model and data."""
    if model == "smollm2":
        return smollm2_source(half)
    from sftbench.pocket.world import write_files
    from sftbench.runs.folder import read_result, store_folder
    from sftbench.training.chain import run_chain
    paths = {path.stem: str(path) for path in write_files(RUNS / f"advice-pocket-{half}", seed=half)}
    if TABLES[table][2] is CHAIN:
        return {"model": "pocket", **paths}
    run = RUNS / f"advice-cpt-{half}"
    result = read_result(run_chain(override(Recipe(), mode="2", pocket_seed=half, output_dir=str(run))))
    return {"model": str(store_folder(run) / result["stages"][0]["key"] / "model"), **paths}


def smollm2_source(half: int) -> dict:
    """Half of the questions, the first of them held out, and a text of what all of them ask."""
    rows = RUNS / "library_questions.jsonl"
    if not rows.exists():
        write_rows(rows)
    found = [json.loads(line) for line in rows.read_text(encoding="utf-8").splitlines()]
    # the value alone: a sentence that repeats the question ends at 0.04 nats whatever the rate
    asked = [row | {"answer": row["answer"].split(" is ", 1)[1][:-1]} for row in found[half::2]]
    said = [{"text": f"{row['question'].replace('what is ', '')[:-1]} is {row['answer']}."} for row in asked]
    parts = {"domain_tasks": asked[HELD_OUT:], "domain_tasks_probe": asked[:HELD_OUT], "domain_text": said,
             "domain_text_probe": [{"text": row["answer"]} for row in found[1 - half::2][:10]]}
    paths = {name: RUNS / f"advice-{half}-{name}.jsonl" for name in parts}
    for name, path in paths.items():
        path.write_text("".join(json.dumps(row) + "\n" for row in parts[name]), encoding="utf-8")
    return {"model": fetch_model(), "num_train_epochs": 1.0, "cpt_num_train_epochs": 1.0,
            **{name: str(path) for name, path in paths.items()}}


def measure(recipe: Recipe) -> dict:
    """One training, stage after stage on one model, and the loss of the held-out questions after it."""
    from transformers import set_seed

    from sftbench.data.tokenization import encode_probe
    from sftbench.errors import RunFailed
    from sftbench.evaluation.probes import probe_losses
    from sftbench.models.loading import load_for_training
    from sftbench.models.methods import METHOD_FUNCTIONS
    from sftbench.training.chain import prefix_text
    from sftbench.training.prepare import prepare_recipe
    from sftbench.training.trainer import StageContext, train_stage
    ready, steps = prepare_recipe(recipe), 0
    set_seed(recipe.seed)
    model = load_for_training(ready.start, None, ready.stages[0].settings)
    for stage in ready.stages:
        assert len(ready.stages) == 1 or stage.settings.method == "full"  # which leaves nothing to merge
        model = METHOD_FUNCTIONS[stage.settings.method](
            model, ready.tokenizer, stage.settings, prefix_text(ready, stage))
        try:
            steps += train_stage(model, StageContext(
                stage.name, stage.settings, ready.tokenizer, ready.datasets[stage.name][0],
                emit=lambda event: None)).steps
        except RunFailed as error:
            return {"loss": None, "failed": error.reason}
    rows = encode_probe(ready.tokenizer, ready.roles["domain_tasks"].probe, ready.recipe.max_length)[0]
    losses = probe_losses(model, ready.tokenizer, {"held out": rows})
    return {"loss": round(losses["held out"], 4), "steps": steps}


def measure_range(recipe: Recipe) -> dict:
    """The curve of the recipe's range test."""
    from sftbench.calibration.range_test import rise_rate
    from sftbench.training.prepare import prepare_recipe
    ready = prepare_recipe(recipe)
    test = rise_rate(ready, ready.stages[0])
    return {"rates": [float(f"{rate:.4g}") for rate in test.rates],
            "losses": [round(loss, 4) for loss in test.losses]}


def key(model: str, half: int, values: dict) -> str:
    """A point's name among those measured."""
    return json.dumps([model, half, values], sort_keys=True)


def loss_of(measured: dict, *where) -> float | None:
    """A point's loss; None where it diverged or is not measured."""
    return measured.get(key(*where), {}).get("loss")


def chosen(measured: dict, model: str, table: str, half: int, facts: Facts) -> list[dict]:
    """The points to measure: all of a table, or on the other half what is advised and what was best."""
    every, advised = points(table, facts)
    known = [one for one in every if loss_of(measured, model, 0, one) is not None]
    if not half:
        return every
    return [advised, min(known, key=lambda one: loss_of(measured, model, 0, one))] if known else []


def page_table(measured: dict) -> str:
    """All that was measured as one table: by value the loss, and how far from the best the advised one is."""
    lines = ["| swept | model | held-out loss, nats per token | above the best | other half | range test |",
             "|---|---|---|---|---|---|"]
    lines += [line for table in TABLES for model in MODELS if f"facts {model}" in measured
              for line in table_line(measured, model, table)]
    return "\n".join(lines) + "\n"


def table_line(measured: dict, model: str, table: str) -> list[str]:
    """The line of a table and a model, or none where too little of it is measured."""
    facts, field = Facts(**measured[f"facts {model}"]), TABLES[table][0]
    every, advised = points(table, facts)
    losses = {one[field]: loss_of(measured, model, 0, one) for one in every if key(model, 0, one) in measured}
    finite = [loss for loss in losses.values() if loss is not None]
    if len(finite) < 2:
        return []
    mark = {True: "**", False: ""}
    cells = [f"{mark[value == advised[field]]}{shown(value)}: {'diverged' if loss is None else f'{loss:.3f}'}"
             f"{mark[value == advised[field]]}" for value, loss in losses.items()]
    own = losses.get(advised[field])
    above = "not measured" if own is None else f"{own - min(finite):.3f}"
    pair = [loss_of(measured, model, 1, one) for one in chosen(measured, model, table, 1, facts)]
    other = "–" if None in pair or len(pair) < 2 else f"{pair[0] - pair[1]:+.3f}"
    return [f"| {table} | {MODELS[model]} | {' · '.join(cells)} | {above} | {other} | "
            f"{range_choice(measured, model, table)} |"]


def range_choice(measured: dict, model: str, table: str) -> str:
    """The rate that the range test of a table's method chooses, by the rule in force; a dash without one."""
    from sftbench.calibration.range_test import choose_rate
    curve = measured.get(key(model, 0, {"range": TABLES[table][2].get("method")}))
    if curve is None or TABLES[table][0] != "learning_rate":
        return "–"
    return shown(choose_rate(curve["rates"], curve["losses"]))


def shown(value) -> str:
    """A value in a cell."""
    return f"{value:.2g}" if isinstance(value, float) else NAMES.get(value, str(value))


def main() -> None:
    """Measure what is not there yet, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=MODELS, help="one of them alone")
    parser.add_argument("--table", default="", help="those that have this in their name")
    parser.add_argument("--half", type=int, default=0, choices=(0, 1), help="of the rows")
    parser.add_argument("--range", action="store_true", help="the range tests instead of the sweeps")
    parser.add_argument("--minutes", type=float, default=1e9, help="after which no further point begins")
    options = parser.parse_args()
    RUNS.mkdir(exist_ok=True)
    measured = json.loads(MEASURED.read_text(encoding="utf-8")) if MEASURED.exists() else {}
    until = time.monotonic() + 60 * options.minutes
    for model in [options.model] if options.model else MODELS:
        for table in TABLES:
            fits = not options.range or TABLES[table][0] == "learning_rate"
            if options.table in table and fits and time.monotonic() < until:
                measure_table(measured, model, table, None if options.range else options.half, until)
    write_between(PAGE, MARKS, page_table(measured))


def measure_table(measured: dict, model: str, table: str, half: int | None, until: float) -> None:
    """Measure what of a table is not there yet, point by point, as long as there is time.

    Without a half the range test of a table of rates.
    """
    from sftbench.training.prepare import prepare_recipe
    start = {"mode": "1", "yardstick": False, **source(model, half or 0, table)}
    if f"facts {model}" not in measured:
        measured[f"facts {model}"] = prepare_recipe(override(Recipe(), **start)).facts.to_dict()
    if half is not None:
        values = chosen(measured, model, table, half, Facts(**measured[f"facts {model}"]))
        todo = {key(model, half, one): (measure, one) for one in values}
    else:
        method = TABLES[table][2]["method"]
        todo = {key(model, 0, {"range": method}): (measure_range, {"method": method})}
    for name, (act, values) in todo.items():
        if name not in measured and time.monotonic() < until:
            measured[name] = act(override(Recipe(), **start | values))
            MEASURED.write_text(json.dumps(measured, indent=1), encoding="utf-8")
            sys.stdout.write(f"{name} {measured[name]}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
