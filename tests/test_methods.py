"""Each method trains exactly its parameters, leaves others bit-equal, and hands on the same function."""

from dataclasses import replace

import pytest
import torch
from peft import PeftModel

from sftbench.data.packing import rows_to_dataset
from sftbench.data.tokenization import encode_probe, encode_row
from sftbench.evaluation.probes import mean_loss
from sftbench.models.loading import load_model, make_bnb_config
from sftbench.models.methods import (
    METHOD_FUNCTIONS,
    freeze,
    ptuning_v2,
    save_stage_model,
    trainable_parameters,
)
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
