"""Export: folders that plain transformers and PEFT load, complete or absent; cards are safe to render."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from sftbench.cli import main
from sftbench.errors import BadInput, RunFailed
from sftbench.evaluation.chat import talk
from sftbench.export import export
from sftbench.export.export import ExportCheck, export_stage
from sftbench.export.model_card import write_model_card
from sftbench.recipes.recipe import Recipe, override
from sftbench.runs.folder import read_result, store_folder
from sftbench.training.chain import run_chain
from tests.conftest import small_rows

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(make_model, tmp_path_factory):
    """A function from a method to a small finished run of two stages that has learnt a little."""
    folder, finished, paths = tmp_path_factory.mktemp("export"), {}, {}
    start = shutil.copytree(make_model(), folder / "start")
    for role in ("domain_text", "domain_tasks"):
        paths[role] = str(folder / f"{role}.jsonl")
        with open(paths[role], "w") as file:
            file.writelines(json.dumps(row) + "\n" for row in small_rows(role))

    def train(method: str) -> str:
        if method not in finished:
            finished[method] = str(run_chain(override(
                Recipe(), mode="2", method=method, model=str(start), max_steps=40, probe_rows=4,
                yardstick=False, learning_rate=3e-3, pretraining_learning_rate=3e-3, max_new_tokens=6,
                output_dir=str(folder / method), **paths)))
        return finished[method]
    return train


def answer_plainly(model, folder, prompts: list[str]) -> list[str]:
    """Greedy answers by transformers alone, with the folder's own tokenizer and generation settings."""
    tokenizer, answers = AutoTokenizer.from_pretrained(folder), []
    for prompt in prompts:
        batch = tokenizer.apply_chat_template([{"role": "user", "content": prompt}], return_tensors="pt",
                                              add_generation_prompt=True, return_dict=True)
        with torch.no_grad():
            new = model.generate(**batch, max_new_tokens=6, do_sample=False)
        new = new[0, batch["input_ids"].shape[1]:]
        answers.append(tokenizer.decode(new, skip_special_tokens=True).strip())
    return answers


PROMPTS = [row["messages"][0]["content"] for row in small_rows("domain_tasks")[:6]]


def test_merged_weights_answer_as_the_run_does_and_the_card_shows_no_rows(run, tmp_path, capsys):
    assert main(["export", run("lora"), str(tmp_path / "out")]) == 0
    assert "3 of 3" in capsys.readouterr().out
    folder = tmp_path / "out"
    assert {path.name for path in folder.iterdir()} == {
        "README.md", "loss.png", "config.json", "generation_config.json", "model.safetensors",
        "chat_template.jinja", "tokenizer.json", "tokenizer_config.json"}
    assert folder.stat().st_mode & 0o777 == 0o755
    assert all(path.stat().st_mode & 0o777 == 0o644 for path in folder.iterdir())
    answers = answer_plainly(AutoModelForCausalLM.from_pretrained(folder), folder, PROMPTS)
    assert answers == [entry["answer"] for entry in talk([run("lora")], PROMPTS, max_new_tokens=6)]
    assert len(set(answers)) > 1
    settings = json.loads((folder / "generation_config.json").read_text())
    assert settings["eos_token_id"] in (1, [1]) and settings["pad_token_id"] == 0
    card = (folder / "README.md").read_text()
    assert "after cpt → domain_sft" in card and "probe after" in card and '"method": "lora"' in card
    assert "| domain_tasks | `domain_tasks.jsonl` | " in card and "domain_text" in card
    assert "item 1" not in card and "Lima" not in card and str(tmp_path.parent) not in card
    trained = read_result(run("lora"))["stages"][1]["tokens"]
    assert f"100% of {trained:,} tokens |" in card and "BASE" not in card and "3 of 3" in card
    data = ModelCard(card).data
    assert (data.library_name, data.base_model, data.tags) == ("transformers", None, ["sftbench", "lora"])
    again = export_stage(run("lora"), tmp_path / "rows", stage="domain_sft", rows=2)
    assert again["equal"] == again["prompts"] == 3
    assert (tmp_path / "rows" / "README.md").read_text().count("wanted: ") == 2


