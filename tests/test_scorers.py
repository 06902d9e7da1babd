"""Scorers: each gives the trade's formats their right value, and a wrong one is refused by name."""

import json
import shutil
import time

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from sftbench.data.conversations import parse_row
from sftbench.evaluation import probes
from sftbench.evaluation.rating import score_probe
from sftbench.evaluation.scorers import (
    SCORER_FUNCTIONS,
    check_wanted,
    contains,
    exact_match,
    lossy_answers,
    score_answer,
    token_f1,
    wanted_answer,
)
from sftbench.evaluation.stated import last_number, stated_letter
from sftbench.models.loading import load_model
from sftbench.recipes.recipe import SCORERS, Recipe, override
from sftbench.reports.ledger import format_ledger
from sftbench.runs.folder import read_result
from sftbench.training.chain import run_chain
from sftbench.training.data_check import measure_data
from sftbench.training.prepare import prepare_recipe
from tests.conftest import bad_input, small_rows


def task(question: str, answer: str, **more) -> dict:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}],
            **more}


def test_every_name_that_a_recipe_takes_is_a_scorer():
    assert tuple(SCORER_FUNCTIONS) == SCORERS


@pytest.mark.parametrize(("answer", "wanted", "match", "f1"), [
    ("Oslo", "Oslo", 1, 1), ("  Oslo\n", "Oslo", 1, 1), ("oslo.", "Oslo", 0, 1), ("x²", "x2", 0, 1),
    ("in Oslo", "Oslo", 0, 2 / 3), ("Lima", "Oslo", 0, 0), ("", "Oslo", 0, 0), ("a a b", "a b b", 0, 2 / 3),
    ("a\u00a0b", "a b", 1, 1),
])
def test_exact_match_and_f1(answer, wanted, match, f1):
    assert exact_match(answer, wanted) == match
    assert token_f1(answer, wanted) == pytest.approx(f1)


@pytest.mark.parametrize(("answer", "wanted", "f1"), [
    ("北京市", "北京", 0.8), ("東京タワー", "東京", 4 / 7), ("コーヒー", "コーラ", 4 / 7), ("ญี่ปุ่น", "ญี่ปุ่น", 1),
    ("สวัสดีครับ", "สวัสดี", 8 / 11), ("ສະບາຍ", "ສະບາຍດີ", 10 / 11), ("မြန်မာ", "မြန်မာ", 1),
    ("ខ្មែរ", "ខ្មែរ", 1), ("GPT模型", "gpt", 1 / 2), ("2024年", "2024年", 1), ("2024年", "2025年", 0.5),
    ("Ｏｓｌｏ", "oslo", 1), ("हिमालय", "हिन्दी", 0), ("हिन्दी भाषा", "हिन्दी", 2 / 3), ("தமிழ்", "தமிழன்", 0),
    ("cafe\u0301", "café", 1), ("כָּתַב", "כֶּתֶב", 0), ("שָׁלוֹם עולם", "שָׁלוֹם", 2 / 3),
    ("كِتَابٌ", "كِتَابٌ", 1), ("كِتَابٌ", "كُتُبٌ", 0), ("می\u200cخواهم", "میخواهم", 1),
    ("서울 시", "서울", 2 / 3), ("naïve Äpfel", "ÄPFEL", 2 / 3), ("🙂", "☹", 0), ("!", "?", 0),
    ("🙂", "🙂", 1),
    ("", "", 1),
])
def test_f1_counts_characters_where_no_spaces_are_written_and_else_words_with_their_marks(answer, wanted, f1):
    assert token_f1(answer, wanted) == pytest.approx(f1)
    assert token_f1(wanted, answer) == pytest.approx(f1)


@pytest.mark.parametrize("scorer", ["exact", "f1", "contains", "json", "regex"])
@pytest.mark.parametrize(("composed", "decomposed"), [
    ("café", "cafe\u0301"), ("서울", "\u1109\u1165\u110b\u116e\u11af"), ("Ångström", "A\u030angstro\u0308m"),
    ("ガ", "カ\u3099"), ("ệ", "e\u0323\u0302"),
])
def test_the_way_of_composing_characters_decides_nothing(scorer, composed, decomposed):
    quote = json.dumps if scorer == "json" else str
    assert score_answer(quote(composed), quote(decomposed), scorer) == 1
    assert score_answer(quote(decomposed), quote(composed), scorer) == 1


