"""Each method trains exactly its parameters, leaves others bit-equal, and hands on the same function."""

from dataclasses import replace

import pytest
import torch
import transformers
from peft import PeftModel
from safetensors import safe_open

from sftbench.data.packing import rows_to_dataset
from sftbench.data.tokenization import encode_probe, encode_row
from sftbench.evaluation.probes import mean_loss
from sftbench.models.loading import load_for_training, load_model, load_model_config, make_bnb_config
from sftbench.models.methods import (
    METHOD_FUNCTIONS,
    check_parts,
    compute_in_float32,
    ptuning_v2,
    save_stage_model,
    trainable_parameters,
)
from sftbench.models.parts import freeze, stretch_list
from sftbench.training.trainer import StageContext, train_stage
from tests.conftest import FAMILIES, bad_input, small_rows

# Of the small Qwen3: layers, hidden, intermediate, kv heads × head size.
LAYERS, HIDDEN, WIDE, KEYS = 3, 64, 128, 32
LORA = 16 * LAYERS * ((HIDDEN + HIDDEN) + 2 * (HIDDEN + KEYS) + (HIDDEN + HIDDEN) + 3 * (HIDDEN + WIDE))
BLOCK = (2 * HIDDEN * HIDDEN + 2 * HIDDEN * KEYS + 3 * HIDDEN * WIDE) + 2 * HIDDEN + 2 * 16

CASES = [
    ("full", {}, lambda name: True, None),
    ("lora", {}, lambda name: "lora_" in name, LORA),
    ("lora", {"lora_target_modules": "q_proj, v_proj", "lora_r": 4, "use_rslora": True},
     lambda name: "lora_" in name, 4 * LAYERS * ((HIDDEN + HIDDEN) + (HIDDEN + KEYS))),
    ("lora", {"use_dora": True}, lambda name: "lora_" in name,
     LORA + LAYERS * (2 * HIDDEN + 2 * KEYS + 2 * WIDE + HIDDEN)),
    ("qlora", {}, lambda name: "lora_" in name, LORA),
    ("ptuning_v2", {"num_virtual_tokens": 7}, lambda name: "prompt_encoder" in name, 7 * LAYERS * 2 * KEYS),
    ("ptuning_v2", {"num_virtual_tokens": 7, "prefix_init": "random"}, lambda name: "prompt_encoder" in name,
     7 * LAYERS * 2 * KEYS),
    ("freeze", {"trainable_parts": "last:1"}, lambda name: ".layers.2." in name, BLOCK),
    ("freeze", {"trainable_parts": "layers:0-1"},
     lambda name: ".layers.0." in name or ".layers.1." in name, 2 * BLOCK),
    ("freeze", {"trainable_parts": "norm"}, lambda name: name == "model.norm.weight", HIDDEN),
    ("freeze", {"trainable_parts": "new_head"}, lambda name: name == "lm_head.weight", None),
    ("freeze", {"trainable_parts": "new_blocks:1"}, lambda name: ".layers.3." in name, BLOCK),
    ("freeze", {"trainable_parts": "new_blocks:3, norm"},
     lambda name: any(f".layers.{index}." in name for index in (1, 3, 5)) or name == "model.norm.weight",
     3 * BLOCK + HIDDEN),
]


def dataset_of(tokenizer, settings, count=120):
    rows, _ = encode_probe(tokenizer, small_rows("domain_tasks", count), settings.max_length)
    return rows_to_dataset(rows, settings.max_length if settings.packing else None)


def trained(folder, tokenizer, settings, steps=3):
    """The small model after a few steps of a method, its weights before them, and the trainable sizes."""
    settings = replace(settings, max_steps=steps)
    quantised = make_bnb_config(settings) if settings.method == "qlora" else None
    model = METHOD_FUNCTIONS[settings.method](
        load_model(folder, quantization=quantised), tokenizer, settings, "Where is item 1? Lima.")
    before = {name: tensor.detach().clone() for name, tensor in model.named_parameters()}
    sizes = trainable_parameters(model)
    dataset = dataset_of(tokenizer, settings)
    figures = train_stage(model, StageContext("sft", settings, tokenizer, dataset, lambda event: None))
    assert figures.steps == steps
    return model, before, sizes


