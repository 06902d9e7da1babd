"""Rows to blocks: masks, packing, mixing, and that packing changes no loss."""

from itertools import accumulate

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

from sftbench.data.chat_template import render_chat
from sftbench.data.packing import collate_batch, join_rows, mix_rows, rows_to_dataset, spread_rows
from sftbench.data.tokenization import (
    IGNORE_INDEX,
    EncodedRow,
    encode_probe,
    encode_prompt,
    encode_row,
    encode_rows,
)
from sftbench.evaluation.probes import mean_loss
from sftbench.models.loading import load_model
from sftbench.models.logits import select_logits
from sftbench.models.methods import METHOD_FUNCTIONS
from sftbench.models.packing import keeps_rows_apart, make_collator
from sftbench.templates.rendering import DEFAULT_CHAT_TEMPLATE, default_template
from tests.conftest import FAMILIES, small_rows

WINDOWS = ("mistral", "gemma3")  # of attention, in their configurations by default
TURNS = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Where is item 1?"},
         {"role": "assistant", "content": "Lima"}, {"role": "user", "content": "And item 2?"},
         {"role": "assistant", "content": "Oslo"}]


def trained_text(tokenizer, encoded: EncodedRow) -> str:
    return tokenizer.decode([label for label in encoded.labels if label != IGNORE_INDEX])


def test_the_decoded_mask_is_the_answers_and_their_end_tokens(tokenizer):
    encoded = encode_row(tokenizer, {"messages": TURNS})[-1]
    assert trained_text(tokenizer, encoded) == " Lima<eos> Oslo<eos>"
    assert tokenizer.decode(encoded.input_ids) == render_chat(tokenizer, TURNS)


def test_rows_encoded_together_are_rows_encoded_one_by_one(tokenizer):
    rows = [{"messages": TURNS}, *small_rows("domain_text", 5), *small_rows("general_tasks", 5)]
    for one in (tokenizer, with_bos(tokenizer, tokenizer.chat_template)):
        assert encode_rows(one, rows) == [[encode_row(one, row)[-1]] for row in rows]
    assert encode_rows(tokenizer, []) == []


def test_text_trains_on_every_token_and_ends(tokenizer):
    encoded = encode_row(tokenizer, {"text": "The item 1 is in Oslo."})[-1]
    assert encoded.labels == encoded.input_ids
    assert tokenizer.decode(encoded.input_ids) == "The item 1 is in Oslo.<eos>"


def test_the_prompt_of_training_is_the_prompt_of_answering(tokenizer):
    encoded, prompt = encode_row(tokenizer, {"messages": TURNS})[-1], encode_prompt(tokenizer, TURNS[:-1])
    assert encoded.input_ids[:len(prompt)] == prompt
    assert all(label == IGNORE_INDEX for label in encoded.labels[len(prompt) - 3:len(prompt)])


def with_bos(tokenizer, text):
    """The tokenizer with a beginning-of-sequence token that it sets itself."""
    import copy

    from tokenizers.processors import TemplateProcessing
    other = copy.deepcopy(tokenizer)
    other.bos_token = "<system>"
    other._tokenizer.post_processor = TemplateProcessing(single="<system> $A", special_tokens=[
        ("<system>", other.bos_token_id)])
    other.chat_template = text
    return other


def test_bos_stands_once_before_text_and_where_the_template_puts_it(tokenizer):
    default = default_template(with_bos(tokenizer, tokenizer.chat_template))
    for text, count in ((tokenizer.chat_template, 0), ("{{ bos_token }}" + tokenizer.chat_template, 1),
                        (default, 1)):
        other = with_bos(tokenizer, text)
        ids = encode_row(other, {"messages": TURNS[1:3]})[-1].input_ids
        assert ids.count(other.bos_token_id) == count and (ids[0] == other.bos_token_id) == bool(count)
        assert encode_prompt(other, TURNS[1:2]).count(other.bos_token_id) == count
    text = encode_row(other, {"text": "Oslo"})[-1]
    assert text.input_ids[0] == other.bos_token_id and text.labels[0] == IGNORE_INDEX
    assert other.decode(text.input_ids) == "<system>Oslo<eos>"
    assert default_template(tokenizer) == DEFAULT_CHAT_TEMPLATE