@pytest.mark.parametrize(("answer", "wanted", "score"), [
    ("It is in oslo.", "Oslo", 1), ("New\n  York", "new york", 1), ("Oslofjord", "Oslo", 0),
    ("Use C++.", "C++", 1), ("I have 14 cats", "4", 0), ("14 and 4", "4", 1), ("北京市", "北京", 1),
    ("unhappy", "happy", 0), ("", "x", 0), ("-3", "3", 1), ("हिन्दी", "हिन्द", 0), ("Straße", "STRASSE", 1),
])
def test_contains_finds_whole_words(answer, wanted, score):
    assert contains(answer, wanted) == score


@pytest.mark.parametrize(("answer", "letter"), [
    ("B", "B"), ("(b)", "B"), ("B.", "B"), ("b)", "B"), ("b", "B"), ("Answer: B) Paris", "B"), ("C!", "C"),
    ("The answer is **C**", "C"), ("The correct answer is (D).", "D"), ("A good answer", None), ("A", "A"),
    ("a", "A"), ("I", "I"), ("I think Paris", None), ("I think it is B", "B"), ("A. Paris", "A"),
    ("B\nbecause", "B"), ("The answer is A because it is", "A"), ("The answer is a good thing", None),
    ("**Answer:** B", "B"), ("Answer: A good one", None), ("$\\boxed{\\text{(C)}}$", "C"),
    ("The answer is B. Option A is wrong.", "B"), ("The answer is not A, it is B", "B"),
    ("The answer isn't C. B is correct.", "B"), ("Either A or B", None), ("The answer is B or C", None),
    ("(A) and (B)", None), ("A, C", None), ("C is correct", "C"), ("Let us see. First … Therefore, (D)", "D"),
    ("I'd pick b.", "B"), ("My choice: c", "C"), ("'B'", "B"), ("Option D looks right", "D"),
    ("A-level", None), ("i.e. nothing", None), ("None of these", None), ("", None), ("答案是B", "B"),
    ("答案：Ｂ", "B"), ("（B）", "B"), ("选B。", "B"), ("B、巴黎", "B"), ("Antwort: C", "C"),
    ("答えはBです", "B"),
    ("A is wrong, so it must be B", None), ("<b>B</b>", "B"), ("Answer\n\nB", "B"),
])
def test_choice_reads_the_letter_that_is_chosen(answer, letter):
    assert stated_letter(answer) == letter
    assert score_answer(answer, "B", "choice") == (letter == "B")


@pytest.mark.parametrize("wanted", [
    "B", "(B)", "b.", "B) Paris", "B: Paris", "Answer: B", "So it is. The answer is B.", "<think>A?</think>B",
])
def test_a_wanted_choice_may_have_its_text_beside_the_letter(wanted):
    assert score_answer("The answer is (b).", wanted, "choice") == 1
    assert score_answer("C", wanted, "choice") == 0


@pytest.mark.parametrize(("text", "number"), [
    ("1,234.5", 1234.5), ("-3", -3), ("−7", -7), ("1e3", 1000), ("1.5E-2", 0.015), ("50 %", 50), ("42.", 42),
    ("It is 6 × 7 = 42.", 42), ("6 + 1 = 7\n#### 42", 42), ("#### 1,000\n\nQ: 5 + 5", 1000),
    ("\\boxed{7} of 9", 7), ("\\boxed{\\frac{3}{4}}", 0.75), ("$1,000.00", 1000), ("-$5", -5), ("10-5", 5),
    ("x=-5", -5), ("- 3 apples", 3), ("pages 3–5", 5), ("1.234,5", 1234.5), ("1.234.567", 1234567),
    ("1'234", 1234), ("1\u202f234,5", 1234.5), ("3,5", 3.5), ("12,34,567", 1234567), ("1, 2, 3", 3),
    ("3/4", 0.75), ("2×10^3", 2000), ("3 × 10⁸ m/s", 3e8), ("10^6", 10**6), (".5", 0.5), ("it is...5", 5),
    ("CO2", 2), ("12 t of CO2", 12), ("25 m²", 25), ("３,０００", 3000), ("١٢٣", 123), ("١٬٢٣٤٫٥", 1234.5),
    ("۴۲", 42), ("४२", 42), ("共 42 个", 42), ("3万", 30000), ("三百二十五", 325), ("一亿二千万", 12 * 10**7),
    ("二〇二六年", 2026), ("十", 10), ("no number", None), ("", None), ("5/0", None), ("9" * 5000, None),
    ("<5", 5),
])
def test_number_is_the_last_of_the_text_in_every_usual_form(text, number):
    assert (float(found) if (found := last_number(text)) is not None else None) == number