@pytest.mark.parametrize(("method", "options", "expected", "count"), CASES)
def test_exactly_the_named_parameters_change(make_model, tokenizer, settings, method, options,
                                             expected, count):
    model, before, sizes = trained(make_model(), tokenizer, settings(method, **options))
    after = dict(model.named_parameters())
    assert set(after) == set(before)
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    assert changed == {name for name in after if expected(name)} and changed == set(sizes)
    assert sum(sizes.values()) == (count or sum(after[name].numel() for name in changed))


def test_the_output_head_alone_of_an_untied_model(make_model, tokenizer, settings):
    folder = make_model(tie_word_embeddings=False)
    model, before, sizes = trained(folder, tokenizer, settings("freeze", trainable_parts="head"))
    assert set(sizes) == {"lm_head.weight"}
    assert {name for name, value in model.named_parameters()
            if not torch.equal(value, before[name])} == set(sizes)


@pytest.mark.parametrize(("parts", "limits"), [
    ("last:4", "1 to 3"), ("last", "1 to 3"), ("layers:2-1", "0-2"), ("layers:0-3", "0-2"),
    ("tail", "'tail'"), ("new_blocks:x", "1 to 3"),
])
def test_parts_that_are_not_there_are_refused(make_model, tokenizer, settings, parts, limits):
    with bad_input("trainable_parts", match=limits):
        freeze(load_model(make_model()), tokenizer, settings("freeze", trainable_parts=parts), "")


def test_the_head_of_a_tied_model_is_refused(make_model, tokenizer, settings):
    model = load_model(make_model(tie_word_embeddings=True))
    with bad_input("trainable_parts", match="new_head"):
        freeze(model, tokenizer, settings("freeze", trainable_parts="head"), "")


def test_a_model_without_a_list_of_layers_is_refused(tokenizer, settings, make_model):
    model = load_model(make_model())
    model.config.num_hidden_layers = 5
    with bad_input("model"):
        freeze(model, tokenizer, settings("freeze"), "")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("parts", ["new_blocks:2", "new_head", "last:1, norm"])
def test_new_parts_begin_as_the_identity_in_every_family(make_model, tokenizer, settings, tmp_path,
                                                         family, parts):
    tokens = torch.randint(5, 300, (2, 20))
    model = load_model(make_model(family)).eval()
    before = model(input_ids=tokens).logits
    model = freeze(model, tokenizer, settings("freeze", trainable_parts=parts), "")
    assert torch.equal(model(input_ids=tokens, use_cache=False).logits, before)
    assert sum(trainable_parameters(model).values()) > 0
    model.save_pretrained(tmp_path)
    again = load_model(str(tmp_path)).eval()
    assert torch.equal(again(input_ids=tokens, use_cache=False).logits, before)
    answer = again.generate(tokens, max_new_tokens=3, do_sample=False, pad_token_id=0)
    plain = load_model(make_model(family)).eval().generate(tokens, max_new_tokens=3, do_sample=False,
                                                                  pad_token_id=0)
    assert torch.equal(answer, plain)


# Families whose layers differ, by what the configuration has for each of them.
SIZES = {"vocab_size": 384, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4,
         "num_key_value_heads": 2, "max_position_embeddings": 128, "pad_token_id": 0,
         "eos_token_id": [1, 2, 3, 4], "bos_token_id": None}
MIXED = {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1,
         "moe_intermediate_size": 16, "first_k_dense_replace": 1}