@pytest.mark.parametrize(("method", "stage"), [("lora", "1"), ("lora", None), ("ptuning_v2", None),
                                               ("qlora", "cpt")])
def test_an_adapter_goes_on_its_base_by_peft_alone(run, tmp_path, method, stage):
    done = export_stage(run(method), tmp_path / "out", stage, "adapter")
    assert done["equal"] == done["prompts"] and done["form"] == "adapter"
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    base, card = config["base_model_name_or_path"], (tmp_path / "out" / "README.md").read_text()
    own_base = method == "lora" and stage is None
    assert (base == "base") == own_base == ("`BASE` is a local folder (`start`)" not in card)
    assert ("exported merged" in card) == (not own_base and method != "ptuning_v2")
    assert ("domain_sft" in card) == (stage is None)  # later stages are no part of the model
    base = tmp_path / "out" / "base" if base == "base" else base
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "out")
    answers = answer_plainly(model, tmp_path / "out", PROMPTS)
    wanted = [entry["answer"] for entry in talk([f"{run(method)}:{stage or 'domain_sft'}"], PROMPTS,
                                                max_new_tokens=6)]
    if method != "qlora":  # its base is four-bit, and the card says how to load that
        assert answers == wanted
    else:
        assert "load_in_4bit=True" in card


@pytest.mark.parametrize(("method", "stage", "form"), [
    ("lora", None, "merged"), ("lora", None, "adapter"), ("ptuning_v2", None, "adapter")])
def test_the_cards_code_loads_the_folder_and_answers(run, tmp_path, capsys, method, stage, form):
    export_stage(run(method), tmp_path / "FOLDER", stage, form)
    tokens = MarkdownIt().parse((tmp_path / "FOLDER" / "README.md").read_text())
    code, = (token.content for token in tokens if token.info == "python")
    values = {"FOLDER": str(tmp_path / "FOLDER"), "BASE": str(Path(run(method)).parent / "start"),
              "…": PROMPTS[0], "max_new_tokens=64": "max_new_tokens=6"}
    for name, value in values.items():
        code = code.replace(name, value)
    exec(code, {})
    answer, = talk([run(method)], PROMPTS[:1], max_new_tokens=6)
    assert capsys.readouterr().out.strip() == answer["answer"]


def test_a_card_names_a_base_on_the_hub_with_its_revision(run, tmp_path):
    folder = tmp_path / "out"
    export_stage(run("lora"), folder, "cpt", "adapter")
    plan = replace(export._make_plan(Path(run("lora")), "cpt", "adapter"), start="owner/base",
                   hub="owner/base", base="owner/base", revision="abc123")
    write_model_card(folder, plan, ExportCheck(3, 3, {}, []), [])
    card = ModelCard.load(folder / "README.md")
    assert (card.data.base_model, card.data.library_name) == ("owner/base", "peft")
    assert 'from_pretrained("owner/base", revision="abc123")' in card.text and "BASE" not in card.text


HOSTILE = "<script>alert(1)</script> ![x](http://a.test/x.png) <img src=x> [y](http://b) | `` ` ``` *z* </td>"


