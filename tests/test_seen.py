"""What the model really sees: tokens with their mask as data, text and HTML; data are never markup."""

import html
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sftbench.data.tokenization import IGNORE_INDEX, encode_probe, encode_row
from sftbench.errors import BadInput
from sftbench.recipes.recipe import Recipe, override
from sftbench.reports.html import HtmlText, escape_html, make_visible
from sftbench.reports.text import look_at_data
from sftbench.reports.token_view import MAX_TOKENS_SHOWN, format_view, summarise_view, token_texts, view_row
from sftbench.training.prepare import prepare_recipe
from tests.conftest import bad_input, small_rows
from tests.test_blocks import TURNS, with_bos


@given(st.text(max_size=200))
def test_escaped_text_is_shown_as_it_is_and_holds_no_markup(text):
    made = escape_html(text)
    assert not set(made) & set("<>\"'") and html.unescape(made) == make_visible(text)
    assert all(letter.isprintable() or letter.isspace() for letter in make_visible(text))


def test_what_cannot_be_seen_is_made_visible_and_long_text_is_cut():
    assert make_visible("a\n\tb\0\u202ec") == "a↵⇥b⟨U+0000⟩⟨U+202E⟩c"
    assert make_visible("x" * 1_000_000, 10) == "xxxxxxxxxx … (999,990 characters more)"


def test_a_page_prints_as_text_and_shows_as_html():
    page = HtmlText("text", "<b>text</b>")
    assert str(page) == "text" and repr(page) == "text" and page._repr_html_() == "<b>text</b>"


def test_tokens_masks_special_tokens_and_ends_are_shown(tokenizer):
    one, = view_row(tokenizer, {"messages": TURNS}, 64)
    encoded = encode_row(tokenizer, {"messages": TURNS})[-1]
    assert [token.id for token in one.tokens] == encoded.input_ids
    assert [token.trained for token in one.tokens] == [
        label != IGNORE_INDEX for label in encoded.labels]
    assert "".join(token.text for token in one.tokens) == tokenizer.decode(encoded.input_ids)
    special = [token.text for token in one.tokens if token.special]
    assert special == ["<system>", "<user>", "<assistant>", "<eos>", "<user>", "<assistant>", "<eos>"]
    assert (one.bos, one.end, one.fate) == (0, "<eos>", "nothing cut")
    summary = summarise_view(one)
    assert f"{len(encoded.input_ids)} tokens" in summary and "end <eos> trained" in summary
    shown = format_view(one, indent=0)
    assert re.sub(r"[|«»\n]", "", shown) == tokenizer.decode(encoded.input_ids)
    assert re.findall("«(.*?)»", shown)[0].replace("|", "") == " Lima<eos>"
    assert all(len(line) <= 100 for line in shown.splitlines())


def test_the_first_token_of_a_row_and_of_each_piece_is_not_trained(tokenizer):
    row = {"text": "The item 1 is in Oslo. " * 5}
    one, = view_row(tokenizer, row, 16)
    size = len(encode_row(tokenizer, row)[-1].input_ids)
    assert [number for number, token in enumerate(one.tokens) if not token.trained] == list(
        range(0, size, 16))
    pieces, _ = encode_probe(tokenizer, [row], 16)
    assert one.trained == sum(piece.trained for piece in pieces)
    assert one.fate == f"cut into {len(pieces)} pieces of at most 16 tokens"
    assert format_view(one).count("‖") == len(pieces) - 1


def test_of_a_long_row_beginning_and_end_are_shown(tokenizer):
    turns = [{"role": "user", "content": "far " * 600}, {"role": "assistant", "content": "Lima"}]
    one, = view_row(tokenizer, {"messages": turns})
    shown, more = format_view(one, indent=0).replace("\n", ""), len(one.tokens) - MAX_TOKENS_SHOWN
    assert f" … ({more:,} tokens more) … " in shown and shown.count("|") < MAX_TOKENS_SHOWN
    assert shown.startswith("<user>|") and shown.endswith("|<eos>»") and "»</b>" in format_view(one).markup


CALL = [{"type": "function", "function": {"name": "find", "arguments": {"city": "Lima"}}}]
TOOLS = [{"type": "function", "function": {"name": "find", "parameters": {
    "type": "object", "properties": {"city": {"type": "string"}}}}}]


def test_tools_calls_and_results_are_shown_and_only_the_models_words_are_trained(tokenizer):
    one, = view_row(tokenizer, {"tools": TOOLS, "messages": [
        {"role": "user", "content": "Where?"}, {"role": "assistant", "content": "", "tool_calls": CALL},
        {"role": "tool", "content": "Peru"}, {"role": "assistant", "content": "In Peru."}]})
    shown = format_view(one, indent=0).replace("\n", "").replace("|", "")
    call, answer = re.findall("«(.*?)»", shown)
    assert '"properties"' in shown.partition("«")[0] and "Peru" in shown.partition("»")[2].partition("«")[0]
    assert '"name": "find"' in call and call.endswith("<eos>") and answer.strip() == "In Peru.<eos>"
    assert one.turns == 2 and f"{one.trained} trained in 2 turns; BOS 0" in summarise_view(one)


