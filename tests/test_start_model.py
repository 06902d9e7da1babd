"""The start model is asked what it can do, and what lies beyond its embedding or positions is refused."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from sftbench.models import loading
from sftbench.models.architecture import measure_architecture, with_attention
from sftbench.models.loading import load_model
from sftbench.models.methods import ask_prefix
from sftbench.models.packing import ask_packing
from sftbench.recipes.recipe import Recipe, override
from sftbench.training.data_check import measure_data
from sftbench.training.prepare import prepare_recipe
from tests.conftest import bad_input, small_rows
from tests.families import save_tiny, tiny_config


def build(family: str, **changes):
    """A random model of a family in memory, with the attention that loading takes."""
    torch.manual_seed(0)
    config = tiny_config(family, 384, **changes)
    return with_attention(lambda kind: AutoModelForCausalLM.from_config(config, attn_implementation=kind))


@pytest.fixture
def prepare(tmp_path, tokenizer):
    """A function from a family, changes of its configuration and recipe values to a prepared recipe."""
    data = tmp_path / "domain_tasks.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in small_rows("domain_tasks", 10)))

    def make(family: str, changes: dict | None = None, words=tokenizer, **values):
        folder = tmp_path / f"{family}-{len(changes or {})}-{len(words)}"
        if not folder.exists():
            save_tiny(family, words, folder, **{"vocab_size": len(tokenizer)} | (changes or {}))
        return prepare_recipe(override(Recipe(), **{
            "mode": "1", "model": str(folder), "domain_tasks": str(data), "probe_share": 0.2,
            "yardstick": False} | values))
    return make


@pytest.mark.parametrize("family", [
    "llama", "qwen3_moe", "gpt2", "gptj", "gpt_neo", "gemma2", "gemma3_text", "vaultgemma", "phi", "cohere2"])
def test_rows_share_a_block_where_positions_keep_them_apart(family):
    assert ask_packing(build(family)) == ""


@pytest.mark.parametrize("family", [
    "qwen3_next", "qwen3_5_text", "lfm2", "jamba", "granitemoehybrid", "nemotron_h", "olmo_hybrid", "opt",
    "mamba", "mamba2", "falcon_mamba", "recurrent_gemma", "rwkv", "bloom", "mpt", "openai-gpt",
    "gpt_oss"])
def test_rows_do_not_share_a_block_where_the_model_would_notice(family):
    assert type(build(family)).__name__ in ask_packing(build(family))


@torch.no_grad()
def test_a_leak_of_a_few_tokens_only_is_noticed():
    model = build("lfm2")
    assert ask_packing(model)
    # a convolution that looks at its own token alone mixes nothing, and attention keeps rows apart
    model.model.layers[0].conv.conv.weight[..., :-1] = 0
    assert ask_packing(model) == ""
    model.model.layers[0].conv.conv.weight[..., -2] = 1e-2  # one token back: two rows' border alone
    assert ask_packing(model)


@pytest.mark.parametrize("family", ["bert", "roberta", "xlnet", "xlm"])
def test_a_model_whose_tokens_see_later_ones_is_refused(family):
    with bad_input("model", match="no causal language model"):
        ask_packing(build(family))


def test_an_encoder_made_a_decoder_is_a_causal_model():
    assert ask_packing(build("bert", is_decoder=True, add_cross_attention=False)) is not None


@torch.no_grad()
def test_a_model_that_gives_no_numbers_is_refused():
    model = build("llama")
    model.lm_head.weight[3] = float("nan")
    with bad_input("model"):
        ask_packing(model)


@pytest.mark.parametrize("family", ["lfm2", "qwen3_next", "jamba", "mamba", "rwkv"])
def test_a_family_whose_cache_holds_no_prefix_says_so(family):
    assert type(build(family)).__name__ in ask_prefix(build(family))


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt_neo", "opt", "gpt2"])
def test_a_family_with_keys_and_values_takes_a_prefix(family):
    assert ask_prefix(build(family)) == ""


def test_a_model_that_ends_its_answer_at_once_takes_a_prefix():
    assert ask_prefix(load_model("pocket")) == ""


def test_a_hybrid_comes_out_unpacked_with_the_reason_and_packing_by_hand_is_refused(prepare):
    ready = prepare("lfm2")
    assert ready.recipe.packing is False and ready.stages[0].settings.packing is False
    assert "Lfm2ForCausalLM" in ready.reasons["packing"]
    assert prepare("lfm2", packing=False).recipe.packing is False
    with bad_input("packing"):
        prepare("lfm2", packing=True)
    with bad_input("method"):
        prepare("lfm2", method="ptuning_v2")
    assert prepare("llama").recipe.packing is True and prepare("llama", packing=True).recipe.packing


def test_a_model_is_asked_once_for_its_revision(prepare, monkeypatch):
    first = prepare("opt")
    assert not first.recipe.packing

    def load(*_, **__):
        raise AssertionError("loaded again")
    monkeypatch.setattr(loading, "load_model", load)
    assert prepare("opt", seed=3).reasons["packing"] == first.reasons["packing"]


@pytest.mark.parametrize(("family", "kind"), [
    ("gemma2", "eager"), ("gpt_oss", "eager"), ("vaultgemma", "eager"), ("llama", "sdpa"), ("opt", "sdpa")])
def test_attention_is_eager_where_transformers_has_no_sdpa_and_the_recipe_says_so(prepare, family, kind):
    ready = prepare(family)
    assert ready.facts.attention == kind
    assert ready.reasons["attn_implementation"].startswith(f"{kind} because")
    model, plain = loading.load_model(ready.start), AutoModelForCausalLM.from_pretrained(ready.start)
    assert model.config._attn_implementation == plain.config._attn_implementation == kind
    ids = torch.arange(20, 60)[None]
    with torch.no_grad():
        assert torch.equal(model.eval()(input_ids=ids).logits, plain.eval()(input_ids=ids).logits)


def enlarged(tokenizer, special: dict | None = None, words: list[str] | None = None):
    """The tokenizer with tokens of its own beyond the model's embedding."""
    other = PreTrainedTokenizerFast(tokenizer_object=type(tokenizer._tokenizer).from_str(
        tokenizer._tokenizer.to_str()), pad_token="<pad>", eos_token="<eos>", padding_side="left")
    other.chat_template = tokenizer.chat_template
    other.add_special_tokens(special or {})
    other.add_tokens(words or [])
    return other


