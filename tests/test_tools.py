"""Tools and thoughts as every template of TRL shows them, and what of them is trained."""

import copy
import datetime
import json
import re
import shutil
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from sftbench.data.chat_template import describe_template, end_of_turn_ids, render_prompt, training_pieces
from sftbench.data.roles import load_roles
from sftbench.data.tokenization import (
    IGNORE_INDEX,
    encode_prompt,
    encode_role,
    encode_row,
    tokenizer_fingerprint,
)
from sftbench.export.export import export_stage
from sftbench.models.checkpoint import CheckpointRef
from sftbench.recipes.recipe import Recipe, override
from sftbench.templates.rendering import render_chat, render_settings, set_rendering, shows_date
from sftbench.templates.tool_forms import tool_forms
from sftbench.training.chain import run_chain
from sftbench.training.prepare import prepare_recipe
from tests.conftest import bad_input
from tests.templates import SHIPPED, template_maker

TOOL = {"type": "function", "function": {"name": "get_weather", "description": "The weather.", "parameters": {
    "type": "object", "properties": {"city": {"type": "string", "description": "Where?"}},
    "required": ["city"]}}}
USER, THANKS = {"role": "user", "content": "Weather in Lima?"}, {"role": "user", "content": "Thanks"}
ANSWER, BYE = ({"role": "assistant", "content": text} for text in ("It is sunny.", "Bye."))


def call(*cities: str, **more) -> dict:
    """A turn with a call for each city."""
    return {"role": "assistant", "content": "", "tool_calls": [
        {"type": "function", "id": f"call_{city}", "function": {"name": "get_weather",
                                                                "arguments": {"city": city}}}
        for city in cities]} | more


def result(city: str, text: str) -> dict:
    return {"role": "tool", "content": text, "name": "get_weather", "tool_call_id": f"call_{city}"}


PLAIN = [USER, call("Lima"), result("Lima", "21 degrees"), ANSWER, THANKS, BYE]
THINKING = [USER, call("Lima", reasoning_content="I must look."), result("Lima", "21 degrees"),
            ANSWER | {"reasoning_content": "So it is."}]
KNOWING = sorted(name for name in SHIPPED if "tool_calls" in SHIPPED[name] and "r1_distill" not in name)
TRAINING = [name for name in KNOWING if re.search(r"{%-? generation", SHIPPED[name])]


@pytest.fixture(scope="module")
def many(tokenizer):
    """A function from a shipped template's name to a tokenizer with it."""
    return template_maker(tokenizer)


def trained(tokenizer, row: dict) -> str:
    """What of the row is trained, as text."""
    return "".join(part for text in training_pieces(tokenizer, row) for part, wanted in text if wanted)


def shown(tokenizer, row: dict) -> str:
    """The last text of the row, which has all its messages."""
    return "".join(part for part, _ in training_pieces(tokenizer, row)[-1])


def library_messages(tokenizer, messages: list[dict]) -> list[dict]:
    """The messages as a template takes them that wants a call's arguments as JSON text."""
    messages = copy.deepcopy(messages)
    if tool_forms(tokenizer).arguments is str:
        for message in messages:
            for made in message.get("tool_calls", ()):
                made["function"]["arguments"] = json.dumps(made["function"]["arguments"])
    return messages


def test_what_a_template_knows_is_found_by_asking_it(many):
    knowing = {name for name in SHIPPED if tool_forms(many(name)).arguments}
    assert knowing == set(KNOWING)
    assert [name for name in KNOWING if tool_forms(many(name)).arguments is str] == ["deepseekv3"]
    assert {name.removesuffix("_training") for name in KNOWING if tool_forms(many(name)).between is None} == {
        "gptoss", "llama3_1", "llama3_2"}
    assert not any(tool_forms(many(name)).definitions for name in ("llama3", "gemma3", "deepseekv3"))
    forms = tool_forms(many("lfm2"))
    assert (forms.definitions, forms.arguments, forms.results) == (True, None, "tool")
    assert tool_forms(many("llama3")).results is None


@pytest.mark.parametrize("name", KNOWING)
def test_the_text_is_that_of_the_library_for_the_same_row(many, name):
    """But deepseekv3 shows no definitions, so they are text; glm4moe ends no answer, so <eos> does."""
    tokenizer, tools = many(name), [TOOL]
    expected = tokenizer.apply_chat_template(library_messages(tokenizer, PLAIN), tools=tools, tokenize=False)
    text = shown(tokenizer, {"messages": PLAIN, "tools": tools})
    if name.startswith("deepseekv3"):
        text = text.replace(f"Tools:\n{json.dumps(TOOL)}", "", 1)
    if name == "glm4moe":
        text = text.removesuffix("<eos>")
    assert expected.removesuffix("\n") == text


