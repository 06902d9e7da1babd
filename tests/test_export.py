"""Export: folders that plain transformers and PEFT load, whole or not there; the card tells no rows."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from sftbench.cli import main
from sftbench.errors import BadInput, RunFailed
from sftbench.evaluation.chat import talk
from sftbench.export import export
from sftbench.export.export import export_stage
from sftbench.recipes.recipe import Recipe, override
from sftbench.runs.folder import read_result, store_folder
from sftbench.training.chain import run_chain
from tests.conftest import small_rows

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(make_model, tmp_path_factory):
    """A function from a method to a small finished run of two stages that has learnt a little."""
    folder, made, paths = tmp_path_factory.mktemp("export"), {}, {}
    start = shutil.copytree(make_model(), folder / "start")
    for role in ("domain_text", "domain_tasks"):
        paths[role] = str(folder / f"{role}.jsonl")
        with open(paths[role], "w") as file:
            file.writelines(json.dumps(row) + "\n" for row in small_rows(role))

    def make(method: str) -> str:
        if method not in made:
            made[method] = str(run_chain(override(
                Recipe(), mode="2", method=method, model=str(start), max_steps=8, probe_rows=4,
                yardstick=False, learning_rate=1e-3, pretraining_learning_rate=1e-3, max_new_tokens=6,
                output_dir=str(folder / method), **paths)))
        return made[method]
    return make


def said_by(model, folder, prompts: list[str]) -> list[str]:
    """Greedy answers by transformers alone, with the folder's own tokenizer and generation settings."""
    tokenizer, said = AutoTokenizer.from_pretrained(folder), []
    for prompt in prompts:
        batch = tokenizer.apply_chat_template([{"role": "user", "content": prompt}], return_tensors="pt",
                                              add_generation_prompt=True, return_dict=True)
        with torch.no_grad():
            new = model.generate(**batch, max_new_tokens=6, do_sample=False)
        said.append(tokenizer.decode(new[0, batch["input_ids"].shape[1]:], skip_special_tokens=True).strip())
    return said


PROMPTS = [row["messages"][0]["content"] for row in small_rows("domain_tasks")[:6]]


def test_merged_weights_answer_as_the_run_does_and_the_card_tells_no_rows(run, tmp_path, capsys):
    assert main(["export", run("lora"), str(tmp_path / "out")]) == 0
    assert "gave 3 of 3 answers" in capsys.readouterr().out
    folder = tmp_path / "out"
    assert {path.name for path in folder.iterdir()} == {
        "README.md", "loss.png", "config.json", "generation_config.json", "model.safetensors",
        "chat_template.jinja", "tokenizer.json", "tokenizer_config.json"}
    assert all(path.stat().st_mode & 0o777 == 0o644 for path in folder.iterdir())
    said = said_by(AutoModelForCausalLM.from_pretrained(folder), folder, PROMPTS)
    assert said == [entry["answer"] for entry in talk([run("lora")], PROMPTS, max_new_tokens=6)]
    assert len(set(said)) > 1
    settings = json.loads((folder / "generation_config.json").read_text())
    assert settings["eos_token_id"] in (1, [1]) and settings["pad_token_id"] == 0
    card = (folder / "README.md").read_text()
    assert "after cpt → domain_sft" in card and "probe after" in card and '"method": "lora"' in card
    assert "| domain_tasks | `domain_tasks.jsonl` | " in card and "domain_text" in card
    assert "item 1" not in card and "Lima" not in card and str(tmp_path.parent) not in card
    again = export_stage(run("lora"), tmp_path / "rows", stage="domain_sft", rows=2)
    assert again["equal"] == again["asked"] == 3
    assert (tmp_path / "rows" / "README.md").read_text().count("wanted: ") == 2


@pytest.mark.parametrize(("method", "stage"), [("lora", "1"), ("lora", None), ("ptuning_v2", None),
                                               ("qlora", "cpt")])
def test_an_adapter_goes_on_its_base_by_peft_alone(run, tmp_path, method, stage):
    done = export_stage(run(method), tmp_path / "out", stage, "adapter")
    assert done["equal"] == done["asked"] and done["form"] == "adapter"
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    base = config["base_model_name_or_path"]
    assert (base == "base") == (method == "lora" and stage is None)
    base = tmp_path / "out" / "base" if base == "base" else base
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "out")
    said = said_by(model, tmp_path / "out", PROMPTS)
    wanted = [entry["answer"] for entry in talk([f"{run(method)}:{stage or 'domain_sft'}"], PROMPTS,
                                                max_new_tokens=6)]
    if method != "qlora":  # its base is four-bit, and the card says how to load that
        assert said == wanted
    else:
        assert "load_in_4bit=True" in (tmp_path / "out" / "README.md").read_text()


def test_what_cannot_be_exported_is_refused_with_the_reason(run, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    for words, arguments in (
            ("is not empty; name a new folder", (run("lora"), tmp_path / "full")),
            ("cannot be merged", (run("ptuning_v2"), tmp_path / "out", None, "merged")),
            ("there is no adapter", (run("freeze"), tmp_path / "out", None, "adapter")),
            ("it has start, cpt, domain_sft", (run("lora"), tmp_path / "out", "sft")),
            ("the start is no stage", (run("lora"), tmp_path / "out", "start")),
            ("no run of that name", (tmp_path / "nowhere", tmp_path / "out"))):
        with pytest.raises(BadInput, match=words):
            export_stage(*arguments)
    assert {path.name for path in tmp_path.iterdir()} == {"full"}
    assert (tmp_path / "full" / "notes.txt").read_text() == "mine"


def test_torn_weights_and_another_base_are_refused_and_nothing_is_left(run, tmp_path, monkeypatch):
    stage = store_folder(Path(run("freeze"))) / read_result(run("freeze"))["stages"][1]["key"]
    weights = stage / "model" / "model.safetensors"
    whole = weights.read_bytes()
    for torn in (whole[:-100], whole[:-1] + bytes([whole[-1] ^ 1])):
        weights.write_bytes(torn)
        with pytest.raises(RunFailed, match="model.safetensors is damaged"):
            export_stage(run("freeze"), tmp_path / "out")
    weights.write_bytes(whole)
    start = Path(read_result(run("lora"))["start"]["model"]) / "model.safetensors"
    whole = start.read_bytes()
    start.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    for method in ("lora", "ptuning_v2"):
        with pytest.raises(BadInput, match="is not the model that .* started from"):
            export_stage(run(method), tmp_path / "out", "cpt", "adapter")
    with pytest.raises(BadInput, match="an adapter goes with its own base only"):
        talk([run("ptuning_v2")], ["x"])
    start.write_bytes(whole)
    monkeypatch.setattr(export, "generate_answers", lambda *args, **more: ["something else"] * 3)
    with pytest.raises(RunFailed, match="answers 3 of 3 prompts otherwise than the run"):
        export_stage(run("freeze"), tmp_path / "out")
    assert not list(tmp_path.iterdir())
