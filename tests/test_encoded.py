"""Order, packing and lazy reading by numbers alone, against the plain way of doing it with lists."""

import copy
import itertools
import json
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sftbench.data import tokenization
from sftbench.data.packing import OPEN_BLOCKS, block_tokens, join_rows, mix_rows, pack_rows
from sftbench.data.roles import load_roles
from sftbench.data.tokenization import (
    IGNORE_INDEX,
    cut_rows,
    encode_probe,
    encode_role,
    tokenizer_fingerprint,
)
from sftbench.errors import BadInput
from sftbench.recipes.recipe import Recipe, override
from sftbench.training.chain import run_chain
from sftbench.training.prepare import prepare_recipe, stage_dataset
from tests.conftest import small_rows

lengths = st.lists(st.integers(1, 30), min_size=1, max_size=60)


def plain_draw(sizes, tokens, order):
    drawn, have = [], 0
    while have < tokens or not drawn:
        for row in order.sample(list(range(len(sizes))), len(sizes)):
            drawn.append(row)
            have += sizes[row]
            if have >= tokens:
                break
    return drawn


def plain_mix(sizes, shares, epochs, seed):
    first = next(iter(shares))
    wanted, placed = sum(sizes[first]) * epochs, []
    for role, share in shares.items():
        order = random.Random(f"{seed} {role}")
        drawn = plain_draw(sizes[role], wanted * share / shares[first], order)
        placed += [((number + order.random()) / len(drawn), role, row) for number, row in enumerate(drawn)]
    return [(role, row) for _, role, row in sorted(placed, key=lambda item: item[:2])]


def plain_pack(sizes, most):
    done, still_open = [], []
    for row, size in enumerate(sizes):
        place = next((block for block in still_open if block[0] + size <= most), None)
        if place is None:
            if len(still_open) == OPEN_BLOCKS:
                fullest = max(still_open, key=lambda block: block[0])
                still_open.remove(fullest)
                done.append(fullest[1])
            place = [0, []]
            still_open.append(place)
        place[0] += size
        place[1].append(row)
    return done + [block for _, block in still_open]


@given(lengths, lengths, st.floats(0.1, 3), st.floats(0.05, 0.95), st.integers(0, 9))
def test_mixing_by_numbers_is_mixing_by_rows(one, other, epochs, share, seed):
    sizes, shares = {"b": one, "a": other}, {"b": 1 - share, "a": share}
    roles, found, _ = mix_rows({role: np.array(part) for role, part in sizes.items()}, shares, epochs, seed)
    assert [("ba"[role], row) for role, row in zip(roles, found, strict=True)] == plain_mix(
        sizes, shares, epochs, seed)


@given(st.lists(st.integers(1, 30), min_size=1, max_size=300), st.integers(30, 64))
def test_packing_by_numbers_is_packing_by_rows(sizes, most):
    order, borders = pack_rows(sizes, most)
    packed = [order[start:end].tolist() for start, end in itertools.pairwise(borders)]
    assert packed == plain_pack(sizes, most)


def test_a_row_of_weight_two_stands_twice_in_a_pass():
    _, found, passes = mix_rows({"a": np.array([3, 4, 5])}, {"a": 1.0}, 1, 0, {"a": np.array([1, 2, 1])})
    assert sorted(found) == [0, 1, 1, 2] and passes == {"a": 1}


@pytest.fixture
def roles(tmp_path):
    """Roles of many small rows and a few long ones, in several record batches."""
    values = {}
    for role, count in (("domain_text", 2500), ("domain_tasks", 40), ("general_tasks", 40)):
        made = small_rows(role, count)
        if role == "domain_text":
            made[7]["text"] *= 20
        path = tmp_path / f"{role}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in made))
        values[role] = str(path)
    return values


@pytest.mark.parametrize("packing", [True, False])
def test_what_is_read_from_the_file_is_what_encoding_at_once_gives(make_model, tokenizer, roles, packing):
    ready = prepare_recipe(override(Recipe(), mode="5", model=make_model(), packing=packing, max_length=48,
                             num_train_epochs=1.5, **roles))
    stage = ready.stages[0]
    dataset, drawn = stage_dataset(ready, stage)
    whole = {role: encode_probe(tokenizer, list(ready.roles[role].train), 48)[0]
             for role in stage.shares}
    sizes = {role: [len(row.input_ids) for row in part] for role, part in whole.items()}
    mixed = [whole[role][row] for role, row in plain_mix(
        sizes, stage.shares, ready.recipe.cpt_num_train_epochs, ready.recipe.seed)]
    packed = [[row] for row in mixed]
    if packing:
        packed = [[mixed[row] for row in block]
                  for block in plain_pack([len(row.input_ids) for row in mixed], 48)]
    wanted = [join_rows([row.cut() for row in block]) for block in packed]
    assert [dataset[index] for index in range(len(dataset))] == wanted
    assert dataset[3:5]["labels"] == [block["labels"] for block in wanted[3:5]]
    assert block_tokens(dataset).tolist() == [len(block["input_ids"]) for block in wanted]
    assert drawn["domain_text"]["dropped"] == {"text cut": 1}
    assert sum(entry["tokens"] for entry in drawn.values()) == sum(
        sum(block["seq_lengths"]) for block in wanted)
    assert sum(entry["trained_tokens"] for entry in drawn.values()) == sum(
        label != IGNORE_INDEX for row in wanted for label in row["labels"])