# What TRL's masks train and ours do not, and what it is replaced by, by the start of a template's name. Of a
# turn, an end of a line after the end token is not predicted; empty thoughts are read (see chat_template);
# the header that the prompt has is not the model's; and every answer ends as it does when it is given.
HEADERS = {"gptoss": (("<|start|>assistant", ""), ("<|end|>", "<|return|>")),
           "muse_glimmer": (("<|start|>assistant", ""),),
           "deepseekv3": (("<｜Assistant｜>", ""), ("<｜tool▁outputs▁end｜>", "")),
           # after a call it waits for the result, and its prompt there lacks the header that it then shows
           "diffusion_gemma": (("<tool_call|>", "<tool_call|><|tool_response><|turn>model\n"),)}


@pytest.mark.parametrize("name", TRAINING)
def test_the_mask_is_that_of_trls_training_template(many, name):
    tokenizer = many(name)
    coded = tokenizer.apply_chat_template(library_messages(tokenizer, PLAIN), tools=[TOOL], return_dict=True,
                                          return_assistant_tokens_mask=True)
    expected = tokenizer.decode([token for token, masked in zip(
        coded["input_ids"], coded["assistant_masks"], strict=True) if masked])
    for old, new in next((pairs for start, pairs in HEADERS.items() if name.startswith(start)), ()):
        expected = expected.replace(old, new)
    expected = re.sub(r"\n?<think>\s*</think>\n*", "", expected)
    assert re.sub(r"\s+", "", trained(tokenizer, {"messages": PLAIN, "tools": [TOOL]})) == re.sub(
        r"\s+", "", expected)


@pytest.mark.parametrize("name", KNOWING)
def test_calls_and_answers_are_trained_and_results_and_definitions_are_not(many, name):
    tokenizer = many(name)
    rows = encode_row(tokenizer, {"messages": PLAIN, "tools": [TOOL]})
    words = tokenizer.decode([label for row in rows for label in row.labels if label != IGNORE_INDEX])
    assert "get_weather" in words and words.count("Lima") == words.count("It is sunny.") == 1
    assert "21 degrees" not in words and "The weather." not in words and "Thanks" not in words
    whole = tokenizer.decode(rows[-1].input_ids)
    assert "21 degrees" in whole and "The weather." in whole
    # every turn is answered after the prompt that a server gives, and ends at a token that stops it
    for count in (1, 3, 5):
        prompt = encode_prompt(tokenizer, {"messages": PLAIN[:count], "tools": [TOOL]})
        assert any(row.input_ids[:len(prompt)] == prompt for row in rows)
    stops, ended = end_of_turn_ids(tokenizer), 0
    for row in rows:
        after = [*row.labels[1:], IGNORE_INDEX]
        ended += sum(label in stops and following == IGNORE_INDEX
                     for label, following in zip(row.labels, after, strict=True))
    assert ended == 3


@pytest.mark.parametrize("name", KNOWING)
def test_thoughts_before_a_call_and_an_answer_are_trained(many, name):
    tokenizer, row = many(name), {"messages": THINKING, "tools": [TOOL]}
    words, forms = trained(tokenizer, row), tool_forms(tokenizer)
    # the rest shows nothing before a call in which they could stand
    assert ("I must look." in words) == (forms.call_thoughts or forms.words_first)
    assert words.count("So it is.") == 1
    native = "<think>" not in words
    assert not forms.thoughts or "gemma" not in name or native
    for count in (1, 3):
        prompt = render_prompt(tokenizer, THINKING[:count + 1], [TOOL])
        assert any("".join(part for part, _ in text).startswith(prompt)
                   for text in training_pieces(tokenizer, row))


@pytest.mark.parametrize("name", sorted(SHIPPED))
def test_thoughts_are_shown_natively_or_as_text_but_never_lost(many, name):
    tokenizer = many(name)
    field = [USER, ANSWER | {"reasoning_content": "Is it?"}]
    text = [USER, ANSWER | {"content": "<think>\nIs it?\n</think>\n\nIt is sunny."}]
    for messages in (field, text):
        words = trained(tokenizer, {"messages": messages})
        assert words.count("Is it?") == 1 and words.count("It is sunny.") == 1
        assert words.index("Is it?") < words.index("It is sunny.")
    assert trained(tokenizer, {"messages": field}) == trained(tokenizer, {"messages": text})