@pytest.mark.parametrize(("answer", "wanted", "score"), [
    ("42.00", "42", 1), ("0.3333333", "1/3", 1), ("0.333", "1/3", 0), ("1000001", "1000000", 0),
    ("-3", "3", 0), ("1e3", "1,000", 1), ("", "0", 0), ("0.0", "0", 1), ("5e-7", "0", 0),
    ("3.1415927", "3.14159265", 1), ("<think>7</think> 42", "#### 42", 1), ("none", "0", 0),
    ("9007199254740993", "9007199254740992", 0),
])
def test_numbers_are_equal_exactly_or_to_a_millionth(answer, wanted, score):
    assert score_answer(answer, wanted, "number") == score


@pytest.mark.parametrize(("answer", "wanted", "score"), [
    ('{"b": [1, 2], "a": 1.0}', '{"a":1,"b":[1,2]}', 1), ('```json\n{"a": 1}\n```', '{"a":1}', 1),
    ('Here it is:\n```\n{"a": 1}\n```\nDone.', '{"a":1}', 1), ('{"a": 1} and more', '{"a":1}', 0),
    ("[2, 1]", "[1, 2]", 0), ("true", "1", 0), ("null", "0", 0), ("NaN", "1", 0), ("{'a': 1}", '{"a":1}', 0),
    ("[" * 10**5, "[]", 0), ("", "{}", 0), ('"\\u00e9"', '"e\u0301"', 1), ('{"a": "x y"}', '{"a": "xy"}', 0),
    ("1" * 5000, "1", 0), ("1e999", "1", 0),
    ('<tool_call>\n{"name": "f", "arguments": {"b": 1, "a": 2}}\n</tool_call>',
     '<tool_call>{"arguments": {"a": 2, "b": 1}, "name": "f"}</tool_call>', 1),
    ('<tool_call>{"name": "f"}</tool_call>\n<tool_call>{"name": "g"}</tool_call>',
     '<tool_call>{"name": "f"}</tool_call>', 0),
    ('function f\n```json\n{"a": 1}\n```', 'function f\n```json\n{"a":1}\n```', 1),
    ('function g\n```json\n{"a": 1}\n```', 'function f\n```json\n{"a":1}\n```', 0),
])
def test_json_is_compared_as_values(answer, wanted, score):
    assert score_answer(answer, wanted, "json") == score


@pytest.mark.parametrize(("answer", "wanted", "score"), [
    ("It is Oslo.", "Oslo|Bergen", 1), ("It is Oslo.", r"^Oslo\.?$", 0), ("Oslo", r"\AOslo\.?\Z", 1),
    ("OSLO", "(?i)oslo", 1), ("Kärnten", r"^\p{L}+$", 1), ("<think>Oslo</think>Lima", "Oslo", 0),
])
def test_regex_is_found_anywhere_unless_it_says_otherwise(answer, wanted, score):
    assert score_answer(answer, wanted, "regex") == score


def test_a_pattern_that_would_take_for_ever_ends_as_not_found():
    began = time.monotonic()
    assert score_answer("a" * 40 + "!" + "ab" * 20, r"(?:(?:a|b|ab)+)+(?<=\1)?(a*)*(b*)*\1c", "regex") == 0
    assert time.monotonic() - began < 20


@pytest.mark.parametrize("scorer", [name for name in SCORERS if name not in ("choice", "number", "json")])
@pytest.mark.parametrize("thoughts", [
    "<think>\nOslo? No, Lima.\n</think>\n\n", "<think></think>", "hm, Lima\n</think>\n",
    "<thinking>Lima</thinking>", "<think>a</think>\n<think>b</think>\n", "[THINK]Lima[/THINK]",
    "<think>He wrote <think> once</think>",
])
def test_thoughts_are_not_scored(scorer, thoughts):
    assert score_answer(f"{thoughts}Oslo", "Oslo", scorer) == 1
    assert score_answer(f"{thoughts}Oslo", "<think>other thoughts</think>\n\nOslo", scorer) == 1
    assert score_answer(f"{thoughts}Quito", "Oslo", scorer) == 0
    assert score_answer("<think>Oslo", "Oslo", scorer) == 0, "thoughts that were cut before an answer"


def test_a_word_about_thoughts_is_none():
    assert score_answer("Put it in <think> tags", "Put it in <think> tags", "exact") == 1
    assert score_answer("<think>a</think>", "<think>b</think>", "exact") == 0