def test_long_text_is_cut_and_long_tasks_are_dropped_and_counted(tokenizer):
    rows = [{"text": "Oslo " * 50}, {"text": "Oslo"}]
    encoded, counts = encode_probe(tokenizer, rows, 16)
    whole = sum((row.input_ids for row in encoded), [])
    assert tokenizer.decode(whole) == "Oslo " * 50 + "<eos>Oslo<eos>" and counts == {"text cut": 1}
    tasks = [{"messages": TURNS}, {"messages": TURNS[1:3]}]
    encoded, counts = encode_probe(tokenizer, tasks, 30)
    assert len(encoded) == 1 and counts == {"task longer than max_length": 1}


def numbered(role: int, sizes: list[int]) -> list[EncodedRow]:
    return [EncodedRow([role] * size, [role] * size) for size in sizes]


def mixed(encoded, shares, epochs, seed):
    """The rows in their order in training, and the passes of each role."""
    lengths = {role: np.array([len(row.input_ids) for row in rows]) for role, rows in encoded.items()}
    roles, rows, passes = mix_rows(lengths, shares, epochs, seed)
    return [encoded[list(shares)[role]][row] for role, row in zip(roles, rows, strict=True)], passes


def test_mixing_keeps_shares_of_tokens_spreads_roles_and_repeats(tokenizer):
    encoded = {"domain_tasks": numbered(1, [10, 20, 30] * 20), "general_tasks": numbered(2, [5] * 100)}
    shares = {"domain_tasks": 0.25, "general_tasks": 0.75}
    rows, passes = mixed(encoded, shares, epochs=2, seed=3)
    tokens = {role: sum(len(row.input_ids) for row in rows if row.input_ids[0] == role) for role in (1, 2)}
    assert tokens[1] == 2400 and passes["domain_tasks"] == 2
    assert tokens[2] / sum(tokens.values()) == pytest.approx(0.75, abs=0.01)
    half = rows[:len(rows) // 2]
    assert sum(row.input_ids[0] == 1 for row in half) == pytest.approx(60, abs=6)
    assert mixed(encoded, shares, 2, 3)[0] == rows and mixed(encoded, shares, 2, 4)[0] != rows


def test_an_epoch_is_every_row_once():
    rows, _ = mixed({"domain_text": [EncodedRow([n], [n]) for n in range(50)]}, {"domain_text": 1.0}, 1, 0)
    assert sorted(row.input_ids[0] for row in rows) == list(range(50))


def test_packing_loses_nothing_and_fills_blocks():
    rows = numbered(1, [7, 13, 29, 3, 41, 17] * 30)
    sizes = rows_to_dataset(rows, 64)["tokens"][:]
    assert sum(sizes) == sum(len(row.input_ids) for row in rows)
    assert max(sizes) <= 64 and sum(sizes) / (64 * len(sizes)) > 0.9


def test_a_batch_restarts_positions_and_trains_no_padding():
    dataset = rows_to_dataset([EncodedRow([5, 6, 7], [5, 6, 7]), EncodedRow([8, 9], [IGNORE_INDEX, 9]),
                               EncodedRow([5], [5])], max_length=5)
    batch = collate_batch(list(dataset), pad_token_id=0, packed=True)
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8, 9], [5, 0, 0, 0, 0]]
    assert batch["labels"].tolist() == [[-100, 6, 7, -100, 9], [-100] * 5]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1], [0, 0, 1, 2, 3]]
    assert "attention_mask" not in batch
    assert collate_batch(list(dataset), 0, packed=False)["attention_mask"].tolist() == [
        [1] * 5,
        [1, 0, 0, 0, 0],
    ]