@pytest.mark.parametrize("name", ["llama3", "gemma", "phi3", "deepseek_r1_distill", "cohere2"])
def test_tools_are_text_where_the_template_knows_none(many, name):
    tokenizer = many(name)
    system = {"role": "system", "content": "Be brief."}
    row = {"messages": [system, *PLAIN], "tools": [TOOL]}
    line = json.dumps({"name": "get_weather", "arguments": {"city": "Lima"}})
    as_text = [system | {"content": f"Be brief.\n\nTools:\n{json.dumps(TOOL)}"}, USER,
               {"role": "assistant", "content": line}, {"role": "user", "content": "21 degrees"},
               ANSWER, THANKS, BYE]
    assert training_pieces(tokenizer, row) == training_pieces(tokenizer, {"messages": as_text})
    assert line in trained(tokenizer, row) and "21 degrees" not in trained(tokenizer, row)
    without = training_pieces(tokenizer, {"messages": PLAIN[:4], "tools": [TOOL]})
    assert "Tools:\n" in without[0][0][0]


SEVERAL = [USER, call("Lima", "Oslo"), result("Oslo", "3 degrees"), result("Lima", "21 degrees"), ANSWER]


@pytest.mark.parametrize("name", KNOWING)
def test_several_calls_in_a_turn_all_train_each_with_its_result(many, name):
    tokenizer = many(name)
    row = {"messages": SEVERAL, "tools": [TOOL]}
    words, whole = trained(tokenizer, row), shown(tokenizer, row)
    assert words.count("Lima") == words.count("Oslo") == 1 and "degrees" not in words
    assert whole.count("21 degrees") == whole.count("3 degrees") == 1
    if tool_forms(tokenizer).between is None:  # turns of their own, each followed by its result
        order = [whole.rindex(word) for word in ('"Lima"', "21 degrees", '"Oslo"', "3 degrees")]
        assert order == sorted(order)
        with bad_input("messages[].tool_calls", match="one call a turn"):
            training_pieces(tokenizer, {"messages": SEVERAL[:2], "tools": [TOOL]})


def test_a_turn_that_is_not_to_be_trained_is_read(many):
    for name in ("qwen2_5", "qwen3", "llama3"):
        tokenizer = many(name)
        messages = [USER, ANSWER | {"train": False}, THANKS, BYE]
        words = trained(tokenizer, {"messages": messages})
        assert "Bye." in words and "sunny" not in words
        assert "It is sunny." in shown(tokenizer, {"messages": messages})
        assert len(training_pieces(tokenizer, {"messages": messages})) == 1
        row, = encode_row(tokenizer, {"messages": [USER, ANSWER | {"train": False}]})
        assert row.trained == 0
    called = [USER, call("Lima", train=False), *PLAIN[2:4]]
    words = trained(many("qwen2_5"), {"messages": called, "tools": [TOOL]})
    assert "get_weather" not in words and "sunny" in words


IDS = ("{%- for m in messages %}{%- if m.tool_calls %}{%- for c in m.tool_calls %}CHECK"
       "{{ '[CALL]' + BODY }}{%- endfor %}{{ eos_token }}"
       "{%- elif m.role == 'tool' %}{{ '[RESULT]' + m.tool_call_id + m.content }}"
       "{%- else %}{{ '[' + m.role + ']' + m.content + (eos_token if m.role == 'assistant' else '') }}"
       "{%- endif %}{%- endfor %}{%- if add_generation_prompt %}{{ '[assistant]' }}{%- endif %}")


def ids_template(body: str, check: str = "") -> str:
    return IDS.replace("BODY", body).replace("CHECK", check)


LIMA, OSLO = '{"city": "Lima"}', '{"city": "Oslo"}'
ALL = "c.id + c.function.name + (c.function.arguments | tojson)"


