"""The check of data files: what it counts against what was put in, and what a person sees of it."""

import io
import json
import random
import re
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from sftbench.cli import main
from sftbench.data.rows import read_source
from sftbench.data.tokenization import untrainable_remedy
from sftbench.errors import BadInput
from sftbench.reports.data_report import check_data, format_report, histogram_borders
from sftbench.reports.plots import length_figure
from sftbench.training.data_check import measure_data
from sftbench.training.scripts import script_runs
from tests.conftest import bad_input, small_rows


def lines(path, *rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def file(tmp_path):
    """Sixty rows; two of them bad, three of them there again, one too long, one in Chinese."""
    rows = small_rows("domain_tasks", 54)
    return lines(tmp_path / "mine.jsonl", *rows, '{"question": "x", "answer": 4}', "[]", *rows[:3],
                 {"prompt": "long " * 200, "completion": "x"},
                 {"question": "北京在哪里？" * 3, "answer": "中国", "type": "map"})


def test_rows_shapes_duplicates_and_truncation_are_counted(file, make_model, tokenizer):
    report = measure_data(file, model=make_model(), max_length=100)
    counts = report.counts
    assert report.role == "domain_tasks" and report.rows == 59 and report.bad == 2
    assert report.shapes == {"messages": 57, "prompt": 1, "qa": 1} and report.types == {"map": 1}
    assert [place.split(": ")[0] for place in report.first_bad] == [f"{file}, line 55", f"{file}, line 56"]
    assert report.duplicates == 3 and report.first_duplicates == [
        (f"{file}, line {57 + number}", f"{file}, line {1 + number}") for number in range(3)]
    assert counts.dropped["task longer than max_length"]["rows"] == 1
    assert counts.tokens == sum(counts.lengths) and sum(counts.lengths > 100) == 1
    chinese = counts.scripts["Chinese"]  # three bytes a character, none merged
    assert (chinese.characters, chinese.tokens, chinese.unknown) == (17, 51, 0)
    assert list(counts.costly.values())[0] == 3
    text = format_report(report)
    assert all(len(line) <= 100 for line in text.splitlines())
    assert "Chinese" in text and "badly split" in text and "line 55: field 'answer'" in " ".join(text.split())


def test_a_report_is_json_with_quantiles_for_lengths(file, make_model):
    report = measure_data(file, model=make_model(), max_length=100)
    values = json.loads(json.dumps(report.to_dict()))
    assert values["rows"] == 59 and values["counts"]["trained"] == report.counts.trained
    assert values["counts"]["lengths"]["longest"] == max(report.counts.lengths)
    assert values["stops"] == report.stops and "2 rows" in values["stops"][0]
    assert measure_data(file, model=make_model(), max_length=8).to_dict()["stops"]


def test_rows_in_both_training_and_probe_are_found_all_of_them(tmp_path, make_model):
    rows = small_rows("domain_text", 500)
    train, probe = lines(tmp_path / "a.jsonl", *rows), lines(tmp_path / "b.jsonl", *rows[:300])
    report = measure_data(train, model=make_model(), probe=probe)
    assert report.counts.dropped["also in the probe"] == {
        "rows": 300, "examples": [f"{train}, line {number}" for number in range(1, 6)]}
    assert report.role == "domain_text" and report.counts.train == 200
    assert "300 rows" in format_report(report)


def test_trained_tokens_are_those_of_a_run(file, make_model):
    from sftbench.recipes.recipe import Recipe, override
    from sftbench.training.prepare import prepare_recipe, stage_dataset
    report = measure_data(file, model=make_model(), max_length=100)
    ready = prepare_recipe(
        override(
            Recipe(),
            mode="1",
            model=make_model(),
            domain_tasks=file,
            bad_rows="drop",
            max_length=100,
            num_train_epochs=1,
        )
    )
    drawn = stage_dataset(ready, ready.stages[0])[1]["domain_tasks"]
    assert report.counts.trained == drawn["trained_tokens"] and report.counts.train == drawn["rows"] + 1


def test_a_file_without_a_usable_row_is_reported_and_a_missing_one_refused(tmp_path):
    report = measure_data(lines(tmp_path / "a.jsonl", "[]", '{"x": 1}'))
    assert report.bad == 2 and report.counts is None and json.dumps(report.to_dict())
    assert "line 2: no field" in " ".join(format_report(report).split())  # wrapped where the path is long
    with bad_input("data", tmp_path / "none.jsonl"):
        measure_data(str(tmp_path / "none.jsonl"))
    with bad_input("role", match="'domain_text'"):
        measure_data(str(tmp_path / "a.jsonl"), role="domain_txt")
    with bad_input("max_lenght", match="'max_length'"):
        measure_data(str(tmp_path / "a.jsonl"), max_lenght=8)


def test_whatever_would_stop_a_run_is_reported_and_ends_with_2(tmp_path, make_model, capsys):
    tasks, texts = small_rows("domain_tasks", 12), small_rows("domain_text", 12)
    good, model = lines(tmp_path / "good.jsonl", *tasks), ["--model", make_model()]
    bad_probe = lines(tmp_path / "probe.jsonl", *tasks[:2], "[]", '{"x": 1}')
    cases = [([lines(tmp_path / "empty.jsonl")], "no usable row"),
             ([good, "--probe", bad_probe], "2 rows would stop a run"),
             ([good, "--probe", lines(tmp_path / "none.jsonl", "[]")], "domain_tasks_probe: no usable row"),
             ([good, "--probe", good], "every row is also in the probe"),
             ([good, "--max-length", "8"], "within max_length 8 (task longer than max_length: "),
             ([lines(tmp_path / "a_text.jsonl", *texts), good], "12 rows would stop a run")]
    texts = {}
    for words, error in cases:
        assert main(["check", *words, *model]) == 2
        printed = capsys.readouterr()
        assert error in printed.err
        texts[error] = " ".join(printed.out.split())
    report = "".join(texts["2 rows would stop a run"].split())  # a long path goes on in the next line
    assert f"{bad_probe},line3:" in report
    assert "NOTHING TO TRAIN: every row is also in the probe" in texts["every row is also in the probe"]
    assert "12 rows of the file would do as tasks, not as text" in texts["12 rows would stop a run"]
    assert main(["check", str(tmp_path / "a_text.jsonl"), *model]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "a run takes its length from the task rows (" in text


def test_the_first_ten_bad_rows_are_named_and_all_counted_by_reason(tmp_path, make_model, capsys):
    for number in range(300):
        lines(tmp_path / f"f{number:03}.jsonl", {"question": "q", "answer": number}, {"body": f"x{number}"})
    probe = lines(tmp_path / "probe.json", *[{"question": "q", "answer": number} for number in range(99)])
    for words in ([], ["--probe", probe]):
        assert main(["check", str(tmp_path), "--model", make_model(), *words]) == 2
        printed = capsys.readouterr()
        assert len(printed.out.splitlines()) < 60 and len(printed.err.splitlines()) == 1
        text = "".join(printed.out.split())
        assert len(re.findall(r"line\d+:", text)) <= 10 + bool(words)
        assert "300:nofield'messages'" in text and "field'answer'mustbetextthatisnotempty" in text
    assert main(["check", str(tmp_path), "--json"]) == 2
    report = json.loads(capsys.readouterr().out)
    assert len(report["first_bad"]) == 10 and report["verdict"] == "will stop"
    assert sorted(report["bad_reasons"].values()) == [300, 399]


def test_files_that_cannot_be_read_are_named_and_the_others_reported(tmp_path, make_model):
    for number in range(20):
        (tmp_path / f"a{number:02}.csv").write_text("a,a\n1,2\n")
    (tmp_path / "b.parquet").write_bytes(b"PAR1 no more")
    (tmp_path / "c.json").write_text('[{"question": "q"')
    lines(tmp_path / "d.jsonl", *small_rows("domain_tasks", 12))
    report = measure_data(str(tmp_path), model=make_model())
    assert len(report.unreadable) == 22 and report.rows == 12 and report.counts.train
    assert report.verdict == "will stop" and "22 files cannot be read" in report.stops[0]
    text = "".join(format_report(report).split())
    assert text.count(".csv,line1:") == 10 and "and12more" in text


@pytest.mark.parametrize("rows", [[], [{"question": "q", "answer": "a"}]])
def test_with_fewer_than_two_good_rows_the_bad_ones_are_still_reported(rows, tmp_path, make_model):
    path = lines(tmp_path / "a.jsonl", *rows, {"question": "q", "answer": 3}, {"prompt": 1})
    report = measure_data(path, model=make_model())
    assert report.bad == 2 and len(report.first_bad) == 2 and report.verdict == "will stop"
    assert "line2:" in "".join(format_report(report).split()) and len(report.stops) == 2
    alone = measure_data(lines(tmp_path / "b.jsonl", *rows), model=make_model())
    assert len(alone.stops) == 1 and alone.bad == 0


def last_lines(path, capsys, *words):
    code = main(["check", path, *words])
    return code, capsys.readouterr().out.split("Verdict: ")[1].splitlines()


def test_the_check_ends_with_a_verdict(tmp_path, make_model, capsys):
    rows, model = small_rows("domain_tasks", 30), ["--model", make_model()]
    good, bad = lines(tmp_path / "good.jsonl", *rows), lines(tmp_path / "bad.jsonl", *rows, "[]")
    twice = lines(tmp_path / "twice.jsonl", *rows, rows[0] | {"score": 3})
    assert last_lines(good, capsys, *model) == (0, ["ready"])
    code, (verdict, *reasons) = last_lines(twice, capsys, *model)
    assert (code, verdict) == (0, "ready with warnings") and len(reasons) == 3  # one goes on in a next line
    assert "`score`" in reasons[0] and "repeat an earlier one" in reasons[2]
    code, (verdict, *reasons) = last_lines(bad, capsys, *model, "--picture", str(tmp_path / "a.png"))
    assert (code, verdict) == (2, "will stop") and "bad_rows drop" in reasons[0] and len(reasons) == 1


def test_a_row_that_the_models_template_cannot_show_is_what_will_stop(tmp_path, make_model, tokenizer):
    import shutil
    folder = shutil.copytree(make_model(), tmp_path / "model")
    template = tokenizer.chat_template.replace(
        "{{ '<' +", "{% if 'secret' in m['content'] %}{{ raise_exception('no secrets') }}{% endif %}{{ '<' +")
    (folder / "chat_template.jinja").write_text(template)
    rows = [*small_rows("domain_tasks", 12), {"question": "the secret?", "answer": "x"}]
    report = measure_data(lines(tmp_path / "a.jsonl", *rows), model=str(folder))
    assert report.verdict == "will stop" and "no secrets" in report.stops[0] and report.rows == 13


@pytest.mark.parametrize("field", ["score", "Rating", "helpfulnessScore", "reward_model", "stars", "quality"])
def test_a_field_that_may_say_which_rows_are_good_is_a_warning(field, tmp_path, make_model):
    rows = [row | {field: 3, "id": 4} for row in small_rows("domain_tasks", 12)]
    report = measure_data(lines(tmp_path / "a.jsonl", *rows), model=make_model())
    assert report.unused == {field: 12, "id": 12} and report.verdict == "ready with warnings"
    assert f"`{field}`" in report.warnings[0] and len(report.warnings) == 1
    assert f"not used          `{field}` 12 rows, `id` 12 rows" in format_report(report)


def test_fields_that_nothing_reads_are_in_check_look_and_recipe(tmp_path, make_model, capsys):
    from sftbench.recipes.recipe import Recipe, override
    from sftbench.reports.text import look_at_data
    from sftbench.training.outcome import describe_run
    from sftbench.training.prepare import prepare_recipe
    rows = [row | {"id": number, "rating": 5 if number < 9 else None}
            for number, row in enumerate(small_rows("domain_tasks", 40))]
    rows[0]["messages"][0] |= {"time": "12:00"}
    path = lines(tmp_path / "a.jsonl", *rows)
    unused = {"id": 40, "rating": 9, "messages[].time": 1}
    assert measure_data(path, model=make_model()).to_dict()["unused"] == unused
    ready = prepare_recipe(override(Recipe(), mode="1", model=make_model(), domain_tasks=path))
    assert describe_run(tmp_path / "run", ready)["data"]["domain_tasks"]["unused"] == unused
    shown = look_at_data(ready)
    assert "not used: `id` 40 rows, `rating` 9 rows, `messages[].time` 1 row\n" in shown
    assert [warning for warning in ready.warnings if "`rating`" in warning] and "! domain_tasks:" in shown


def test_a_downloaded_folder_is_reported_with_what_is_passed_over_and_its_probe(tmp_path, make_model):
    from sftbench.recipes.recipe import Recipe, override
    from sftbench.reports.text import look_at_data
    from sftbench.training.outcome import describe_run
    from sftbench.training.prepare import prepare_recipe
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "README.md").write_text("# A card")
    for split, first in (("train", 0), ("test", 20), ("validation", 30)):
        lines(folder / f"{split}-00000-of-00001.jsonl", *small_rows("domain_tasks")[first:first + 20])
    report = measure_data(str(folder), role="domain_tasks", model=make_model())
    offered = f"{folder}#validation"
    assert report.rows == 20 and report.verdict == "ready with warnings"
    assert report.warnings[0].endswith(f"-p domain_tasks_probe '{offered}'")
    passed = {Path(name).name for name in report.passed_over}
    assert passed >= {"README.md", "test-00000-of-00001.jsonl"}
    text = "".join(format_report(report).split())
    assert offered in text and "README.md:" in text
    given = measure_data(str(folder), role="domain_tasks", model=make_model(), probe=offered)
    assert given.probe_rows == 10 and given.verdict == "ready"
    ready = prepare_recipe(override(Recipe(), mode="1", model=make_model(), domain_tasks=str(folder)))
    assert describe_run(tmp_path, ready)["data"]["domain_tasks"]["passed_over"] == report.passed_over
    assert f"passed over: {len(report.passed_over)} names, first" in " ".join(look_at_data(ready).split())


def test_how_plain_text_was_cut_is_reported(tmp_path, make_model):
    path = tmp_path / "notes.txt"
    path.write_text("\n".join(f"Line {number} says that it is one of many." for number in range(300)))
    report = measure_data(str(path), model=make_model())
    assert report.role == "domain_text" and "lines" in report.notes[0] and report.rows > 2
    assert "".join(report.notes[0].split()) in "".join(format_report(report).split())


@pytest.mark.parametrize(("names", "proposed"), [
    (("Frage", "Antwort"), "[question=Frage,answer=Antwort]"),
    (("problem", "solution"), "[question=problem,answer=solution]"),
    (("ask", "reply"), "[question=ask,answer=reply]")])
def test_columns_are_proposed_where_no_shape_is_recognised(names, proposed, tmp_path, make_model, capsys):
    rows = [dict(zip(names, (f"Where is it {number}?", f"Over there {number}."), strict=True))
            for number in range(12)]
    path = lines(tmp_path / "a.jsonl", *rows)
    report = measure_data(path, model=make_model())
    assert report.proposal == path + proposed and report.verdict == "will stop"
    assert any(report.proposal in stop for stop in report.stops)
    code, (verdict, *_) = last_lines(report.proposal, capsys, "--model", make_model())
    assert (code, verdict) == (0, "ready")


def test_text_that_looks_like_control_tokens_is_counted(tmp_path, make_model):
    rows = [row | {} for row in small_rows("domain_tasks", 20)]
    for row in rows[:3]:
        row["messages"][0]["content"] += " <eos><user> forged"
    report = measure_data(lines(tmp_path / "a.jsonl", *rows), model=make_model())
    assert report.counts.control_tokens in (2, 3), "one may be held out"
    assert "looks like a control token" in report.warnings[0]
    text = lines(tmp_path / "b.jsonl", *({"text": f"Use <eos> at {number}."} for number in range(9)))
    report = measure_data(text, model=make_model())
    assert report.counts.control_tokens == report.counts.train > 5 and len(report.warnings) == 1


def test_answers_that_their_tokens_do_not_give_back_are_counted(tmp_path, make_model, tokenizer):
    import shutil

    from tokenizers import normalizers
    folder = shutil.copytree(make_model(), tmp_path / "model")
    values = json.loads((folder / "tokenizer.json").read_text())
    values["normalizer"] = json.loads(normalizers.Lowercase().__getstate__())
    (folder / "tokenizer.json").write_text(json.dumps(values))
    rows = [{"question": f"where {number}?", "answer": word}
            for number, word in enumerate(["here"] * 15 + ["Oslo", "LIMA", "Ürgüp"])]
    report = measure_data(lines(tmp_path / "a.jsonl", *rows), model=str(folder))
    assert report.counts.lossy_answers == 3 and "3 answers are other ones" in report.warnings[0]


def test_a_question_that_the_given_probe_has_too_with_another_answer_is_a_warning(tmp_path, make_model):
    rows = [{"question": f"where is {number}?", "answer": "here"} for number in range(20)]
    train = lines(tmp_path / "a.jsonl", *rows)
    probe = lines(tmp_path / "b.jsonl", {"question": "Where is  7?", "answer": "there"}, rows[3])
    report = measure_data(train, model=make_model(), probe=probe)
    assert report.shared_groups == 1 and "1 training rows share a question" in report.warnings[0]
    assert report.counts.dropped["also in the probe"]["rows"] == 1


def test_no_token_to_train_stands_out(file, make_model):
    assert "NOTHING TO TRAIN" in check_data(file, model=make_model(), max_length=8)


@pytest.mark.parametrize("longest", [40, 4000])
def test_the_histogram_holds_every_row(longest):
    order = random.Random(0)
    lengths = np.array([order.randint(5, 40) for _ in range(300)] + [longest])
    figure = length_figure("domain_tasks", lengths, histogram_borders(lengths, 50), 32)
    axes = figure.axes[0]
    assert sum(bar.get_height() for bar in axes.patches) == 301
    assert axes.get_xscale() == ("log" if longest > 1000 else "linear")
    assert f"{(lengths > 32).sum()} rows are longer" in axes.get_legend().get_texts()[-1].get_text()
    assert sum(np.histogram(lengths, histogram_borders(lengths, 8))[0]) == 301


def test_scripts_are_told_apart_and_white_space_stays_with_its_word():
    assert list(script_runs("ab, 北京 12 Жук")) == [
        ("Latin", "ab"), ("signs", ", "), ("Chinese", "北京 "), ("digits", "12 "), ("Cyrillic", "Жук")]
    assert list(script_runs("  ")) == []


def test_the_command_checks_several_files_and_draws(file, tmp_path, make_model, capsys):
    odd = lines(tmp_path / "odd, name.jsonl", *small_rows("domain_tasks", 3))
    picture = tmp_path / "pictures" / "lengths.png"
    assert main(["check", file, odd, "--model", make_model(), "--picture", str(picture)]) == 2
    printed = capsys.readouterr()
    assert "62 in 2 files" in printed.out and f"histogram: {picture}" in printed.out
    assert "rows would stop a run" in printed.err and "bad_rows drop" in printed.err
    assert main(["check", odd, "--model", make_model()]) == 0
    assert imread(io.BytesIO(picture.read_bytes())).shape[:2] == (400, 960)
    assert main(["check", str(tmp_path / "none.jsonl")]) == 2
    assert "no such file" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "role"), [
    ("general_text.jsonl", "general_text"), ("general_tasks_probe.jsonl", "general_tasks"),
    ("notes.jsonl", "domain_text")])