@given(st.lists(st.lists(st.integers(1, 60), min_size=1, max_size=9), min_size=1, max_size=6),
       st.floats(0, 0.01), st.sampled_from([None, 60, 100]))
def test_spread_rows_are_the_same_rows_within_the_context(blocks, cost, context):
    rows = [[EncodedRow([number] * size, [number] * size).cut() for number, size in enumerate(block)]
            for block in blocks]
    spread = spread_rows([join_rows(block) for block in rows], cost, context)
    wanted = sorted((row.input_ids, row.labels) for block in rows for row in block)
    found = [(block["input_ids"][end - size:end], block["labels"][end - size:end]) for block in spread
             for size, end in zip(block["seq_lengths"], accumulate(block["seq_lengths"]), strict=True)]
    assert sorted(found) == wanted
    assert max(len(block["input_ids"]) for block in spread) <= (context or 10**9)


def test_rows_are_spread_without_padding_as_far_as_attention_is_cheap():
    blocks = [join_rows(block) for block in (numbered(1, [90]), numbered(2, [30, 30]), numbered(3, [50]))]
    assert [block["seq_lengths"] for block in spread_rows(blocks, 1e-6)] == [[90, 50, 30, 30]]
    assert [sum(block["seq_lengths"]) for block in spread_rows(blocks, 0.01)] == [90, 110]


def test_thousands_of_rows_are_spread_too():
    spread = spread_rows([join_rows(numbered(1, [2] * 2000))], 0.01)
    assert sum(len(block["seq_lengths"]) for block in spread) == 2000


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_loss_is_unpacked_loss(make_model, tokenizer, family):
    model = load_model(make_model(family)).eval()
    rows = [encode_row(tokenizer, row)[-1] for role in ("domain_tasks", "domain_text")
            for row in small_rows(role, 12)]
    unpacked = mean_loss(model, rows, 0)
    batch = collate_batch(list(rows_to_dataset(rows, 64)), 0, packed=True)
    labels = batch.pop("labels")[:, 1:]
    with torch.no_grad():
        logits = model(**batch, use_cache=False).logits[:, :-1]
    packed = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORE_INDEX
    )
    assert packed.item() == pytest.approx(unpacked, abs=2e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_behind_a_prefix_share_a_sequence_where_the_model_keeps_them_apart(
        make_model, tokenizer, settings, family):
    model = METHOD_FUNCTIONS["ptuning_v2"](
        load_model(make_model(family)), tokenizer, settings("ptuning_v2", prefix_init="random"), "").eval()
    blocks = [join_rows([encode_row(tokenizer, row)[-1].cut()]) for row in small_rows("domain_tasks", 6)]
    collate = make_collator(model, 0, packing=False)
    batch, prefix = collate(blocks), [value for value in model.parameters() if value.requires_grad]
    assert keeps_rows_apart(model) == ("position_ids" in batch) == (family not in WINDOWS)

    def loss_of(batch: dict) -> torch.Tensor:
        labels = batch.pop("labels").roll(-1, dims=1)
        trained = labels != IGNORE_INDEX
        return cross_entropy(select_logits(model, trained, **batch), labels[trained])

    loss, alone = loss_of(batch), loss_of(collate_batch(blocks, 0, packed=False))
    assert loss.item() == pytest.approx(alone.item(), abs=1e-5)
    for own, other in zip(torch.autograd.grad(loss, prefix), torch.autograd.grad(alone, prefix), strict=True):
        assert torch.allclose(own, other, atol=1e-6, rtol=1e-4)


def test_rows_behind_a_prefix_are_not_tried_beside_windows_of_attention(make_model, tokenizer, settings):
    model = load_model(make_model("qwen3", sliding_window=8, use_sliding_window=True, max_window_layers=0))
    assert not keeps_rows_apart(METHOD_FUNCTIONS["ptuning_v2"](
        model, tokenizer, settings("ptuning_v2", prefix_init="random"), ""))