def test_rows_are_encoded_once(make_model, tokenizer, roles, monkeypatch):
    recipe = override(Recipe(), mode="2", model=make_model(), **roles)
    first = prepare_recipe(recipe)
    before = first.tokens["domain_text"].rows.cache_files
    monkeypatch.setattr(tokenization, "_encode_batch", None)
    again = prepare_recipe(override(recipe, max_length=20, seed=4))
    assert before and again.tokens["domain_text"].rows.cache_files == before
    changed = tokenizer.chat_template
    try:
        before = tokenizer_fingerprint(tokenizer)
        tokenizer.chat_template = changed + "x"
        assert tokenizer_fingerprint(tokenizer) != before
    finally:
        tokenizer.chat_template = changed


def test_a_stage_without_a_token_to_train_stops_before_anything_starts(make_model, roles, tmp_path):
    with pytest.raises(BadInput, match="stage domain_sft: no row of domain_tasks has a token to train within "
                                       "max_length 8.*longer than max_length: 3[0-9] rows"):
        run_chain(override(Recipe(), mode="1", model=make_model(), max_length=8,
                           output_dir=str(tmp_path / "run"), **roles))
    assert not (tmp_path / "run").exists()


def test_dropped_rows_are_recorded_with_their_lines(make_model, roles, tmp_path):
    with open(roles["domain_tasks"], "a") as file:
        file.write(json.dumps({"prompt": "long " * 60, "completion": "x"}) + "\n")
    ready = prepare_recipe(override(Recipe(), mode="1", model=make_model(), max_length=64, probe_share=0.01,
                             **roles))
    assert ready.roles["domain_tasks"].dropped["task longer than max_length"] == {
        "rows": 1, "examples": [f"{roles['domain_tasks']}, line 41"]}


def roles_of_tasks(tmp_path, made):
    path, probe = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in made))
    probe.write_text(json.dumps(small_rows("general_tasks", 1)[0]))
    return load_roles(override(Recipe(), model="somebody/else", domain_tasks=str(path),
                                    domain_tasks_probe=str(probe), general_tasks_probe=str(probe)))


def test_a_row_that_the_template_refuses_is_named_with_its_line(tokenizer, tmp_path):
    other = copy.deepcopy(tokenizer)
    other.chat_template = ("{% if messages | length > 2 %}{{ raise_exception('no') }}{% endif %}"
                           + tokenizer.chat_template)
    made = small_rows("domain_tasks", 4)
    made[2]["messages"] *= 2
    roles = roles_of_tasks(tmp_path, made)
    with pytest.raises(BadInput, match=r"a\.jsonl, line 3: the model's chat template refuses .* no"):
        encode_role(other, roles["domain_tasks"])
    assert len(encode_role(other, roles["general_tasks"]).lengths) == 0  # a role that is only probed


def test_answers_that_stand_alone_lead_back_to_their_row(tokenizer, tmp_path):
    other = copy.deepcopy(tokenizer)
    other.chat_template = ("{% for m in messages %}{% if loop.last or m['role'] == 'user' %}<{{ m['role'] }}>"
                           "{{ m['content'] }}{% endif %}{% endfor %}"
                           "{% if add_generation_prompt %}<assistant>{% endif %}")
    made = small_rows("domain_tasks", 4)
    made[2]["messages"] = made[2]["messages"] + made[3]["messages"][:1] + [
        {"role": "assistant", "content": "far " * 30}]
    role = roles_of_tasks(tmp_path, made)["domain_tasks"]
    tokens = encode_role(other, role)
    assert tokens.row.tolist() == [0, 1, 2, 2, 3]
    pieces, reasons = cut_rows(tokens, 40, text=False)
    assert pieces.number.tolist() == [0, 1, 2, 4] and reasons["task longer than max_length"].tolist() == [2]
    last = tokens.read(4, 0, tokens.lengths[4])
    assert other.decode(last.input_ids) == "<user>Where is item 3?<assistant>Oslo<eos>"
    assert other.decode([label for label in last.labels if label != IGNORE_INDEX]) == "Oslo<eos>"
