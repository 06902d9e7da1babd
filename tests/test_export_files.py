"""The files of an export: read alike by the libraries of today and by older ones, with nothing stale."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
import transformers
from peft import LoraConfig, PeftConfig, PrefixTuningConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from transformers.trainer_utils import align_special_tokens

from sftbench.export.export import _drop_unused_flags, export_stage
from sftbench.export.older_readers import add_older_spellings
from sftbench.models.loading import load_model, load_tokenizer
from sftbench.models.methods import save_stage_model
from sftbench.recipes.recipe import Recipe, override
from sftbench.training.chain import run_chain
from tests.conftest import small_rows

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 64}
FACTORS = {"short_factor": [1.0] * 8, "long_factor": [2.0] * 8}
SIZES = {"vocab_size": 64, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2,
         "num_attention_heads": 4, "max_position_embeddings": 256, "pad_token_id": 0}
GLOBAL_LOCAL = {"full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 5e5},
                "sliding_attention": {"rope_type": "default", "rope_theta": 2e4}}


@pytest.mark.parametrize(("config", "rope", "older"), [
    ("LlamaConfig", {"rope_type": "default", "rope_theta": 5e5}, {"rope_theta": 5e5}),
    ("Qwen2Config", {"rope_theta": 1e6} | YARN,
     {"rope_theta": 1e6, "rope_scaling": {"type": "yarn"} | YARN}),
    ("LlamaConfig", {"rope_theta": 5e5} | LLAMA3,
     {"rope_theta": 5e5, "rope_scaling": {"type": "llama3"} | LLAMA3}),
    ("MistralConfig", {"rope_theta": 1e4, "rope_type": "dynamic", "factor": 2.0},
     {"rope_theta": 1e4, "rope_scaling": {"type": "dynamic", "rope_type": "dynamic", "factor": 2.0}}),
    ("PhiConfig", {"rope_type": "default", "rope_theta": 2e4, "partial_rotary_factor": 0.4},
     {"rope_theta": 2e4, "partial_rotary_factor": 0.4}),
    ("GPTNeoXConfig", {"rope_type": "default", "rope_theta": 2e4, "partial_rotary_factor": 0.5},
     {"rotary_emb_base": 2e4, "rotary_pct": 0.5}),
    ("Phi3Config", {"rope_type": "longrope", "rope_theta": 2e4} | FACTORS,
     {"rope_theta": 2e4, "rope_scaling": {"type": "longrope"} | FACTORS}),
    ("Gemma3TextConfig", GLOBAL_LOCAL,
     {"rope_theta": 5e5, "rope_local_base_freq": 2e4,
      "rope_scaling": {"type": "linear", "rope_type": "linear", "factor": 8.0}}),
    ("Olmo3Config", {"full_attention": {"rope_type": "default", "rope_theta": 3e5},
                     "sliding_attention": {"rope_type": "default", "rope_theta": 3e5}}, {"rope_theta": 3e5}),
])
def test_a_configuration_has_both_spellings_and_reads_as_before(tmp_path, config, rope, older):
    made = getattr(transformers, config)(**SIZES, rope_parameters=rope, dtype="bfloat16")
    made.save_pretrained(tmp_path)
    before = AutoConfig.from_pretrained(tmp_path)
    assert add_older_spellings(tmp_path, None) == []
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["dtype"] == written["torch_dtype"] == "bfloat16"
    assert {name: written[name] for name in older} == older and "rope_parameters" in written
    assert ("rope_scaling" in written) == ("rope_scaling" in older)
    after = AutoConfig.from_pretrained(tmp_path)
    assert after.dtype == before.dtype == torch.bfloat16
    nested = config in ("Gemma3TextConfig", "Olmo3Config")
    for kind in rope if nested else [None]:
        got, wanted = (one.rope_parameters[kind] if nested else one.rope_parameters
                       for one in (after, before))
        assert {name: got[name] for name in wanted} == wanted


def test_a_mixtures_number_of_experts_has_both_names(make_model, tmp_path):
    folder = shutil.copytree(make_model("qwen3_moe"), tmp_path / "model")
    add_older_spellings(folder, AutoTokenizer.from_pretrained(folder))
    written = json.loads((folder / "config.json").read_text())
    assert (written["num_experts"], written["num_local_experts"]) == (4, 4)
    assert AutoConfig.from_pretrained(folder).num_experts == 4


def test_a_family_without_rotary_embedding_and_a_nested_one_get_what_applies(tmp_path):
    transformers.GPT2Config(dtype="float16").save_pretrained(tmp_path / "gpt2")
    text = transformers.Gemma3TextConfig(**SIZES, rope_parameters=GLOBAL_LOCAL, dtype="float16")
    transformers.Gemma3Config(text_config=text, dtype="float16").save_pretrained(tmp_path / "gemma3")
    for name in ("gpt2", "gemma3"):
        add_older_spellings(tmp_path / name, None)
    gpt2, gemma3 = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("gpt2", "gemma3"))
    assert gpt2["torch_dtype"] == "float16" and not [name for name in gpt2 if "rope" in name]
    assert gemma3["text_config"]["rope_local_base_freq"] == 2e4
    assert AutoConfig.from_pretrained(tmp_path / "gemma3").text_config.rope_parameters[
        "sliding_attention"]["rope_theta"] == 2e4


def test_names_by_which_transformers_would_read_another_model_are_left_out_and_reported(tmp_path):
    """Older versions scale all layers of this family alike, so what some of them have cannot be stated."""
    transformers.ModernBertDecoderConfig(
        vocab_size=64, hidden_size=64, num_hidden_layers=2, num_attention_heads=4,
        rope_parameters=GLOBAL_LOCAL, dtype="float32").save_pretrained(tmp_path)
    before = AutoConfig.from_pretrained(tmp_path).rope_parameters
    assert add_older_spellings(tmp_path, None) == [
        "global_rope_theta", "local_rope_theta", "rope_scaling"]
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["torch_dtype"] == "float32" and "rope_scaling" not in written
    assert AutoConfig.from_pretrained(tmp_path).rope_parameters == before


def test_a_tokenizers_file_names_what_older_versions_know_and_reads_as_before(make_model, tmp_path):
    folder = shutil.copytree(make_model(), tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = {"default": tokenizer.chat_template, "tool_use": "{{ tools }}"}
    tokenizer.save_pretrained(folder)
    add_older_spellings(folder, tokenizer)
    written = json.loads((folder / "tokenizer_config.json").read_text())
    assert written["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert written["additional_special_tokens"] == ["<user>", "<assistant>", "<system>"]
    assert not {"extra_special_tokens", "is_local", "local_files_only", "name_or_path"} & set(written)
    assert written["model_input_names"] == ["input_ids", "attention_mask"]
    assert (written["add_bos_token"], written["add_eos_token"]) == (False, False)
    assert [one["name"] for one in written["chat_template"]] == ["default", "tool_use"]
    read = AutoTokenizer.from_pretrained(folder)
    assert read.chat_template == tokenizer.chat_template
    assert read.extra_special_tokens == tokenizer.extra_special_tokens
    assert read("<user> x<eos>")["input_ids"] == tokenizer("<user> x<eos>")["input_ids"]


@pytest.mark.parametrize("add_bos", [True, False])
def test_a_tokenizers_file_states_whether_a_bos_is_added(tokenizer, tmp_path, add_bos):
    from tokenizers.processors import TemplateProcessing
    tokenizer.save_pretrained(tmp_path)
    changed = AutoTokenizer.from_pretrained(tmp_path, bos_token="<eos>")
    if add_bos:
        changed._tokenizer.post_processor = TemplateProcessing(
            single="<eos> $A", special_tokens=[("<eos>", 1)])
    changed.save_pretrained(tmp_path)
    add_older_spellings(tmp_path, changed)
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["add_bos_token"] == add_bos
    assert (AutoTokenizer.from_pretrained(tmp_path)("x")["input_ids"][0] == 1) == add_bos


@pytest.mark.parametrize("config", [
    LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=7, target_modules=["q_proj"], use_rslora=True),
    LoraConfig(task_type="CAUSAL_LM", use_dora=True, target_modules=["q_proj", "v_proj"]),
    PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)])
def test_an_adapters_file_has_no_field_that_peft_before_0_14_lacks(make_model, tmp_path, config):
    get_peft_model(AutoModelForCausalLM.from_pretrained(make_model()), config).save_pretrained(tmp_path)
    before = PeftConfig.from_pretrained(tmp_path)
    add_older_spellings(tmp_path, None)
    written = json.loads((tmp_path / "adapter_config.json").read_text())
    assert not {"peft_version", "corda_config", "qalora_group_size", "target_parameters", "arrow_config",
                "trainable_token_indices", "alora_invocation_tokens"} & set(written)
    assert PeftConfig.from_pretrained(tmp_path) == before


UNUSED = [({"do_sample": False, "temperature": 0.9}, {"temperature"}),
          ({"temperature": 0.6, "top_p": 0.9, "top_k": 20, "min_p": 0.1, "typical_p": 0.5},
           {"temperature", "top_p", "top_k", "min_p", "typical_p"}),
          ({"num_beams": 1, "early_stopping": True, "length_penalty": 2.0},
           {"early_stopping", "length_penalty"}),
          ({"use_cache": False, "cache_implementation": "static"}, {"cache_implementation"}),
          ({"output_scores": True}, {"output_scores"}),
          ({"do_sample": True, "temperature": 0.6, "top_p": 0.9, "repetition_penalty": 1.1}, set()),
          ({"num_beams": 4, "early_stopping": True, "length_penalty": 2.0}, set())]


@pytest.mark.parametrize(("published", "unused"), UNUSED)
def test_settings_that_do_not_count_are_dropped_and_the_others_stay(tmp_path, published, unused):
    (tmp_path / "generation_config.json").write_text(json.dumps(published))
    settings = GenerationConfig.from_pretrained(tmp_path)
    settings.eos_token_id = [1]
    dropped = _drop_unused_flags(settings)
    assert dropped == {name: published[name] for name in unused}
    settings.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "generation_config.json").read_text())
    assert {name: written.get(name) for name in published} == {
        name: None if name in unused else value for name, value in published.items()}


@pytest.mark.parametrize(("published", "unused"), UNUSED[:-2])
def test_a_trained_stage_is_saved_whatever_settings_its_model_has(make_model, tmp_path, published, unused):
    folder = shutil.copytree(make_model(), tmp_path / "start")
    (folder / "generation_config.json").write_text(json.dumps(published))
    model = load_model(str(folder))
    align_special_tokens(model, load_tokenizer(str(folder)))  # as the trainer does
    save_stage_model(model, "full", tmp_path / "stage")
    written = json.loads((tmp_path / "stage" / "model" / "generation_config.json").read_text())
    assert {name: written[name] for name in published} == published
    load_model(str(tmp_path / "stage" / "model"))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_model_published_with_unused_settings_is_trained_and_exported_and_the_card_names_them(
        make_model, tmp_path, small_files, method):
    start = shutil.copytree(make_model(), tmp_path / "start")
    counting = {"repetition_penalty": 1.3, "min_new_tokens": 2}
    (start / "generation_config.json").write_text(json.dumps(
        {"do_sample": False, "temperature": 0.9, "min_p": 0.1} | counting))
    run = run_chain(override(
        Recipe(), mode="2", method=method, model=str(start), max_steps=2, probe_rows=4, yardstick=False,
        max_new_tokens=6, output_dir=str(tmp_path / "run"), domain_text=small_files["domain_text"],
        domain_tasks=small_files["domain_tasks"]))
    forms = ["merged"] if method == "full" else ["merged", "adapter"]
    for form in forms:
        folder = tmp_path / form
        done = export_stage(run, folder, form=form)
        assert done["equal"] == done["prompts"] == 3
        written = json.loads((folder / "generation_config.json").read_text())
        assert {name: written[name] for name in counting} == counting
        assert not {"temperature", "min_p"} & set(written)
        card = (folder / "README.md").read_text()
        assert "`temperature 0.9, min_p 0.1`" in card


CODE = {"auto_map": {"AutoConfig": "configuration_x.X", "AutoModelForCausalLM": "modeling_x.X"}}


@pytest.mark.slow
@pytest.mark.parametrize(("method", "more", "changed"), [
    ("full", {}, {}), ("qlora", {}, {}), ("ptuning_v2", {}, None),
    ("freeze", {"trainable_parts": "new_blocks:1,new_head"},
     {"added_blocks": [3], "num_hidden_layers": 4, "tie_word_embeddings": False})])
def test_an_export_has_the_start_models_settings_and_nothing_of_where_it_came_from(
        make_model, tmp_path, small_files, method, more, changed):
    start = shutil.copytree(make_model("llama", tie_word_embeddings=True), tmp_path / "start")
    config, names = (json.loads((start / f"{name}.json").read_text())
                     for name in ("config", "tokenizer_config"))
    (start / "config.json").write_text(json.dumps(config | CODE | {"_name_or_path": "someone/else"}))
    (start / "tokenizer_config.json").write_text(json.dumps(
        names | {"auto_map": {"AutoTokenizer": ["code.X", None]}, "name_or_path": "/home/me/x"}))
    (start / "additional_chat_templates").mkdir()
    (start / "additional_chat_templates" / "tool_use.jinja").write_text("{{ tools }}")
    for name in ("preprocessor_config.json", "tokenizer.model", "added_tokens.json", "vocab.json", "A.md"):
        (start / name).write_text("{}")
    run = run_chain(override(
        Recipe(), mode="2", method=method, model=str(start), max_steps=2, probe_rows=4, yardstick=False,
        max_new_tokens=6, output_dir=str(tmp_path / "run"), domain_text=small_files["domain_text"],
        domain_tasks=small_files["domain_tasks"], **more))
    out = Path(export_stage(run, tmp_path / "out")["folder"])
    weights = {"config.json", "model.safetensors"} if changed is not None else {
        "adapter_config.json", "adapter_model.safetensors"}
    assert {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()} == weights | {
        "README.md", "loss.png", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
        "chat_template.jinja", "additional_chat_templates/tool_use.jinja", "preprocessor_config.json",
        "tokenizer.model"}
    tokens = json.loads((out / "tokenizer_config.json").read_text())
    assert not {"auto_map", "name_or_path"} & set(tokens)
    assert {number: token["content"] for number, token in tokens["added_tokens_decoder"].items()} == {
        "0": "<pad>", "1": "<eos>", "2": "<user>", "3": "<assistant>", "4": "<system>"}
    if changed is not None:
        written, older = json.loads((out / "config.json").read_text()), {"rope_theta", "torch_dtype"}
        assert {name: value for name, value in written.items() if name not in older} == config | changed
        model = AutoModelForCausalLM.from_pretrained(out)
        assert (model.lm_head.weight is model.model.embed_tokens.weight) == written["tie_word_embeddings"]


READ = """
import json, sys, torch, transformers
from transformers import AutoModelForCausalLM, AutoTokenizer
answers = {"version": transformers.__version__}
for folder in sys.argv[2:]:
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    given = json.load(open(sys.argv[1]))
    batch = tokenizer(given["text"], return_tensors="pt")
    tokens = model.generate(**batch, max_new_tokens=4, do_sample=False)
    with torch.no_grad():
        logits = model(torch.tensor([given["ids"]])).logits
    answers[folder] = {
        "logits": logits.tolist(), "tokens": tokens.tolist(),
        "special": sorted(set(tokenizer.all_special_ids)), "inputs": sorted(batch),
        "ids": tokenizer([given["text"], "<eos><s>", given["text"] * 2])["input_ids"],
        "text": tokenizer.decode(given["ids"]),
        "chat": tokenizer.apply_chat_template(given["messages"], add_generation_prompt=True, tokenize=False)}