def test_thoughts_are_shown_as_trained_and_turns_that_are_not_to_be_are_read(tokenizer):
    one, = view_row(tokenizer, {"messages": [
        {"role": "user", "content": "One?"}, {"role": "assistant", "content": "No.", "train": False},
        {"role": "user", "content": "Two?"},
        {"role": "assistant", "content": "Yes.", "reasoning_content": "It is even."}]})
    shown = format_view(one, indent=0).replace("\n", "").replace("|", "")
    answer, = re.findall("«(.*?)»", shown)
    assert "It is even." in answer and "Yes.<eos>" in answer and "No." in shown.partition("«")[0]
    assert one.turns == 1 and " turns" not in summarise_view(one)


def test_a_call_alone_is_a_row_like_any(tokenizer):
    one, = view_row(tokenizer, {"messages": [
        {"role": "user", "content": "Where?"}, {"role": "assistant", "content": "", "tool_calls": CALL}]}, 64)
    assert one.end == "<eos>" and one.trained > 5 and one.fate == "nothing cut"


def test_what_is_dropped_is_reported(tokenizer):
    one, = view_row(tokenizer, {"messages": TURNS}, 8)
    assert one.fate == "dropped: longer than max_length 8"


def test_the_number_of_bos_is_reported(tokenizer):
    other = with_bos(tokenizer, "{{ bos_token }}{{ bos_token }}" + tokenizer.chat_template)
    one, = view_row(other, {"messages": TURNS[1:3]})
    assert one.bos == 2 and "BOS 2" in summarise_view(one)


def test_parts_of_a_character_are_shown_by_their_names(tokenizer):
    ids = tokenizer("Oslo 北", add_special_tokens=False)["input_ids"]
    words = token_texts(tokenizer, ids)
    assert len(words) == len(ids) and "".join(words[:-3]) == "Oslo " and "\ufffd" not in "".join(words)


ATTACK = '<img src=x onerror="alert(1)"><script>alert(2)</script>\u202e$x$'


@pytest.fixture(scope="module")
def ready(make_model, tmp_path_factory):
    import json
    folder, paths = tmp_path_factory.mktemp("seen"), {}
    for role in ("domain_text", "domain_tasks", "general_text"):
        rows = small_rows(role)
        if role == "domain_tasks":
            for row in rows:
                row["messages"][0]["content"] += ATTACK
                row["type"] = "place"
            rows += [{"prompt": word * 99, "completion": "x"} for word in ("long ", "far ", "wide ")]
        paths[role] = str(folder / f"{role}.jsonl")
        with open(paths[role], "w") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    return prepare_recipe(override(Recipe(), mode="2", model=make_model(), system_prompts="Be brief.",
                            max_length=128, **paths))


def test_look_tells_shares_system_messages_drops_and_places(ready):
    page = look_at_data(ready)
    assert "Stage cpt" in page and "Stage domain_sft" in page and "% of the stage" in page
    assert re.search(r"row 1 \(.*domain_text\.jsonl, line \d+\): \d+ tokens", " ".join(page.split()))
    assert "with a system message: 43 of 43 rows; types: place 40" in page
    assert "<system>BebriefR".replace("R", ".") in re.sub(r"[\s|]", "", page)
    assert re.search(r"task longer than max_length: [23] rows, first\s+\S*domain_tasks\.jsonl, line 4", page)
    assert all(len(line) <= 100 for line in page.splitlines())


def test_look_at_one_role_and_row_and_what_is_not_there(ready):
    page = look_at_data(ready, 2, "general_text", 3)
    assert "Stage" not in page and page.count("row ") == 2 and "row 3 (" in page and "row 4 (" in page
    assert "general_text: no stage draws from it" in page
    assert "no row 38: it has 36 training rows" in " ".join(look_at_data(ready, row=38).split())
    with bad_input("row", match="domain_text has training rows 1 to 36"):
        look_at_data(ready, row=1000)
    for field, values in (("role", {"role": "domain_texts"}), ("row", {"role": "domain_text", "row": 0})):
        with pytest.raises(BadInput) as error:
            look_at_data(ready, **values)
        assert error.value.field == field


def test_rows_reach_the_page_as_text_only(ready):
    markup = look_at_data(ready)._repr_html_()
    tags = set(re.findall(r"<(/?\w+)", markup))
    assert tags <= {"pre", "/pre", "div", "/div", "span", "/span", "b", "/b", "br"}
    assert "onerror=" not in re.sub(r">[^<]*<", "><", markup) and "\u202e" not in markup
    assert html.unescape(re.sub(r"<[^>]*>", "", markup)).count("alert(") >= 2
