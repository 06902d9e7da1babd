"""Chains: seven modes by five methods, stages trained once, resuming, refusals, the run's folder."""

import pytest

from sftbench.errors import BadInput, RunFailed
from sftbench.evaluation.rating import score_probe
from sftbench.models import loading
from sftbench.models.checkpoint import load_stage
from sftbench.recipes.modes import MODES, load_mode
from sftbench.recipes.recipe import METHODS, ROLES, Recipe, override
from sftbench.runs.events import read_events
from sftbench.runs.folder import new_run_folder, read_json, read_result
from sftbench.runs.stage_store import hash_key
from sftbench.training import chain
from sftbench.training.chain import run_chain
from sftbench.training.prepare import prepare_recipe, stage_dataset
from tests.conftest import bad_input, run_failed


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    """A folder of runs shared by this module, so that equal stages are trained once."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture
def recipe(make_model, shelf, small_files):
    """A function from changed fields to a small recipe whose run lies on the shared shelf."""
    def make(name: str, **values) -> Recipe:
        defaults = {"model": make_model(), "chat_model": make_model("llama"), "max_steps": 2, "probe_rows": 4,
                    "pretraining_learning_rate": 1e-2, "output_dir": str(shelf / name)}
        return override(Recipe(), **defaults | small_files | values)
    return make


def result_of(folder):
    return read_result(folder)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("mode", MODES)
def test_every_mode_trains_by_every_method(recipe, mode, method):
    folder = run_chain(recipe(f"{mode}-{method}", mode=mode, method=method))
    result = result_of(folder)
    wanted = load_mode(mode).stages
    assert [(stage["name"], stage["kind"], stage["method"]) for stage in result["stages"]] == [
        (stage.name, stage.kind, method) for stage in wanted]
    assert result["start"]["name"] == MODES[mode].start
    for entry, stage in zip(result["stages"], wanted, strict=True):
        assert entry["steps"] == 2 and set(entry["probes"]) == set(ROLES)
        assert 0 < entry["trainable_parameters"]
        assert (entry["trainable_parameters"] == entry["parameters"]) == (method == "full")
        assert set(entry["data"]) == set(stage.shares)
        for role, share in stage.shares.items():
            assert entry["data"][role]["share"] == pytest.approx(share, abs=0.05)


@pytest.mark.slow
def test_stages_of_equal_key_are_trained_once(recipe):
    results = {mode: result_of(run_chain(recipe(f"once-{mode}", mode=mode, seed=7))) for mode in "243"}
    key = prepare_recipe(recipe("once-prepared", mode="2", seed=7)).stages[0].key
    assert {result["stages"][0]["key"] for result in results.values()} == {key}
    assert [result["stages"][0]["reused"] for result in results.values()] == [False, True, True]
    assert not results["3"]["stages"][1]["reused"]
    again = result_of(run_chain(recipe("again-2", mode="2", seed=7)))
    assert [stage["reused"] for stage in again["stages"]] == [True, True]
    assert [stage["probes"] for stage in again["stages"]] == [
        stage["probes"] for stage in results["2"]["stages"]]
    events = read_events(again["recipe"]["output_dir"])
    assert [event["step"] for event in events if "loss" in event and event["stage"] == "cpt"] == [1, 2]


@pytest.mark.parametrize("change", [{"seed": 9}, {"cpt_learning_rate": 1e-3}, {"max_steps": 1},
                                    {"max_length": 64}, {"cpt_method": "freeze"}])
def test_another_recipe_has_another_key(recipe, change):
    one, other = (prepare_recipe(recipe("key", **{"mode": "2", "seed": 8} | values)).stages[0].key
                  for values in ({}, change))
    assert other != one


def test_a_changed_row_has_another_key(recipe, small_files):
    one = prepare_recipe(recipe("rows", mode="6", seed=8)).stages[0].key
    with open(small_files["domain_tasks"], "a") as file:
        file.write('{"prompt": "Where is item 99?", "completion": "Rome"}\n')
    assert prepare_recipe(recipe("rows-more", mode="6", seed=8)).stages[0].key != one


def test_a_run_that_broke_between_stages_goes_on_from_the_last_finished(recipe, monkeypatch):
    mine = recipe("broken", mode="3", seed=11)
    real, calls = chain.train_stage, []

    def fail_second(*args, **more):
        calls.append(args[1].name)
        if len(calls) == 2:
            raise RunFailed("power cut")
        return real(*args, **more)
    monkeypatch.setattr(chain, "train_stage", fail_second)
    with pytest.raises(RunFailed, match="power cut"):
        run_chain(mine)
    folder = new_run_folder("3", "full", mine.output_dir)
    result = read_json(folder, "result.json")
    assert (result["complete"], result["state"], result["message"]) == (False, "failed", "power cut")
    assert [stage["name"] for stage in result["stages"]] == ["cpt"]
    last = read_events(folder)[-1]
    assert (last["state"], last["message"]) == ("failed", "power cut")
    result = result_of(run_chain(mine))
    assert calls == ["cpt", "general_sft", "general_sft", "domain_sft"]
    assert [stage["reused"] for stage in result["stages"]] == [True, False, False]


def test_an_interrupt_is_told_as_stopped(recipe, monkeypatch):
    def interrupt(*args, **more):
        raise KeyboardInterrupt
    monkeypatch.setattr(chain, "train_stage", interrupt)
    mine = recipe("interrupted", mode="1", seed=12)
    with pytest.raises(KeyboardInterrupt):
        run_chain(mine)
    assert read_events(mine.output_dir)[-1]["state"] == "stopped"


def test_a_full_disk_is_said_and_nothing_half_done_stays(recipe, shelf, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(chain, "save_stage_model", full)
    store = shelf / ".stages"
    store.mkdir(parents=True, exist_ok=True)
    before = set(store.iterdir())
    with run_failed("disk"):
        run_chain(recipe("full-disk", mode="1", seed=13))
    more = {path for path in set(store.iterdir()) - before if path.is_dir()}
    assert more <= {store / "probes", store / ".partial"} and not list((store / ".partial").iterdir())


@pytest.mark.parametrize("method", METHODS)
def test_the_next_stage_begins_where_the_last_one_ended(recipe, method):
    folder = run_chain(recipe(f"hand-{method}", mode="2", method=method, max_steps=6, probe_rows=40,
                              prefix_init="random"))
    first, second = result_of(folder)["stages"]
    cost = second.get("quantisation_loss", dict.fromkeys(ROLES, 0))
    assert set(cost) == set(ROLES) and ("quantisation_loss" in second) == (method == "qlora")
    for role in ROLES:
        before = second["start_loss"][role] - cost[role]
        assert before == pytest.approx(first["probes"][role]["loss"], abs=1e-4)


def test_the_ledgers_last_row_is_the_model_that_loads(recipe, make_model):
    for method in ("full", "ptuning_v2"):
        mine = recipe(f"load-{method}", mode="7", method=method)
        folder, ready = run_chain(mine), prepare_recipe(mine)
        model, tokenizer = load_stage(folder)
        scores = score_probe(model, tokenizer, ready.roles["domain_tasks"].probe, ready.recipe.max_length,
                                ready.recipe.max_new_tokens)
        assert scores == result_of(folder)["stages"][-1]["probes"]["domain_tasks"]
        first, _ = load_stage(folder, stage=0)
        assert first is not model


@pytest.mark.parametrize(("values", "field", "named"), [
    ({"mode": "2", "cpt_method": "ptuning_v2"}, "method", "stage domain_sft .* full"),
    ({"mode": "9"}, "mode", "1 to 7"),
    ({"model": "nowhere/at/all"}, "model", "'nowhere/at/all'"),
    ({"mode": "4", "general_tasks": None}, "general_tasks", "stage mixed_sft"),
    ({"mode": "2", "domain_text": None}, "domain_text", "stage cpt"),
    ({"mode": "6", "chat_model": None}, "chat_model", "mode 6"),
    ({"mode": "1", "max_length": 8}, "max_length", "stage domain_sft: .* domain_tasks .* 8"),
])
def test_what_cannot_work_is_refused_with_the_remedy(recipe, values, field, named, monkeypatch):
    monkeypatch.setattr(loading, "load_model", lambda *args, **more: pytest.fail("a model was loaded"))
    with pytest.raises(BadInput, match=named, check=lambda error: error.field == field):
        run_chain(recipe("refused-" + "-".join(values), **values))


def test_cpt_by_full_and_sft_by_prefix_go_together(recipe):
    result = result_of(run_chain(recipe("full-prefix", mode="2", method="ptuning_v2", cpt_method="full")))
    assert [stage["method"] for stage in result["stages"]] == ["full", "ptuning_v2"]


def test_a_folder_with_another_recipes_run_is_refused(recipe):
    folder = run_chain(recipe("taken", mode="1"))
    with bad_input("output_dir", folder, match="mode, seed"):
        run_chain(recipe("taken", mode="6", seed=5))


def test_a_probe_without_data_is_absent(recipe, tmp_path):
    mine = recipe("no-general", mode="2", general_text=None, general_tasks=None)
    result = result_of(run_chain(mine))
    assert set(result["stages"][0]["probes"]) == {"domain_text", "domain_tasks", "yardstick"}


def test_the_folder_holds_what_the_contract_says(recipe):
    events = []
    folder = run_chain(recipe("contract", mode="5"), callbacks=[events.append])
    assert {path.name for path in folder.iterdir()} == {
        "recipe.json", "events.jsonl", "result.json", "answers.jsonl"}
    assert read_events(folder) == events
    result, stored = result_of(folder), read_json(folder, "recipe.json")
    assert stored["recipe"] == result["recipe"] and "R8" in stored["reasons"]["learning_rate"]
    assert {"schema", "complete", "state", "recipe", "start", "stages", "forecast", "versions",
            "scorers", "prompt_alone"} == set(result)
    assert {"name", "kind", "method", "key", "reused", "seconds", "tokens", "steps", "parameters",
            "trainable_parameters", "train_loss", "peak_memory_bytes", "probes"} <= set(result["stages"][0])
    assert all({"time", "stage", "step"} <= set(event) for event in events)
    assert [event["stage"] for event in events if "plan" in event] == ["start"]
    assert None not in [result["recipe"][name]
                        for name in ("learning_rate", "max_length", "packing", "cpt_method")]


def test_a_callback_that_raises_does_not_end_the_run(recipe):
    def broken(event):
        raise ZeroDivisionError("no such plot")
    folder = run_chain(recipe("callback", mode="1"), callbacks=[broken])
    assert result_of(folder)["complete"]
    assert [event["callback_error"] for event in read_events(folder) if "callback_error" in event] == [
        "ZeroDivisionError: no such plot"]


def test_damage_in_the_store_is_named(recipe, shelf):
    folder = run_chain(recipe("damage", mode="1", seed=21))
    key = result_of(folder)["stages"][0]["key"]
    (shelf / ".stages" / key / "model" / "config.json").write_text("{}")
    with run_failed("damaged"):
        run_chain(recipe("damage-2", mode="1", seed=21))
    assert hash_key(a=1) != key


def test_mixed_batches_hold_text_and_tasks_each_with_its_mask(recipe):
    ready = prepare_recipe(recipe("mixed", mode="5", max_steps=None))
    dataset, drawn = stage_dataset(ready, ready.stages[0])
    trained = sum(label != -100 for row in dataset for label in row["labels"])
    assert trained == sum(figures["trained_tokens"] for figures in drawn.values())
    text, tasks = drawn["domain_text"], drawn["general_tasks"]
    assert text["trained_tokens"] == text["tokens"] - text["rows"]
    assert tasks["trained_tokens"] < tasks["tokens"] / 2
    together = [row for row in dataset
                if any(label == -100 for label in row["labels"][2:])
                and sum(label != -100 for label in row["labels"]) > 20]
    assert together, "no block holds a text row and a task row"


def test_bfloat16_is_refused_where_the_machine_has_none(recipe, monkeypatch):
    monkeypatch.setattr(loading, "supports_bf16", lambda: False)
    assert prepare_recipe(recipe("no_bf16")).recipe.bf16 is False
    with bad_input("bf16"):
        prepare_recipe(recipe("no_bf16", bf16=True))
