"""Fixtures built from code: a tokenizer, a tiny model of any family, and small data of all four roles."""

import json
import os
import shutil
import tempfile

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# a cache of their own, so that the tests read everything anew
os.environ["HF_DATASETS_CACHE"] = tempfile.mkdtemp(prefix="sftbench-test-cache-")
os.environ["TRACKIO_DIR"] = os.path.join(os.environ["HF_DATASETS_CACHE"], "trackio")  # read once, at import

import pytest

from sftbench.errors import BadInput, RunFailed

FAMILIES = {
    "qwen3": ("Qwen3Config", {"head_dim": 16}),
    "llama": ("LlamaConfig", {}),
    "mistral": ("MistralConfig", {}),
    "gemma3": ("Gemma3TextConfig", {"head_dim": 16}),
    "phi3": ("Phi3Config", {}),
    "gpt2": ("GPT2Config", {}),
    "gpt_neox": ("GPTNeoXConfig", {}),
    "olmo2": ("Olmo2Config", {}),
    "qwen3_moe": ("Qwen3MoeConfig", {"head_dim": 16, "num_experts": 4, "num_experts_per_tok": 2,
                                     "moe_intermediate_size": 64}),
}


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]):
    """Tests that share a module's fixture run in one process, which builds it once; browser tests begin."""
    for item in items:
        if any(found[-1].scope == "module" for found in item._fixtureinfo.name2fixturedefs.values()):
            item.add_marker(pytest.mark.xdist_group(item.module.__name__))
    items.sort(key=lambda item: item.get_closest_marker("browser") is None)


def pytest_unconfigure():
    """Remove the tests' cache."""
    shutil.rmtree(os.environ["HF_DATASETS_CACHE"], ignore_errors=True)


def bad_input(field: str = "", where: object = "", match: str | None = None):
    """Expect a BadInput with this field and place; `match` is for what these do not say, as a near name."""
    return pytest.raises(BadInput, match=match,
                         check=lambda error: (error.field, error.where) == (field, str(where)))


def run_failed(reason: str, match: str | None = None):
    """Expect a RunFailed with this reason; `match` as in `bad_input`."""
    return pytest.raises(RunFailed, match=match, check=lambda error: error.reason == reason)


CITIES = ("Lisbon", "Oslo", "Cairo", "Lima", "Tokyo", "Paris", "Delhi", "Quito")


def small_rows(role: str, count: int = 40) -> list[dict]:
    """Rows of a role with something to learn: where invented things are kept, where invented people live."""
    thing = "item" if role.startswith("domain") else "person"
    facts = [(f"{thing} {number}", CITIES[number * 3 % 8]) for number in range(count)]
    if role.endswith("_text"):
        return [{"text": f"The {name} is in {city}. You find {name} in {city}."} for name, city in facts]
    return [{"messages": [{"role": "user", "content": f"Where is {name}?"},
                          {"role": "assistant", "content": city}]} for name, city in facts]


def make_tokenizer():
    """A byte-level BPE tokenizer with a chat template, pad, eos and no bos."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    rows = [json.dumps(row) for role in ("domain_text", "domain_tasks", "general_tasks")
            for row in small_rows(role)]
    special = ["<pad>", "<eos>", "<user>", "<assistant>", "<system>"]
    raw.train_from_iterator(rows, trainers.BpeTrainer(
        vocab_size=384, special_tokens=special, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    made = PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", eos_token="<eos>",
                                   additional_special_tokens=special[2:], padding_side="left")
    made.chat_template = (
        "{% for m in messages %}{{ '<' + m['role'] + '> ' + m['content'] }}"
        "{% if m['role'] == 'assistant' %}{{ '<eos>' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}")
    return made


@pytest.fixture(scope="session")
def tokenizer():
    """The tokenizer of the tiny models."""
    return make_tokenizer()


@pytest.fixture(scope="session")
def make_model(tmp_path_factory, tokenizer):
    """A function from a family's name to the folder of a tiny random model of it, with the tokenizer."""
    import torch
    import transformers
    made = {}

    def make(family: str = "qwen3", **changes) -> str:
        key = f"{family}{sorted(changes.items())}"
        if key not in made:
            torch.manual_seed(0)
            name, extra = FAMILIES[family]
            sizes = {"vocab_size": len(tokenizer), "hidden_size": 64, "intermediate_size": 128,
                     "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
                     "max_position_embeddings": 256, "pad_token_id": 0, "eos_token_id": 1,
                     "bos_token_id": None}
            if family == "gpt2":
                sizes = {"vocab_size": len(tokenizer), "n_embd": 64, "n_layer": 3, "n_head": 4,
                         "n_positions": 256, "eos_token_id": 1, "bos_token_id": None}
            if family == "gpt_neox":
                del sizes["num_key_value_heads"]
            config = getattr(transformers, name)(**sizes | extra | changes)
            folder = tmp_path_factory.mktemp(family)
            transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            made[key] = str(folder)
        return made[key]
    return make


@pytest.fixture
def small_files(tmp_path):
    """The four roles as files, as recipe values."""
    paths = {}
    for role in ("domain_text", "domain_tasks", "general_text", "general_tasks"):
        path = tmp_path / f"{role}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in small_rows(role)))
        paths[role] = str(path)
    return paths


@pytest.fixture
def settings():
    """A function from a method and changed fields to a stage's settings, resolved for the small models."""
    from sftbench.recipes.facts import Facts
    from sftbench.recipes.hyperparameters import resolve_recipe
    from sftbench.recipes.recipe import Recipe, override
    from sftbench.recipes.stages import stage_settings

    def make(method: str = "full", kind: str = "sft", **values) -> dict:
        values = {"learning_rate": 1e-2, "warmup_ratio": 0.0, "lora_dropout": 0.0, "max_length": 64,
                  "per_device_train_batch_size": 4} | values
        recipe = override(Recipe(), method=method, pretraining_learning_rate=1e-2, **values)
        return stage_settings(resolve_recipe(recipe, Facts(context=256))[0], kind)
    return make