UNLIKE = {
    "smollm3": ("SmolLM3Config", {"use_sliding_window": True, "sliding_window": 4}),
    "llama4": ("Llama4TextConfig", {"head_dim": 16, "num_local_experts": 2, "intermediate_size_mlp": 64}),
    "gemma3": ("Gemma3TextConfig", {"head_dim": 16, "sliding_window": 4, "sliding_window_pattern": 2}),
    "qwen3": ("Qwen3Config", {"head_dim": 16, "use_sliding_window": True, "sliding_window": 4,
                              "max_window_layers": 2}),
    "qwen3_moe": ("Qwen3MoeConfig", {"head_dim": 16, "num_experts": 4, "num_experts_per_tok": 2,
                                     "moe_intermediate_size": 16, "mlp_only_layers": [1]}),
    "glm4_moe": ("Glm4MoeConfig", MIXED | {"head_dim": 8}),
    "gpt_oss": ("GptOssConfig", {"head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "olmo3": ("Olmo3Config", {"sliding_window": 4}),
    "lfm2": ("Lfm2Config", {"layer_types": ["conv", "full_attention", "conv", "conv"]}),
}
UNFIT = {
    "every second layer has experts": ("Qwen3MoeConfig", {
        "head_dim": 16, "num_experts": 4, "num_experts_per_tok": 2, "decoder_sparse_step": 2}),
    "the last layers take an earlier one's keys": ("Gemma3nTextConfig", {
        "head_dim": 16, "num_hidden_layers": 10, "num_kv_shared_layers": 4}),
    "its decay is by depth": ("MiniMaxConfig", {"num_local_experts": 4, "head_dim": 8}),
}


def config_of(name, changes):
    return getattr(transformers, name)(**SIZES | {"num_hidden_layers": 4} | changes)


@pytest.mark.parametrize(("parts", "layers"), [
    ("new_blocks:1", 5), ("new_blocks:2", 6), ("new_blocks:4", 8), ("new_head", 4)])
@pytest.mark.parametrize("family", UNLIKE)
def test_new_parts_of_layers_that_differ_load_as_they_were(settings, tmp_path, family, parts, layers):
    config, options = config_of(*UNLIKE[family]), settings("freeze", trainable_parts=parts)
    after = check_parts(config, options)
    assert config.num_hidden_layers == 4 and config.eos_token_id == after.eos_token_id
    torch.manual_seed(0)
    model = freeze(transformers.AutoModelForCausalLM.from_config(config), None, options, "").eval()
    with torch.no_grad():
        for weight in model.parameters():  # all, so that new blocks are seen wherever they stand
            weight.add_(torch.randn_like(weight) * 0.02)
        tokens = torch.randint(5, 300, (2, 20))
        wanted = model(input_ids=tokens, use_cache=False).logits
        model.save_pretrained(tmp_path)
        again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
        assert torch.equal(again(input_ids=tokens, use_cache=False).logits, wanted)
    assert again.config.num_hidden_layers == after.num_hidden_layers == layers


@pytest.mark.parametrize("why", UNFIT)
def test_new_blocks_that_would_load_as_another_model_are_refused(settings, why):
    with bad_input("trainable_parts", match="last:N"):
        check_parts(config_of(*UNFIT[why]), settings("freeze", trainable_parts="new_blocks:1"))
    check_parts(config_of(*UNFIT[why]), settings("freeze", trainable_parts="last:1"))


@pytest.mark.parametrize(("layers", "name", "value", "wanted"), [
    (2, "moe_layers", [0, 1], [0, 1, 2]), (2, "no_rope_layers", [0, 1], [0, 1, 1]),
    (3, "moe_layers", [0, 2], [0, 2, 3]), (3, "layer_idxs", [0], [0]), (3, "layer_idxs", [2], [2, 3]),
    (3, "layer_types", ["a", "b", "c"], ["a", "b", "c", "c"]), (3, "sizes", [8, 4, 2], [8, 4, 2, 2]),
    (3, "sections", [16, 24], [16, 24]), (3, "mlp_only_layers", [], []),
])
def test_an_entry_for_each_layer_follows_its_layer(layers, name, value, wanted):
    assert stretch_list(name, value, [*range(layers), layers - 1], layers) == wanted


@pytest.mark.parametrize("method", ["lora", "qlora"])
@pytest.mark.parametrize(("family", "changes", "targets"), [
    ("qwen3", {"tie_word_embeddings": True}, "embed_tokens,q_proj"),
    ("qwen3", {"tie_word_embeddings": True}, "q_proj, lm_head"),
    ("llama", {"tie_word_embeddings": True}, "model.embed_tokens"), ("gpt2", {}, "wte"),
    ("gemma3", {}, "lm_head"),
])
def test_lora_on_a_weight_of_two_modules_is_refused(make_model, tokenizer, settings, method, family, changes,
                                                    targets):
    folder, options = make_model(family, **changes), settings(method, lora_target_modules=targets)
    with bad_input("lora_target_modules", match="(embed_tokens|wte) and lm_head .*new_head"):
        check_parts(load_model_config(folder), options)
    with bad_input("lora_target_modules"):
        METHOD_FUNCTIONS[method](load_model(folder), tokenizer, options, "")


def test_lora_on_embeddings_of_their_own_is_merged_whole(make_model, tokenizer, settings, tmp_path):
    folder = make_model(tie_word_embeddings=False)
    options = settings("lora", lora_target_modules="embed_tokens,q_proj")
    check_parts(load_model_config(folder), options)
    model, _, sizes = trained(folder, tokenizer, options)
    assert any("embedding" in name for name in sizes)
    rows = [encode_row(tokenizer, row)[-1] for row in small_rows("domain_tasks", 30)]
    loss = mean_loss(model, rows, 0)
    save_stage_model(model, "lora", tmp_path)
    assert mean_loss(load_model(str(tmp_path / "model")), rows, 0) == pytest.approx(loss, abs=1e-5)


@pytest.mark.parametrize(("family", "head"), [("qwen3", "lm_head"), ("gpt_neox", "lm_head")])
def test_lora_on_an_output_head_is_refused(make_model, settings, family, head):
    config = load_model_config(make_model(family, tie_word_embeddings=False))
    with bad_input("lora_target_modules", match=f"{head}.*freeze with head"):
        check_parts(config, settings("lora", lora_target_modules=head))


def test_a_stage_that_unties_the_head_lets_the_next_adapt_the_embedding(make_model, settings):
    config = load_model_config(make_model(tie_word_embeddings=True))
    adapt = settings("lora", lora_target_modules="embed_tokens")
    with bad_input("lora_target_modules"):
        check_parts(config, adapt)
    after = check_parts(config, settings("freeze", trainable_parts="new_head"))
    assert check_parts(after, adapt).tie_word_embeddings is False and config.tie_word_embeddings


def test_a_new_head_stays_apart_after_reload(make_model, tokenizer, settings, tmp_path):
    model, _, _ = trained(make_model(tie_word_embeddings=True), tokenizer,
                          settings("freeze", trainable_parts="new_head"))
    model.save_pretrained(tmp_path)
    again = load_model(str(tmp_path))
    assert not torch.equal(again.lm_head.weight, again.get_input_embeddings().weight)
    assert torch.equal(again.lm_head.weight, model.lm_head.weight)
    more = freeze(again, tokenizer, settings("freeze", trainable_parts="new_head"), "")
    assert set(trainable_parameters(more)) == {"lm_head.weight"}


def test_blocks_of_an_earlier_stage_go_on(make_model, tokenizer, settings, tmp_path):
    options = settings("freeze", trainable_parts="new_blocks:1")
    model, _, sizes = trained(make_model(), tokenizer, options)
    model.save_pretrained(tmp_path)
    again = freeze(load_model(str(tmp_path)), tokenizer, options, "")
    assert again.config.num_hidden_layers == LAYERS + 1 and trainable_parameters(again) == sizes


@pytest.mark.parametrize("method", ["full", "lora", "qlora", "ptuning_v2", "freeze"])
def test_the_hand_over_keeps_the_loss(make_model, tokenizer, settings, tmp_path, method):
    folder, options = make_model(), settings(method, learning_rate=3e-2)
    model, _, _ = trained(folder, tokenizer, options, steps=6)
    rows = [encode_row(tokenizer, row)[-1] for row in small_rows("domain_tasks", 30)]
    loss = mean_loss(model, rows, 0)
    start = mean_loss(load_model(folder), rows, 0)
    assert loss < start - 0.2
    save_stage_model(model, method, tmp_path)
    if method == "ptuning_v2":
        assert not (tmp_path / "model").exists()
        again = PeftModel.from_pretrained(load_model(folder), tmp_path / "adapter")
    else:
        again = load_model(str(tmp_path / "model"))
    assert mean_loss(again, rows, 0) == pytest.approx(loss, abs=2e-3 if method == "qlora" else 2e-5)
    assert (tmp_path / "adapter").exists() == (method in ("lora", "qlora", "ptuning_v2"))


def test_a_text_prefix_is_the_cache_of_its_text(make_model, tokenizer, settings):
    model = load_model(make_model()).eval()
    text = "Where is item 1? Lima. Where is item 2?"
    ids = tokenizer(text)["input_ids"]
    options = settings("ptuning_v2", num_virtual_tokens=len(ids))
    question = torch.tensor([tokenizer("The item 3 is in")["input_ids"]])
    plain = model(input_ids=torch.cat([torch.tensor([ids]), question], 1)).logits[:, len(ids):]
    prefixed = ptuning_v2(model, tokenizer, options, text).eval()
    logits = prefixed(input_ids=question, attention_mask=torch.ones_like(question)).logits
    assert torch.allclose(logits, plain, atol=1e-4)


def trained_in_bfloat16(folder, tokenizer, options):
    """The model of a stage's folder after a few steps of a method beside bfloat16, computing in float32."""
    model = METHOD_FUNCTIONS[options.method](
        load_for_training(folder, None, options), tokenizer, options, "Where is item 1? Lima. " * 9)
    dataset = dataset_of(tokenizer, options)
    train_stage(model, StageContext("sft", options, tokenizer, dataset, lambda event: None))
    return compute_in_float32(model).eval()


@pytest.mark.parametrize(("family", "method", "changed"), [
    ("qwen3", "lora", {}), ("qwen3", "qlora", {"bnb_4bit_compute_dtype": "bfloat16"}),
    ("qwen3", "lora", {"use_dora": True}), ("gpt2", "lora", {}), ("gpt2", "qlora", {}),
    ("qwen3_moe", "lora", {}),
])
def test_an_adapter_trained_beside_bfloat16_is_merged_and_stored_whole(make_model, tokenizer, settings,
                                                                       tmp_path, family, method, changed):
    options = settings(method, bf16=True, learning_rate=1e-4, max_steps=3, **changed)
    model = trained_in_bfloat16(make_model(family), tokenizer, options)
    rows = [encode_row(tokenizer, row)[-1] for row in small_rows("domain_tasks", 30)]
    loss = mean_loss(model, rows, 0)
    save_stage_model(model, method, tmp_path)
    with safe_open(next((tmp_path / "model").glob("*.safetensors")), "pt") as file:
        assert {file.get_slice(name).get_dtype() for name in file.keys()} == {"F32"}
    limit = 3e-4 if method == "qlora" else 1e-5  # bitsandbytes has its own rounding
    assert mean_loss(load_model(str(tmp_path / "model")), rows, 0) == pytest.approx(loss, abs=limit)


@pytest.mark.parametrize("method", ["full", "freeze", "ptuning_v2"])
def test_a_model_trained_in_bfloat16_computes_in_float32_afterwards(make_model, tokenizer, settings, tmp_path,
                                                                    method):
    folder, options = make_model(), settings(method, bf16=True, learning_rate=1e-3, max_steps=2)
    model, tokens = trained_in_bfloat16(folder, tokenizer, options), torch.randint(5, 300, (2, 20))
    batch = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    logits = model(**batch).logits
    save_stage_model(model, method, tmp_path)
    again = (PeftModel.from_pretrained(load_model(folder), tmp_path / "adapter") if method == "ptuning_v2"
             else load_model(str(tmp_path / "model"))).eval()
    assert logits.dtype == torch.float32 and torch.allclose(again(**batch).logits, logits, atol=1e-5)