def test_a_card_keeps_hostile_text_within_code(run, tmp_path):
    """Parsed as Markdown, hostile names, sentences and questions add no HTML, link, picture or heading."""
    folder = tmp_path / "out"
    export_stage(run("lora"), folder)
    stranger = shutil.copytree(run("lora"), tmp_path / f"{HOSTILE.replace('/', '')}")
    stored, result = (json.loads((stranger / f"{name}.json").read_text()) for name in ("recipe", "result"))
    stored["mode"]["sentence"] = f"# one\n\n~~~\n<!-- {HOSTILE}\n\n" + "long " * 1000
    stored["data"]["domain_tasks"]["source"] = HOSTILE
    result["recipe"] |= {"mode": HOSTILE, "system_prompts": f"\n```\n{HOSTILE}"}
    for name, data in (("recipe", stored), ("result", result)):
        (stranger / f"{name}.json").write_text(json.dumps(data))
    plan = replace(export._make_plan(Path(run("lora")), None, None), run=stranger, start=HOSTILE, hub=HOSTILE)
    examples = [dict.fromkeys(("prompt", "wanted", "answer"), f"````\n---\n{HOSTILE}\r\n~~~\n```")]
    write_model_card(folder, plan, ExportCheck(3, 3, {}, []), examples)
    card = ModelCard.load(folder / "README.md")
    assert card.data.base_model == HOSTILE
    tokens = MarkdownIt("commonmark", {"html": True}).enable("table").parse(card.text)
    tokens += [child for token in tokens for child in token.children or []]
    assert not [token for token in tokens if token.type.startswith(("html", "link", "em_"))]
    assert [token.attrs["src"] for token in tokens if token.type == "image"] == ["loss.png"]
    headings = [after.content for token, after in zip(tokens, tokens[1:], strict=False)
                if token.type == "heading_open"]
    assert headings[1:] == ["Use", "What was gained and what was lost", "Data", "Examples", "Recipe"]
    in_code = [token.content for token in tokens if token.type in ("code_inline", "fence")]
    assert sum(HOSTILE[:76] in text for text in in_code) == 6
    assert len([token for token in tokens if token.type == "td_open"]) == 5 * len(stored["data"])


def test_a_card_cuts_every_path_of_a_list_to_its_name_and_leaves_long_text(run, tmp_path):
    folder = tmp_path / "out"
    export_stage(run("lora"), folder)
    copy = shutil.copytree(run("lora"), tmp_path / "copy")
    stored, result = (json.loads((copy / f"{name}.json").read_text()) for name in ("recipe", "result"))
    sources = 'qa=/home/me/a.jsonl:2,"/home/me/b, c.jsonl",owner/set#train'
    stored["data"]["domain_tasks"]["source"] = result["recipe"]["domain_tasks"] = sources
    (tmp_path / "one, two").mkdir()
    result["recipe"]["mode"] = str(tmp_path / "one, two")
    result["recipe"]["prefix_init_text"] = "Answer, in a word: yes or no. " * 20
    for name, data in (("recipe", stored), ("result", result)):
        (copy / f"{name}.json").write_text(json.dumps(data))
    write_model_card(folder, replace(export._make_plan(copy, None, None), start="/home/me/start"),
                     ExportCheck(3, 3, {}, []), [])
    card = (folder / "README.md").read_text()
    assert "/home" not in card and str(tmp_path) not in card and "Mode `one, two`: " in card
    assert '`qa=a.jsonl:2,"b, c.jsonl",owner/set#train`' in card
    assert result["recipe"]["prefix_init_text"] in card


@pytest.mark.parametrize("method", ["lora", "freeze"])
def test_plain_transformers_loads_the_folder_of_each_stage_in_the_store(run, method):
    for entry in read_result(run(method))["stages"]:
        folder = store_folder(Path(run(method))) / entry["key"] / "model"
        model, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
        assert not any(report.values()) and model.config.use_cache
        wanted = talk([f"{run(method)}:{entry['name']}"], PROMPTS, max_new_tokens=6)
        assert answer_plainly(model, folder, PROMPTS) == [one["answer"] for one in wanted]