@pytest.mark.parametrize(("body", "check", "expected"), [
    (ALL, "", f"[CALL]call_Limaget_weather{LIMA}"),
    (ALL, "{%- if c.id | length != 9 %}{{ raise_exception('nine') }}{%- endif %}",  # as Mistral's templates
     f"[CALL]call00000get_weather{LIMA}"),
    ("c.id + (c.function.arguments | tojson)", "", f"[CALL]functions.get_weather:0{LIMA}"),  # as Kimi's
    ("c.function.name + c.function.arguments", "", f"[CALL]get_weather{LIMA}"),
])
def test_ids_have_the_form_that_the_template_wants(tokenizer, body, check, expected):
    other = copy.deepcopy(tokenizer)
    other.chat_template = ids_template(body, check).replace("{{ '[CALL]'", "{{ '[assistant][CALL]'")
    text = shown(other, {"messages": PLAIN[:4]})
    assert expected in text
    made = re.match(r"\[CALL\](.*?)(get_weather)?{", expected)[1] or "call_Lima"
    assert f"[RESULT]{made}21 degrees" in text


def test_a_result_without_an_id_answers_the_first_call_that_waits(tokenizer):
    other = copy.deepcopy(tokenizer)
    other.chat_template = ids_template(ALL).replace(
        "{{ '[CALL]'", "{{ '[assistant][CALL]'")
    messages = copy.deepcopy(SEVERAL)
    for message in messages:
        message.pop("tool_call_id", None)
        for made in message.get("tool_calls", ()):
            del made["id"]
    text = shown(other, {"messages": messages})
    assert f"call00000get_weather{LIMA}" in text and f"call00001get_weather{OSLO}" in text
    assert "[RESULT]call000003 degrees[RESULT]call0000121 degrees" in text


def test_a_named_template_for_tools_is_used_for_rows_with_tools(many):
    tokenizer = many("qwen2_5")
    tokenizer.chat_template = {"default": SHIPPED["llama3"], "tool_use": SHIPPED["qwen2_5"]}
    assert "<tool_call>" in trained(tokenizer, {"messages": PLAIN, "tools": [TOOL]})
    assert "<|eot_id|>" in trained(tokenizer, {"messages": [USER, ANSWER]})


def test_words_and_thoughts_beside_a_call_are_joined_where_the_template_takes_one_of_them(many):
    messages = [USER, call("Lima", content="Let me see.", reasoning_content="I must look."), *PLAIN[2:4]]
    for name in ("gptoss", "qwen3", "gemma4_v5"):
        words = trained(many(name), {"messages": messages, "tools": [TOOL]})
        assert words.count("I must look.") == words.count("Let me see.") == 1


def test_a_prompt_with_tools_is_the_servers(many):
    for name in ("qwen2_5", "gptoss", "llama3_1", "muse_glimmer", "gemma4", "lfm2_2_5"):
        tokenizer = many(name)
        for count in (1, 3):
            assert render_prompt(tokenizer, PLAIN[:count], [TOOL]) == render_chat(
                tokenizer, PLAIN[:count], [TOOL], add_generation_prompt=True)


def test_rows_of_a_file_with_tools_and_thoughts_are_trained_as_by_hand(many, tmp_path):
    called = json.dumps({"name": "get_weather", "arguments": {"city": "Lima"}})
    sharegpt = {"tools": json.dumps([TOOL["function"]]), "conversations": [
        {"from": "human", "value": USER["content"]},
        {"from": "function_call", "value": called},
        {"from": "observation", "value": "21 degrees"}, {"from": "gpt", "value": ANSWER["content"]},
        {"from": "human", "value": THANKS["content"]}, {"from": "gpt", "value": BYE["content"]}]}
    thinking = {"prompt": "2+2?", "completion": [{"role": "assistant", "content": "4",
                                                  "reasoning_content": "two and two"}]}
    rows = [{"messages": PLAIN, "tools": [TOOL]}, sharegpt, {"messages": [USER, BYE]}, thinking]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "probe.jsonl").write_text(json.dumps({"prompt": "a", "completion": "b"}))
    role = load_roles(override(Recipe(), model="somebody/else", domain_tasks=str(tmp_path / "a.jsonl"),
                               domain_tasks_probe=str(tmp_path / "probe.jsonl")))["domain_tasks"]
    tokenizer = many("qwen2_5")
    tokens = encode_role(tokenizer, role)
    texts = [tokenizer.decode(tokens.read(number, 0, length).input_ids)
             for number, length in enumerate(tokens.lengths)]
    assert texts[0] == texts[1] == shown(tokenizer, {"messages": PLAIN, "tools": [TOOL]})
    assert texts[2] == shown(tokenizer, {"messages": [USER, BYE]})
    assert texts[3].endswith("<think>\ntwo and two\n</think>\n\n4<|im_end|>")
    assert role.rows.uses == {"tools", "thoughts"}