print(json.dumps(answers))
"""
OLD = {"4.51.3": ["tokenizers==0.21.4", "huggingface_hub==0.30.2"],
       "4.57.6": ["tokenizers==0.22.1", "huggingface_hub==0.36.0"]}


def install(*requirements: str) -> Path:
    """A folder with these packages alone, kept for the next test run; fails where pip cannot install them."""
    folder = Path(tempfile.gettempdir()) / f"sftbench-tests-{'-'.join(requirements).replace('==', '-')}"
    if not folder.exists():
        with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
            subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target",
                            f"{temporary}/packages", *requirements], check=True)
            Path(temporary, "packages").rename(folder)
    return folder


def read_by(packages: Path | None, script: str, *arguments) -> dict:
    """What a script prints as JSON, in a process of its own with these packages before the others."""
    done = subprocess.run([sys.executable, "-c", script, *map(str, arguments)], text=True,
                          capture_output=True, env=os.environ | {"PYTHONPATH": str(packages or "")})
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def exports(make_model, tmp_path_factory):
    """Exports of a Llama with another rope base and of the pocket, and files of further families."""
    folder, made = tmp_path_factory.mktemp("exports"), []
    llama = make_model("llama", rope_parameters={"rope_type": "default", "rope_theta": 5e5})
    tasks = folder / "tasks.jsonl"
    tasks.write_text("".join(json.dumps(row) + "\n" for row in small_rows("domain_tasks")))
    for name, own in (("llama", {"model": llama, "domain_tasks": str(tasks)}), ("pocket", {})):
        run = run_chain(override(
            Recipe(), mode="1", max_steps=1, probe_rows=4, yardstick=False, max_new_tokens=4,
            output_dir=str(folder / f"{name}-run"), **own))
        made.append(export_stage(run, folder / name)["folder"])
    longrope = {"rope_type": "longrope", "rope_theta": 2e4} | FACTORS
    quarter = {"rope_type": "default", "rope_theta": 2e4, "partial_rotary_factor": 0.25}
    for family, changes in (("qwen3", {"rope_parameters": {"rope_theta": 1e6} | YARN}),
                            ("phi3", {"rope_parameters": longrope, "original_max_position_embeddings": 64}),
                            ("gpt_neox", {"rope_parameters": quarter}), ("gpt2", {}), ("gemma3", {}),
                            ("llama", {"rope_parameters": {"rope_theta": 5e5} | LLAMA3}), ("qwen3_moe", {})):
        copy = shutil.copytree(make_model(family, **changes), folder / f"{family}-files")
        add_older_spellings(copy, AutoTokenizer.from_pretrained(copy))
        made.append(str(copy))
    return made


@pytest.mark.slow
@pytest.mark.parametrize("version", OLD)
def test_an_older_transformers_reads_the_same_model_and_tokens(exports, tmp_path, version):
    given = tmp_path / "given.json"
    given.write_text(json.dumps({"text": "Where is item 7?\\n It's in  Lima, naïve 北京.",
                                 "ids": [*range(2, 130)],
                                 "messages": [{"role": "user", "content": "Where?"}]}))
    new = read_by(None, READ, given, *exports)
    old = read_by(install(f"transformers=={version}", *OLD[version]), READ, given, *exports)
    assert (old.pop("version"), new.pop("version")) == (version, transformers.__version__)
    for folder in exports:
        logits = [torch.tensor(read[folder].pop("logits")) for read in (old, new)]
        assert (logits[0] - logits[1]).abs().max() <= 1e-4, folder
        assert old[folder] == new[folder]