@pytest.mark.parametrize(("wanted", "scorer"), [
    ("Paris", "choice"), ("A, C", "choice"), ("(A) and (B)", "choice"), ("none", "number"), ("{", "json"),
    ("Oslo", "json"), ("NaN", "json"), ("(", "regex"), ("[a", "regex"), ("x", "exct"), ("x", "levenshtein"),
])
def test_a_wanted_answer_that_no_answer_can_meet_is_refused(wanted, scorer):
    with bad_input("scorer"):
        check_wanted(wanted, scorer)


@pytest.mark.parametrize(("name", "near"), [
    ("exct", "'exact'"), ("jason", "'json'"), ("F1", "f1"), ("bleu", "bleu"),
])
def test_an_unknown_scorer_is_refused_by_name(name, near):
    with bad_input("scorer", match=near):
        override(Recipe(), scorer=name)
    with bad_input("scorer", match=near):
        parse_row({"question": "a?", "answer": "b", "scorer": name})


def test_a_row_may_have_its_own_scorer():
    row = parse_row({"question": "a?", "answer": "B) b", "scorer": "choice"}).row
    assert row["scorer"] == "choice"


def test_accuracy_is_the_mean_of_each_rows_own_scorer(make_model, tokenizer, monkeypatch):
    rows = [task("a", "Oslo"), task("b", "42", scorer="number"), task("c", "B", scorer="choice"),
            task("d", "Oslo Lima", scorer="f1"), task("e", "Oslo")]
    answers = ["Oslo.", "It is 42.", "(b)", "Lima", "Oslo"]
    monkeypatch.setattr(probes, "complete_answers", lambda *args, known: [
        probes.Answer(text, False, text) for text in answers])
    model = load_model(make_model())
    scores = score_probe(model, tokenizer, rows, 64, 4)
    assert scores["accuracy"] == pytest.approx((0 + 1 + 1 + 2 / 3 + 1) / 5, abs=1e-5)
    assert scores["f1"] == pytest.approx((1 + 1 / 2 + 1 + 2 / 3 + 1) / 5, abs=1e-5)


def normalising(normalizer) -> PreTrainedTokenizerFast:
    """A character tokenizer that normalises, and has no Greek."""
    raw = Tokenizer(models.WordLevel({character: number for number, character in enumerate(
        ["<unk>", *map(chr, range(32, 512)), *"서울"])}, unk_token="<unk>"))
    raw.normalizer = normalizer
    raw.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    raw.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="<unk>", eos_token="<unk>")


def test_answers_that_do_not_survive_their_tokens_are_counted():
    texts = ("cafe\u0301", "café", "\u1109\u1165\u110b\u116e\u11af", "x²", "ﬁn", "Ωmega", "Plain  text\n")
    rows = [task("q", text) for text in texts]
    assert lossy_answers(normalising(normalizers.NFC()), rows) == 2, "ﬁ and Greek are not in the vocabulary"
    assert lossy_answers(normalising(normalizers.NFKC()), rows) == 3, "x² becomes x2, ﬁ becomes fi"
    assert lossy_answers(normalising(normalizers.Lowercase()), rows) == 6 - 1
    both = {"messages": [*task("q", "Ω")["messages"], *task("q", "aΩ")["messages"]]}
    assert lossy_answers(normalising(None), []) == 0
    assert lossy_answers(normalising(normalizers.NFC()), [both]) == 1, "any answer of a conversation"


def test_the_wanted_answer_of_a_row_is_its_last_message(tokenizer):
    assert wanted_answer(tokenizer, task("Where?", "Oslo")) == "Oslo"