@pytest.mark.parametrize(("name", "notes", "absent"), [
    ("qwen3", ["it shows definitions of tools, their calls, their results", "it shows thoughts"],
     ["as text"]),
    ("deepseekv3", ["it shows their calls, their results", "as text: definitions of tools"], ["one call"]),
    ("lfm2", ["it shows definitions of tools, their results", "as text: their calls"], []),
    ("gemma3", ["as text: definitions of tools, their calls, their results", "thoughts as text"], ["shows"]),
    ("llama3_2", ["one call a turn", "says beside a call", "thoughts before a call"], []),
])
def test_what_is_shown_as_text_is_described_where_the_data_has_it(many, name, notes, absent):
    text = describe_template(many(name), ["tools", "thoughts"])
    assert all(note in text for note in notes) and not any(note in text for note in absent)
    assert not any(note in describe_template(many(name), []) for note in ("tools", "thoughts before"))


def test_a_probe_with_tools_is_asked_with_them(make_model, many, monkeypatch):
    from sftbench.evaluation import probes
    from sftbench.models.loading import load_model
    tokenizer, seen = many("qwen2_5"), []
    model = load_model(make_model(vocab_size=len(tokenizer)))
    row = {"messages": PLAIN[:4], "tools": [TOOL]}

    def watch(model, batch, config):
        seen.append(tokenizer.decode(batch["input_ids"][0]))
        return batch["input_ids"][:, :0]

    monkeypatch.setattr(probes, "generate_tokens", watch)
    monkeypatch.setattr(probes, "answer_beginnings", lambda *args: {})
    assert probes.answer_probe(model, tokenizer, [row], 4096, 4)[0].nats > 0
    assert seen == [render_prompt(tokenizer, PLAIN[:3], [TOOL])]


@pytest.mark.parametrize("name", sorted(SHIPPED))
def test_thoughts_can_be_read_and_only_what_follows_them_trained(many, name):
    tokenizer, plain = set_rendering(many(name), train_thoughts=False), many(name)
    row = {"messages": [USER, ANSWER | {"reasoning_content": "Is it?"}, THANKS, BYE]}
    words = trained(tokenizer, row)
    assert "Is it?" not in words and words.count("It is sunny.") == words.count("Bye.") == 1
    assert words.lstrip().startswith("It is sunny.")
    whole, as_before = (["".join(part for part, _ in text) for text in training_pieces(one, row)]
                        for one in (tokenizer, plain))
    assert whole == as_before
    assert trained(tokenizer, {"messages": [USER, ANSWER]}) == trained(plain, {"messages": [USER, ANSWER]})
    assert "thoughts are read" in describe_template(tokenizer) and "read, not" not in describe_template(plain)


@pytest.mark.parametrize("name", KNOWING)
def test_thoughts_before_a_call_can_be_read_and_the_call_trained(many, name):
    tokenizer = set_rendering(many(name), train_thoughts=False)
    words = trained(tokenizer, {"messages": THINKING, "tools": [TOOL]})
    assert "I must look." not in words and "So it is." not in words
    assert "get_weather" in words and "Lima" in words and words.count("It is sunny.") == 1


DATED = sorted(name for name in SHIPPED if "strftime_now" in SHIPPED[name])


@pytest.mark.parametrize("name", DATED)
def test_a_template_that_shows_the_day_shows_the_recipes(many, name):
    tokenizer = set_rendering(many(name), "2026-03-04")
    for tools in (None, [TOOL]):
        text = shown(tokenizer, {"messages": PLAIN if tools else [USER, BYE], "tools": tools})
        assert "2026-03-04" in text or "04 Mar 2026" in text
        assert text.replace("2026-03-04", DAY).replace("04 Mar 2026", SHORT_DAY) == shown(
            set_rendering(many(name)), {"messages": PLAIN if tools else [USER, BYE], "tools": tools})
    assert "it shows the date, here 2026-03-04" in describe_template(tokenizer)
    assert tokenizer_fingerprint(tokenizer) != tokenizer_fingerprint(set_rendering(many(name), "2026-03-05"))


DAY, SHORT_DAY = (datetime.date.today().strftime(text) for text in ("%Y-%m-%d", "%d %b %Y"))