def test_a_file_named_after_a_role_is_checked_as_that(name, role, tmp_path, make_model):
    rows = small_rows(role)
    assert measure_data(lines(tmp_path / name, *rows), model=make_model()).role == role


def test_the_command_looks_at_a_row(file, make_model, capsys):
    words = ["look", "1", "-p", "model", make_model(), "-p", "domain_tasks", file, "-p", "bad_rows", "drop"]
    assert main([*words, "--role", "domain_tasks", "--row", "2"]) == 0
    text = capsys.readouterr().out
    assert "row 2 (" in text and "«" in text and "end <eos> trained" in text
    assert main([*words, "--role", "domain_tasks", "--row", "1000"]) == 2


@pytest.mark.parametrize(("usable", "advised"), [(0, False), (1, False), (2, True)])
def test_leaving_bad_rows_out_is_advised_only_where_enough_is_left(usable, advised, tmp_path, make_model):
    path = lines(tmp_path / "a.jsonl", *small_rows("domain_tasks", usable), {"prompt": "x"}, {"prompt": "y"})
    report = measure_data(path, role="domain_tasks", model=make_model())
    assert any("bad_rows drop" in stop for stop in report.stops) == advised
    assert ("bad_rows is drop" in format_report(report)) == advised
    for bad_rows in ("stop", "drop")[:1 + (not usable)]:
        with pytest.raises(BadInput) as refused:
            read_source(path, "domain_tasks", bad_rows)
        assert ("bad_rows drop" in str(refused.value)) == advised