@pytest.fixture
def recipe(make_model, tmp_path):
    """A function from a probe's rows to a small recipe."""
    def make(rows: list[dict], **values) -> Recipe:
        paths = {"domain_tasks": small_rows("domain_tasks", 8), "domain_tasks_probe": rows}
        for name, content in paths.items():
            (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
            paths[name] = str(tmp_path / f"{name}.jsonl")
        return override(Recipe(), mode="1", model=make_model(), max_steps=1, max_new_tokens=3,
                        yardstick=False, output_dir=str(tmp_path / "run"), **paths, **values)
    return make


@pytest.mark.parametrize(("row", "values"), [
    (task("a", "(", scorer="regex"), {}), (task("a", "no letter"), {"scorer": "choice"}),
    (task("a", "seven", scorer="number"), {"scorer": "exact"}),
])
def test_a_probe_that_cannot_be_scored_is_refused_before_training(recipe, row, values):
    with bad_input("scorer", "domain_tasks"):
        prepare_recipe(recipe([row], **values))


def test_check_names_a_wanted_answer_that_its_scorer_cannot_use(tmp_path, make_model):
    path = tmp_path / "domain_tasks.jsonl"
    path.write_text("".join(json.dumps(task(f"q{number}", "no number", scorer="number")) + "\n"
                            for number in range(4)))
    report = measure_data(str(path), model=make_model())
    assert any("scorer number" in text and "no number" in text for text in report.stops)


def test_a_question_with_several_answers_lowers_what_can_be_reached(recipe, tmp_path, make_model):
    rows = [task("a", "1"), task("a", "2"), task("a", "2"), task("b", "3"), task("c", "4", scorer="contains"),
            task("c", "5", scorer="contains"), task("d", "6"), task("d", "6")]
    warning, = [one for one in prepare_recipe(recipe(rows)).warnings if "several answers" in one]
    assert "several answers: 1;" in warning and "at most 88%" in warning
    assert not [one for one in prepare_recipe(recipe(rows, scorer="f1")).warnings if "several" in one]
    report = measure_data(str(tmp_path / "domain_tasks.jsonl"), model=make_model(),
                          probe=str(tmp_path / "domain_tasks_probe.jsonl"))
    assert [one for one in report.warnings if "at most 88%" in one]


def test_settings_that_neither_model_nor_rows_read_are_named(recipe):
    rows = [task("a", "1"), task("b", "2")]
    found = prepare_recipe(recipe(rows, model_revision="main", train_thoughts=False)).warnings
    assert {one.split()[0] for one in found if "not used" in one} >= {"model_revision", "train_thoughts"}
    assert not [one for one in prepare_recipe(recipe(rows)).warnings if "not used" in one]


def test_patterns_that_would_train_as_answers_are_warned_of(recipe):
    rows = [task(f"q{number}", "a.c", scorer="regex") for number in range(8)]
    given = recipe(rows)
    split = override(given, domain_tasks=given.domain_tasks_probe, domain_tasks_probe=None)
    assert [warning for warning in prepare_recipe(split).warnings if "regex" in warning]
    assert not [warning for warning in prepare_recipe(given).warnings if "regex" in warning]


def test_a_run_warns_of_wanted_answers_that_its_tokenizer_cannot_give(recipe, make_model, tmp_path):
    rows = [task("a", "ﬁve"), task("b", "six"), task("c", "x²", scorer="f1")]
    assert not [warning for warning in prepare_recipe(recipe(rows)).warnings if "tokenizer" in warning]
    folder = shutil.copytree(make_model(), tmp_path / "normalising")
    made = AutoTokenizer.from_pretrained(folder)
    made.backend_tokenizer.normalizer = normalizers.NFKC()
    made.save_pretrained(folder)
    warning, = [one for one in prepare_recipe(override(recipe(rows), model=str(folder))).warnings
                if "tokenizer" in one]
    assert "1 of 3" in warning


def test_another_scorer_scores_the_stored_answers_and_loads_no_model(recipe, tmp_path, monkeypatch):
    rows = [task("a", "1"), task("b", "2", scorer="exact")]
    exact, number = (prepare_recipe(recipe(rows, scorer=name)).probes for name in ("exact", "number"))
    state = prepare_recipe(recipe(rows)).start_state(tmp_path)
    assert number.unanswered(state) == ["domain_tasks"]
    first = exact.answer(state)["domain_tasks"]
    monkeypatch.setattr(type(state), "load", lambda *_: pytest.fail("a model was loaded"))
    second = number.answer(state)["domain_tasks"]
    assert [row.scorer for row in first] == ["exact", "exact"]
    assert {row.prompt: row.scorer for row in second} == {"a": "number", "b": "exact"}
    assert [row.answer for row in first] == [row.answer for row in second]
    assert number.scorers == {"domain_tasks": {"number": 1, "exact": 1}}


@pytest.mark.slow
def test_a_run_states_which_scorer_gave_its_accuracy(recipe):
    rows = [task("a", "1"), task("b", "2"), task("c", "C", scorer="choice")]
    run = run_chain(recipe(rows, scorer="number"))
    result = read_result(run)
    assert result["scorers"] == {"domain_tasks": {"number": 2, "choice": 1}}
    assert set(result["start"]["probes"]["domain_tasks"]) == {"loss", "accuracy", "f1"}
    text = " ".join(format_ledger(run).split())
    assert "by the scorer number (2 rows), choice (1 row)" in text and "exactly" not in text