def test_only_templates_with_a_clock_show_a_day(many):
    assert DATED == ["gptoss", "gptoss_training", "llama3_2", "muse_glimmer", "muse_glimmer_training"]
    assert [name for name in SHIPPED if shows_date(many(name))] == [name for name in SHIPPED if name in DATED]
    assert render_settings(set_rendering(many("qwen3"))).date is None
    assert render_settings(set_rendering(many("gptoss"))).date == datetime.date.today().isoformat()
    with bad_input("template_date", match="shows no date"):
        set_rendering(many("qwen3"), "2026-03-04")
    with bad_input("template_date", match="2026-11-27"):
        set_rendering(many("gptoss"), "yesterday")


@pytest.mark.parametrize(("text", "shows"), [
    ("{{ strftime_now('%d.%m.%y') }}", "04.03.26"), ('{{ strftime_now("%A") }}', "Wednesday"),
    ("{% set day = '%B %d, %Y' %}{{ strftime_now(day) }}", "March 04, 2026"),
    ("\n  {% if strftime_now is defined %}{{ strftime_now('%j') }}{% endif %}", "\n063"),
])
def test_a_day_is_pinned_in_every_format(tokenizer, text, shows):
    other = copy.deepcopy(tokenizer)
    other.chat_template = text + tokenizer.chat_template
    before = render_chat(other, [USER])
    set_rendering(other, "2026-03-04")
    assert render_chat(other, [USER]).startswith(shows)
    assert render_chat(other, [USER])[len(shows):] == before[-len(render_chat(tokenizer, [USER])):]


def test_a_run_pins_the_day_and_what_reads_it_back_uses_it(make_model, small_files, tmp_path):
    folder = Path(make_model(rope_theta=1234.0))
    dated = shutil.copytree(folder, tmp_path / "dated")
    tokenizer = AutoTokenizer.from_pretrained(dated)
    tokenizer.chat_template = "{{ strftime_now('%Y-%m-%d') }}" + tokenizer.chat_template
    tokenizer.save_pretrained(dated)
    recipe = override(Recipe(), mode="1", model=str(dated), max_steps=2, max_length=64, **{
        name: path for name, path in small_files.items() if name.endswith("tasks")})
    ready = prepare_recipe(recipe)
    assert ready.recipe.template_date == datetime.date.today().isoformat()
    assert "it shows the date" in ready.reasons["chat_template"]
    old = prepare_recipe(override(recipe, template_date="2001-02-03"))
    assert old.stages[0].key != ready.stages[0].key
    assert prepare_recipe(old.recipe).stages[0].key == old.stages[0].key
    first = old.roles["domain_tasks"].train[0]
    assert old.tokenizer.decode(encode_prompt(old.tokenizer, first["messages"])).startswith("2001-02-03")
    assert prepare_recipe(override(recipe, train_thoughts=False)).stages[0].key != ready.stages[0].key
    run = run_chain(override(old.recipe, output_dir=str(tmp_path / "run")))
    _, tokenizer = CheckpointRef.parse(str(run)).load()
    assert render_settings(tokenizer).date == "2001-02-03"
    assert export_stage(run, tmp_path / "export")["equal"] > 0
    assert "2001-02-03" in (tmp_path / "export" / "README.md").read_text()


@pytest.mark.parametrize("name", KNOWING)
def test_a_definition_without_description_and_parameters_is_shown(many, name):
    tokenizer = many(name)
    bare = {"type": "function", "function": {"name": "look_around"}}
    text = shown(tokenizer, {"messages": PLAIN[:4], "tools": [bare]})
    assert "look_around" in text and "It is sunny." in text


def test_thoughts_follow_a_prompt_that_opens_them_where_an_option_does(tokenizer):
    other = copy.deepcopy(tokenizer)  # as DeepSeek V3.1's: the prompt closes thoughts, and history has none
    other.chat_template = (
        "{% for m in messages %}{% if m.role == 'user' %}{{ '<user>' + m.content }}{% else %}"
        "{{ '<assistant></think>' + m.content.split('</think>')[-1] + '<eos>' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{{ '<think>' if thinking else '</think>' }}{% endif %}")
    texts = training_pieces(other, {"messages": [USER, ANSWER | {"reasoning_content": "Is it?"}]})
    assert texts == [[("<user>Weather in Lima?<assistant><think>", False),
                      ("Is it?\n</think>\n\nIt is sunny.<eos>", True)]]
    assert training_pieces(other, {"messages": [USER, ANSWER]}) == [
        [("<user>Weather in Lima?<assistant></think>", False), ("It is sunny.<eos>", True)]]