@pytest.mark.parametrize(("rows", "helps"), [
    (small_rows("domain_tasks", 9), False), ([{"prompt": "long " * 200, "completion": "x"}] * 2, True)])
def test_a_larger_max_length_is_advised_only_where_rows_are_too_long(rows, helps, tmp_path, make_model):
    path = lines(tmp_path / "a.jsonl", *rows)
    probe = lines(tmp_path / "b.jsonl", *(small_rows("domain_tasks", 9)))
    stops = measure_data(path, model=make_model(), probe=probe, max_length=100).stops
    assert len(stops) == 1 and ("larger max_length" in stops[0]) == helps
    assert ("another probe" in stops[0]) != helps


def test_what_helps_follows_why_nothing_can_train():
    assert "max_length" in untrainable_remedy({"task longer than max_length": [1], "nothing to train": [2]})
    assert "max_length" not in untrainable_remedy({"nothing to train": [2]})
    assert "max_length" not in untrainable_remedy({})


@pytest.mark.parametrize("mark", ["</s>", "<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|endoftext|>",
                                  "<｜end▁of▁sentence｜>", "[/INST]", "<image>", "<|audio_1|>"])
def test_control_tokens_of_other_models_and_lone_placeholders_are_counted(mark, tmp_path, make_model):
    rows = [{"question": f"What is {number}?", "answer": f"It is {number}.{mark}"} for number in range(20)]
    report = measure_data(lines(tmp_path / "a.jsonl", *rows), model=make_model())
    assert report.counts.foreign_marks == {mark: report.counts.train} and report.rows == 20
    assert report.verdict == "ready with warnings" and any(mark in text for text in report.warnings)
    texts = lines(tmp_path / "b.jsonl", *({"text": f"{number} {mark}"} for number in range(20)))
    assert measure_data(texts, model=make_model()).counts.foreign_marks


def test_a_question_on_a_control_token_is_no_mark_but_one_with_a_placeholder_is(tmp_path, make_model):
    rows = [{"question": f"What is </s> {number}?", "answer": f"An end {number}."} for number in range(20)]
    assert measure_data(lines(tmp_path / "a.jsonl", *rows), model=make_model()).verdict == "ready"
    rows = [{"question": f"<image> What? {number}", "answer": f"A cat {number}."} for number in range(20)]
    report = measure_data(lines(tmp_path / "b.jsonl", *rows), model=make_model())
    assert list(report.counts.foreign_marks) == ["<image>"] and report.to_dict()["counts"]["foreign_marks"]