def test_a_card_states_in_numbers_which_data_nothing_was_learnt_from(run, tmp_path):
    folder = tmp_path / "out"
    export_stage(run("lora"), folder)
    assert "that nothing reads" not in (folder / "README.md").read_text()
    copy = shutil.copytree(run("lora"), tmp_path / "copy")
    stored = json.loads((copy / "recipe.json").read_text())
    stored["data"]["domain_tasks"] |= {
        "unused": {"difficulty": 1200, "messages[].`name`": 3},
        "bad_reasons": {"secret words": 4, "other": 2},
        "passed_over": {"/home/me/a.bin": "no data", "b.md": "a card"}}
    stored["data"]["domain_text"] |= {"unused": {}, "bad_reasons": {}, "passed_over": {"c.md": "a card"}}
    (copy / "recipe.json").write_text(json.dumps(stored))
    write_model_card(folder, export._make_plan(copy, None, None), ExportCheck(3, 3, {}, []), [])
    card = (folder / "README.md").read_text()
    assert ("Of domain_tasks: fields that nothing reads: `difficulty` in 1,200 rows, `messages[]. name ` in "
            "3 rows; rows that could not be used: 6; files passed over: 2.\n\n") in card
    assert "Of domain_text: files passed over: 1.\n" in card
    assert not [word for word in ("secret", "a.bin", "/home", "b.md") if word in card]


def test_a_card_states_by_which_scorer_answers_were_judged_and_what_was_left_out(run, tmp_path):
    folder = tmp_path / "out"
    export_stage(run("lora"), folder)
    copy = shutil.copytree(run("lora"), tmp_path / "copy")
    result = json.loads((copy / "result.json").read_text()) | {"scorers": {"domain_tasks": {"f1": 4}}}
    (copy / "result.json").write_text(json.dumps(result))
    write_model_card(folder, export._make_plan(copy, None, None),
                     ExportCheck(3, 3, {"top_p": 0.9}, ["rope_scaling"]), [])
    card = (folder / "README.md").read_text()
    assert "by the scorer f1 (4 rows)" in card
    assert "were left out: `top_p 0.9`" in card and "`config.json` lacks `rope_scaling`" in card


def test_what_cannot_be_exported_is_refused_with_the_reason(run, tmp_path):
    full, out = tmp_path / "full", tmp_path / "out"
    full.mkdir()
    (full / "notes.txt").write_text("mine")
    for field, words, arguments in (
            ("folder", str(full), (run("lora"), full)),
            ("form", "as --adapter", (run("ptuning_v2"), out, None, "merged")),
            ("form", "as --merged", (run("freeze"), out, None, "adapter")),
            ("stage", "'sft'; it has start, cpt, domain_sft", (run("lora"), out, "sft")),
            ("stage", "cpt, domain_sft", (run("lora"), out, "start")),
            ("", str(tmp_path / "nowhere"), (tmp_path / "nowhere", out))):
        with pytest.raises(BadInput, match=words) as refused:
            export_stage(*arguments)
        assert refused.value.field == field
    assert {path.name for path in tmp_path.iterdir()} == {"full"}
    assert (full / "notes.txt").read_text() == "mine"


def test_torn_weights_and_another_base_are_refused_and_nothing_is_left(run, tmp_path, monkeypatch):
    stage = store_folder(Path(run("freeze"))) / read_result(run("freeze"))["stages"][1]["key"]
    weights = stage / "model" / "model.safetensors"
    intact = weights.read_bytes()
    for torn in (intact[:-100], intact[:-1] + bytes([intact[-1] ^ 1])):
        weights.write_bytes(torn)
        with pytest.raises(RunFailed, match="model.safetensors is damaged"):
            export_stage(run("freeze"), tmp_path / "out")
    weights.write_bytes(intact)
    runs = [run("lora"), run("ptuning_v2")]  # trained before their start model is another one
    start = Path(read_result(runs[0])["start"]["model"]) / "model.safetensors"
    intact = start.read_bytes()
    start.write_bytes(intact[:-1] + bytes([intact[-1] ^ 1]))
    for folder in runs:
        with pytest.raises(BadInput) as refused:
            export_stage(folder, tmp_path / "out", "cpt", "adapter")
        assert refused.value.where == str(start.parent)
    with pytest.raises(BadInput) as refused:
        talk([run("ptuning_v2")], ["x"])
    assert refused.value.where == str(start.parent)
    start.write_bytes(intact)
    monkeypatch.setattr(export, "generate_answers", lambda *args: ["something else"])
    with pytest.raises(RunFailed, match="3 of 3"):
        export_stage(run("freeze"), tmp_path / "out")
    assert not list(tmp_path.iterdir())