@pytest.mark.parametrize(("special", "words"), [
    ({"pad_token": "<new_pad>"}, []), ({"eos_token": "<new_eos>"}, []), ({}, ["Where is"]), ({}, ["item 7"])])
def test_a_token_in_use_beyond_the_embedding_is_refused_with_the_remedy(prepare, tokenizer, special, words):
    with bad_input("model", match=r"resize_token_embeddings\(385\)"):
        prepare("llama", words=enlarged(tokenizer, special, words))


def test_a_token_beyond_the_embedding_that_nothing_uses_is_no_fault(prepare, tokenizer):
    assert prepare("llama", words=enlarged(tokenizer, words=["Zanzibar", "Ulm"])).facts.vocabulary == 384


def test_check_refuses_a_token_beyond_the_embedding_too(prepare, tokenizer, tmp_path):
    data = tmp_path / "domain_tasks.jsonl"
    folder = save_tiny("llama", enlarged(tokenizer, words=["Where is"]), tmp_path / "own", vocab_size=384)
    assert [stop for stop in measure_data(str(data), model=folder).stops if "resize_token_embeddings" in stop]


@pytest.mark.parametrize(("family", "positions"), [
    ("gpt2", 256), ("opt", 256), ("gpt_neo", 256), ("biogpt", 256), ("gpt_bigcode", 256), ("openai-gpt", 256),
    ("gptj", 256), ("ctrl", 256), ("llama", None), ("gemma2", None), ("bloom", None), ("xglm", None),
    ("mamba", None)])
def test_positions_are_limited_where_a_table_holds_them(family, positions):
    config = tiny_config(family, 384)
    assert measure_architecture(config)["positions"] == positions
    if positions and family != "ctrl":
        model = build(family).eval()
        with torch.no_grad():
            model(input_ids=torch.full((1, positions), 5), use_cache=False)
            with pytest.raises((IndexError, RuntimeError)):
                model(input_ids=torch.full((1, positions + 1), 5), use_cache=False)


@pytest.mark.parametrize(("family", "small"), [("gpt2", {"n_positions": 48}),
                                               ("opt", {"max_position_embeddings": 48}),
                                               ("biogpt", {"max_position_embeddings": 48})])
def test_what_is_longer_than_learned_positions_is_refused(prepare, family, small):
    assert prepare(family, small).recipe.max_length == 48
    assert prepare(family, small, method="ptuning_v2", num_virtual_tokens=8).recipe.max_length == 40
    with bad_input("max_length"):
        prepare(family, small, max_length=64)
    with bad_input("max_length"):
        prepare(family, small, max_length=48, method="ptuning_v2", num_virtual_tokens=8)
    with bad_input("num_virtual_tokens"):
        prepare(family, small, method="ptuning_v2", num_virtual_tokens=44)
    with bad_input("max_new_tokens"):
        prepare(family, small, max_new_tokens=47)
    with bad_input("yardstick"):
        prepare(family, small, yardstick=True)


def test_rotary_positions_are_only_warned_of(prepare):
    ready = prepare("llama", {"max_position_embeddings": 48}, max_length=64)
    assert ready.recipe.max_length == 64
    assert [warning for warning in ready.warnings if "exceeds the model's 48 positions" in warning]


@pytest.mark.parametrize("family", ["t5", "vit", "bart", "whisper"])
def test_a_model_of_another_kind_is_refused_before_its_weights_are_read(family):
    from transformers import CONFIG_MAPPING
    with bad_input("model"):
        measure_architecture(CONFIG_MAPPING[family]())
