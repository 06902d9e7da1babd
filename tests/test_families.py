"""Families and methods: two stages, export, and plain transformers or PEFT computes the same."""

import gc
import json

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from sftbench.export.export import export_stage
from sftbench.models.architecture import expert_names, measure_architecture
from sftbench.models.checkpoint import load_stage
from sftbench.models.loading import load_model, supports_bf16
from sftbench.models.methods import lora, trainable_parameters
from sftbench.recipes.recipe import METHODS, Recipe, override
from sftbench.runs.folder import read_json, read_result
from sftbench.training.chain import run_chain
from tests.conftest import FAMILIES, bad_input, small_rows
from tests.families import try_family


@pytest.fixture(scope="module")
def train(make_model, tmp_path_factory):
    """A function from family and method to the folder of a small finished run of CPT and SFT."""
    folder, paths = tmp_path_factory.mktemp("families"), {}
    for role in ("domain_text", "domain_tasks"):
        paths[role] = str(folder / f"{role}.jsonl")
        with open(paths[role], "w") as file:
            file.writelines(json.dumps(row) + "\n" for row in small_rows(role, 16))
    gc.collect()
    gc.freeze()  # what the imports made is left out when a stage's end looks for garbage: half of a small run

    def make(family: str, method: str, **values):
        layers = {"n_layer": 2} if family == "gpt2" else {"num_hidden_layers": 2}
        return run_chain(override(Recipe(), **{
            "mode": "2", "method": method, "model": make_model(family, **layers), "max_steps": 2,
            "probe_share": 0.2, "probe_rows": 2, "yardstick": False, "max_new_tokens": 3,
            "num_virtual_tokens": 4, "trainable_parts": "last:1, norm",
            "learning_rate": 1e-3, "pretraining_learning_rate": 1e-3,
            "output_dir": str(folder / f"{family}-{method}-{len(values)}")} | paths | values))
    yield make
    gc.unfreeze()


# Every family by LoRA, which touches most of it; every method on a usual family; and where a method meets
# what is unusual: GPT-2's transposed layers, a mixture's fused experts, Gemma's windows under a prefix.
PAIRS = [*((family, "lora") for family in FAMILIES),
         *(("qwen3", method) for method in METHODS if method != "lora"),
         *(("gpt2", method) for method in ("qlora", "ptuning_v2", "freeze")),
         *(("qwen3_moe", method) for method in METHODS if method != "lora"), ("gemma3", "ptuning_v2")]


@pytest.mark.slow
@pytest.mark.parametrize(("family", "method"), PAIRS)
def test_families_train_by_the_methods_and_load_plainly(train, tmp_path, family, method):
    run = train(family, method)
    result = read_result(run)
    assert [(entry["name"], entry["steps"]) for entry in result["stages"]] == [("cpt", 2), ("domain_sft", 2)]
    for entry in result["stages"]:
        assert (entry["trainable_parameters"] < entry["parameters"]) == (method != "full")
    (run / "loss.png").touch()  # a run that has its curve is not drawn anew
    done = export_stage(run, tmp_path / "out")
    assert done["equal"] == done["prompts"] > 0
    tokens = torch.arange(40, 60)[None]
    model, _ = load_stage(run)
    base = result["start"]["model"] if method == "ptuning_v2" else tmp_path / "out"
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    before = AutoModelForCausalLM.from_pretrained(result["start"]["model"], dtype=torch.float32).eval()
    if method == "ptuning_v2":
        plain = PeftModel.from_pretrained(plain, tmp_path / "out").eval()
    with torch.no_grad():
        wanted, found, start = (one.eval()(input_ids=tokens).logits for one in (model, plain, before))
    assert torch.allclose(found, wanted, atol=1e-4) and not torch.allclose(start, wanted, atol=1e-4)


def test_lora_reaches_fused_experts_and_says_so(make_model, tokenizer, settings):
    model = load_model(make_model("qwen3_moe"))
    experts = expert_names(model)
    assert len(experts) == 2 * 3 and measure_architecture(model.config)["experts"] == sum(
        model.get_parameter(name).numel() for name in experts)
    sizes = trainable_parameters(lora(model, tokenizer, settings("lora"), ""))
    assert sum(".experts." in name for name in sizes) == 4 * 3
    with bad_input("method", match="lora_dropout"):
        lora(load_model(make_model("qwen3_moe")), tokenizer,
                     settings("lora", lora_dropout=0.1), "")


@pytest.mark.slow
@pytest.mark.skipif(not supports_bf16(), reason="this device has no bfloat16 of its own")
@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_in_bfloat16_where_the_device_has_it(train, method):
    run = train("qwen3", method, bf16=True, mode="1")
    entry, = read_result(run)["stages"]
    assert entry["steps"] == 2 and 0 < entry["train_loss"] < 20
    reasons = read_json(run, "recipe.json")["reasons"]
    assert "bf16" not in reasons and "bfloat16" in reasons["weights"] or method == "qlora"
    kept = {weight.dtype for weight in load_stage(run)[0].parameters()}
    assert kept == {torch.float32}


HYBRIDS = ("qwen3_next", "qwen3_5_text", "lfm2", "jamba", "granitemoehybrid", "nemotron_h")  # by layer
NAMED = {**dict.fromkeys(HYBRIDS, False), "gpt_neo": True, "gemma2": True, "gpt_oss": False, "gpt2": True,
         "opt": False}  # whether rows may share a block


@pytest.mark.slow
@pytest.mark.parametrize("family", NAMED)
def test_a_family_trains_by_every_method_or_refuses_it_before_any_work(tokenizer, tmp_path, family):
    found = try_family(family, tokenizer, tmp_path)
    assert not any("failed" in one for one in found.values()), found
    refused = {method: one["refused"] for method, one in found.items() if "refused" in one}
    assert refused == ({"ptuning_v2": "method"} if family in HYBRIDS else {})
    done = [one for method, one in found.items() if method not in refused]
    assert [(one["packs"], one["equal"]) for one in done if one["exports"] == "merged"] == [
        (NAMED[family], True)] * 4
