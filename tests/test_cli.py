"""The command line and the papermill wrapper: commands, exit codes, speed of start, and what they refuse."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from sftbench.cli import main, parse_command
from sftbench.errors import BadInput, RunFailed
from sftbench.notebook import execute_notebook
from sftbench.options import print_json
from sftbench.recipes.recipe import FIELDS, Recipe, override
from sftbench.runs.events import append_event
from sftbench.runs.folder import read_result, write_json
from tests.conftest import bad_input

ROOT = Path(__file__).parent.parent


def arguments(values: dict) -> list[str]:
    return [word for name, value in values.items() for word in ("-p", name, str(value))]


@pytest.fixture
def small(make_model, small_files):
    """Recipe values of a run that takes seconds."""
    return {"model": make_model(), "max_steps": 2, "probe_rows": 4} | small_files


def test_run_prints_the_ledger_and_the_paths_of_what_it_wrote(small, tmp_path, capsys, monkeypatch):
    small |= {"learning_rate": 5}
    assert main(["run", "2", *arguments(small), "--out", str(tmp_path / "one")]) == 0
    printed, warned = capsys.readouterr()
    assert "warning: learning_rate 5 is " in warned and "above" in warned
    assert "start (base)" in printed and "domain_sft" in printed and "loss.png" in printed
    model = Path(printed.split("model:")[1].strip().splitlines()[0])
    assert (model / "model.safetensors").exists()
    assert (tmp_path / "one" / "loss.png").read_bytes()[:4] == b"\x89PNG"
    assert main(["show", str(tmp_path / "one")]) == 0
    assert capsys.readouterr().out.strip() in printed
    monkeypatch.setenv("SFTBENCH_RUNS", str(tmp_path))
    assert main(["show", "one"]) == 0 and capsys.readouterr().out.strip() in printed


def test_show_prints_the_progress_of_an_unfinished_run(tmp_path, capsys):
    write_json(tmp_path / "recipe.json", {"schema": 1, "recipe": {}})
    for event in ({"stage": "start", "step": 0, "plan": {"cpt": 30, "sft": 10}},
                  {"stage": "start", "step": 0, "eval_domain_tasks_loss": 2.5},
                  {"stage": "cpt", "step": 10, "loss": 1.0}):
        append_event(tmp_path, event)
    result = {"schema": 1, "complete": False, "state": "stopped"}
    write_json(tmp_path / "result.json", result)
    assert main(["show", str(tmp_path), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["run"], shown["state"], shown["alive"]) == (str(tmp_path), "stopped", False)
    assert shown["progress"]["share"] == 0.25 and shown["result"] == result
    assert main(["show", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "stopped, cpt: 10 of 40 steps of all stages (25%)" in printed and "2.50" in printed
    assert f"sftbench resume {tmp_path}" in printed


@pytest.mark.parametrize("related", [True, False])
def test_the_pocket_written_as_files_is_the_pockets_data(tmp_path, capsys, related):
    from sftbench.data.roles import load_roles
    words = ["pocket", "write", str(tmp_path), "--seed", "3"] + ["--unrelated"] * (not related)
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert len(re.findall(r"\.jsonl  [\d,]+ rows\n", printed)) == 8
    embedded = load_roles(override(Recipe(), pocket_seed=3, pocket_related=related))
    paths = {path.stem: str(path) for path in tmp_path.glob("*.jsonl")}
    assert all(f"-p {name} {path}" in printed for name, path in paths.items())
    read = load_roles(override(Recipe(), **paths))
    assert set(read) == set(embedded) == {name for name in paths if not name.endswith("_probe")}
    for name, role in embedded.items():
        assert list(read[name].train) == list(role.train) and list(read[name].probe) == list(role.probe)
    assert main(words) == 0, "the same files may be written again"
    (tmp_path / "general_text_probe.jsonl").write_text('{"text": "mine"}\n')
    assert main([*words[:-1], "4"] if related else words) == 2
    assert (tmp_path / "general_text_probe.jsonl").read_text() == '{"text": "mine"}\n'
    assert "name another folder" in capsys.readouterr().err


def test_help_and_methods_list_choices_and_defaults(capsys):
    assert main(["methods"]) == 0
    printed = capsys.readouterr().out
    assert "quantise QLoRA's scales as well [default true]" in printed
    assert "[one of nf4, fp4; default nf4]" in printed
    assert main(["run", "--help"]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"learning_rate +float +.*; None: advised\n", printed), "no default where it is advised"
    assert "[one of cosine, linear, constant_with_warmup; default cosine]" in printed
    assert set(re.findall(r"^ +(\w+) +(?:str|int|float|bool) +\S", printed, re.M)) == set(FIELDS)


@pytest.mark.parametrize(("words", "field", "nearest"), [
    (["rnu", "2"], "", "Did you mean 'run'?"),
    (["run", "2", "--otu", "x"], "--otu", "Did you mean '--out'?"),
    (["eval", "a", "--tasks", "b", "c", "--limt", "3"], "--limt", "Did you mean '--limit'?"),
    (["--vers"], "--vers", "see sftbench --help"),
    (["run", "2", "-p", "seed"], "-p", "see sftbench run --help"),
    (["advise", "--wants", "all"], "", "'domain', 'both'"),
    (["run"], "", "MODE"),
    (["run", "2", "3"], "", "(3)"),
    (["eval", "a", "--tasks", "b", "--stages"], "--stages", "requires an argument"),
    (["eval", "a", "--tasks"], "--tasks", "requires an argument"),
    ([], "", "see sftbench --help"),
])
def test_a_mistyped_command_ends_with_code_2_and_the_nearest_name(words, field, nearest, capsys):
    with pytest.raises(BadInput) as raised:
        parse_command(words)
    assert raised.value.field == field and nearest in str(raised.value)
    assert main(words) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err == f"sftbench: {raised.value}\n"


@pytest.mark.parametrize(("words", "command", "expected"), [
    ("run 4 -p packing false --out a -p lora_r 8", "run",
     {"mode": "4", "recipe": override(Recipe(), mode="4", packing=False, lora_r=8), "out": "a"}),
    ("eval a --tasks b c,d --limit 2 --stages e f", "eval",
     {"run": Path("a"), "tasks": ("b", "c,d"), "stages": ("e", "f"), "limit": 2}),
    ("eval --tasks b --tasks c --limit 2 a", "eval",
     {"run": Path("a"), "tasks": ("b", "c"), "stages": (), "limit": 2}),
    ("talk a b --prompt c --prompt d e", "talk",
     {"checkpoints": ("a", "b", "e"), "prompt": ("c", "d"), "system": None, "max_new_tokens": None,
      "as_json": False}),
    ("notebook 2 -p seed 3", "notebook", {"which": "2", "values": {"seed": 3}, "out": None, "timeout": None}),
])
def test_words_become_a_command_and_its_options(words, command, expected):
    assert parse_command(words.split()) == (command, expected)


def test_a_toml_mode_runs(small, tmp_path, capsys):
    path = tmp_path / "mine.toml"
    path.write_text('name = "mine"\nsentence = "Text in SFT."\nstart = "base"\n'
                    '[[stages]]\nname = "sft"\nkind = "sft"\n'
                    'shares = { domain_tasks = 0.6, general_text = 0.4 }\n')
    assert main(["run", str(path), *arguments(small), "--out", str(tmp_path / "own")]) == 0
    data = read_result(tmp_path / "own")["stages"][0]["data"]
    assert data["general_text"]["share"] == pytest.approx(0.4, abs=0.03)


@pytest.mark.parametrize(("words", "text"), [
    (["run", "2", "-p", "metod", "lora"], "did you mean 'method'"),
    (["run", "2", "-p", "lora_r", "8.5"], "lora_r must be a whole number, not '8.5'"),
    (["run", "2", "-p", "learning_rate", "nan"], "finite"),
    (["run", "0"], "1 to 7"),
    (["run", "2", "-p", "domain_text", "nowhere.jsonl", "-p", "domain_tasks", "x.jsonl"], "no such file"),
    (["notebook", "8"], "no notebook for mode"),
    (["notebook", "nowhere.ipynb"], "no such notebook"),
    (["notebook", "2", "-p", "__import__('os').abort()", "1"], "unknown parameter"),
    (["notebook", "2", "--out", "{x.__class__}"], "braces"),
    (["show", "nowhere"], "no run of that name"),
    (["export", "nowhere", "out"], "no run of that name"),
    (["look", "1", "--row", "0"], "'--row': 0"), (["look", "1", "--rows", "-2"], "'--rows': -2"),
    (["eval", "a", "--tasks", "b", "--limit", "0"], "'--limit': 0"),
    (["notebook", "1", "--timeout", "0"], "'--timeout': 0"), (["modes", "9"], "give 1 to 7"),
    (["talk", "nowhere", "--prompt", "x"], "no run of that name, neither as a folder nor under runs/"),
    (["talk", "nowhere:start", "--prompt", "x"], "no run of that name"),
])
def test_bad_input_ends_with_code_2_and_the_remedy(words, text, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    assert text in capsys.readouterr().err
    assert not list(tmp_path.rglob("recipe.json"))


@pytest.mark.parametrize(("words", "text"), [
    (["lora", "-p", "lora_target_modules", "q_proj,foo"], "no module 'foo' that LoRA fits; there is "),
    (["qlora", "-p", "lora_target_modules", "k_prj"], "did you mean 'k_proj'?; there is "),
    (["freeze", "-p", "trainable_parts", "last:9"], "needs a number from 1 to"),
])
def test_parts_the_model_does_not_have_are_refused_before_training(words, text, small, tmp_path, capsys):
    assert main(["run", "1", *arguments(small), "--out", str(tmp_path / "a"), "-p", "method", *words]) == 2
    assert text in capsys.readouterr().err and not (tmp_path / "a").exists()


def test_lists_and_advice(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("SFTBENCH_RUNS", str(tmp_path))
    for command, words in (("modes", "base_mixed_cpt_mixed_sft"), ("methods", "num_virtual_tokens"),
                           ("rules", "R16  Frozen parts"),
                           ("stages", "0 stages")):
        assert main([command]) == 0
        assert words in capsys.readouterr().out


def test_a_mode_alone_is_shown_by_number_name_or_file(capsys, tmp_path):
    for given in ("5", "base_mixed_cpt_mixed_sft"):
        assert main(["modes", given]) == 0
        assert re.findall(r"^(\S+)  (\S+)$", capsys.readouterr().out, re.M) == [
            ("5", "base_mixed_cpt_mixed_sft")]
    assert main(["modes", str(ROOT / "notebooks" / "own_mode.toml")]) == 0
    assert capsys.readouterr().out.count("[ base ]") == 1


def test_json_is_one_object_on_standard_output(small, tmp_path, capsys):
    data = {name: value for name, value in small.items() if name != "max_steps"}
    one, two = (str(tmp_path / name) for name in ("one", "two"))
    for folder, seed in ((one, "0"), (two, "1")):
        assert main(["run", "1", *arguments(small), "-p", "seed", seed, "--out", folder]) == 0
    capsys.readouterr()

    def data_of(*words: str) -> dict:
        assert main([*words, "--json"]) == 0
        return json.loads(capsys.readouterr().out)
    shown = data_of("show", one)
    assert (shown["state"], shown["alive"], shown["progress"]["share"]) == ("done", False, 1.0)
    assert shown["result"] == json.loads((tmp_path / "one" / "result.json").read_text())
    compared = data_of("compare", one, two)
    assert compared["differences"] == {"seed": [0, 1]} and [run["name"] for run in compared["runs"]] == [
        "one", "two"]
    forecast = data_of("forecast", "1", "--quick", *arguments(small))
    assert forecast["steps"] == {"domain_sft": 2} and forecast["peak_memory_bytes"] > 1e8
    checked = data_of("check", small["domain_tasks"], "--model", small["model"])
    assert checked["rows"] == 40 and checked["stops"] == []
    advised = data_of("advise", "1", "--quick", "--wants", "both", *arguments(data))
    assert advised["values"]["learning_rate"]["rule"] == "R8" and "R6" in [
        rule["rule"] for rule in advised["rules"]]


@pytest.mark.parametrize("data", [float("nan"), {1, 2}])
def test_json_is_never_a_number_that_is_none_nor_an_object_as_text(data):
    with pytest.raises((ValueError, TypeError)):
        print_json({"loss": data})


def test_compare_prints_runs_side_by_side(small, tmp_path, capsys):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write_json(tmp_path / name / "recipe.json", {
            "schema": 1, "recipe": {"mode": "1", "method": "full", "seed": 3 if name == "one" else 4}})
    assert main(["compare", str(tmp_path / "one"), str(tmp_path / "two")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("run")
    assert any(line.startswith("one") and "unfinished" in line for line in lines)
    assert lines[-1].split() == ["seed", "3", "4"]
    assert main(["compare", str(tmp_path / "nowhere")]) == 2


def test_advice_measures_the_gap_by_itself(capsys, small):
    known = {name: value for name, value in small.items() if name != "max_steps"}
    assert main(["advise", "2", "--wants", "domain", "--resources", "much", *arguments(known)]) == 0
    printed = capsys.readouterr().out
    assert all(text in printed for text in ("Suggested mode:", "R1", "nats per token", "R7"))
    assert printed.startswith(f"For {small['model']}, with domain_text") and "bnb_" not in printed
    assert f"next: sftbench run 2 -p method full -p model {small['model']}" in printed


@pytest.mark.parametrize("command", ["run", "look", "forecast", "advise", "notebook"])
def test_an_unknown_mode_is_refused_before_libraries_load(command, tmp_path):
    code = ("import sys; from sftbench.__main__ import main; "
            f"code = main([{command!r}, '12']); sys.exit(code if 'torch' not in sys.modules else 3)")
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 2 and "1 to 7" in done.stderr and "did you mean" not in done.stderr


@pytest.mark.parametrize(("words", "field"), [
    ("run 2 -p domain_tasks nowhere.jsonl", "domain_tasks"), ("look 2 -p domain_text no.md", "domain_text"),
    ("run 1 -p domain_tasks_probe no.csv", "domain_tasks_probe"), ("forecast 2 -p model ./no", "model"),
    ("advise -p general_text a.txt", "general_text"), ("notebook 2 -p domain_text a.md", "domain_text"),
    ("check nowhere.jsonl", "check"), ("check here.jsonl --probe no.csv", "check"),
    ("run 6 -p chat_model ~/no", "model"), ("resume run", "domain_tasks"), ("eval no --tasks a", "no"),
    ("export no a", "no")])
def test_a_file_that_is_not_there_is_refused_before_libraries_load(words, field, tmp_path):
    (tmp_path / "here.jsonl").touch()
    (tmp_path / "run").mkdir()
    write_json(tmp_path / "run" / "recipe.json", {"schema": 1, "recipe": {"domain_tasks": "gone.jsonl"}})
    code = ("import sys; from sftbench.__main__ import main; "
            f"code = main({words.split()!r}); sys.exit(code if 'torch' not in sys.modules else 3)")
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and not done.stdout
    assert done.stderr.startswith(f"sftbench: {field}") and re.search("no such f|no run of", done.stderr)


@pytest.mark.parametrize("words", ["--help", "run --help", "modes", "methods", "stages"])
def test_a_command_that_trains_nothing_loads_few_modules(words, tmp_path):
    # what a start costs is what it imports: 0.08 s, as long as it is the standard library and click
    code = (f"import sys; from sftbench.__main__ import main; code = main({words.split()!r}); "
            "print(*{name.split('.')[0] for name in sys.modules}); sys.exit(code)")
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True,
                          check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    loaded = set(done.stdout.splitlines()[-1].split())
    assert loaded - set(sys.stdlib_module_names) - loaded_by_python() <= {"sftbench", "click", "filelock"}


def loaded_by_python() -> set[str]:
    """What this Python loads before any program."""
    done = subprocess.run([sys.executable, "-c", "import sys; print(*sys.modules)"], capture_output=True,
                          text=True, check=True)
    return {name.split(".")[0] for name in done.stdout.split()}


def run_unread(words: list[str], folder: Path) -> subprocess.CompletedProcess:
    """Run a command whose output goes into a pipe that nobody reads any more, as after `| head -1`."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        return subprocess.run([sys.executable, "-m", "sftbench", *words], stdout=writer, text=True,
                              stderr=subprocess.PIPE, cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)})
    finally:
        os.close(writer)


@pytest.mark.parametrize("words", ["methods", "modes", "rules", "stages", "--help", "run --help",
                                   "pocket write files"])
def test_a_command_whose_reader_is_gone_ends_quietly(words, tmp_path):
    done = run_unread(words.split(), tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_run_whose_reader_is_gone_is_completed_and_a_check_has_its_exit_code(small, tmp_path):
    done = run_unread(["run", "1", *arguments(small), "--out", str(tmp_path / "one")], tmp_path)
    assert done.returncode == 0 and "Traceback" not in done.stderr
    assert read_result(tmp_path / "one")["complete"] and (tmp_path / "one" / "loss.png").exists()
    done = run_unread(["show", str(tmp_path / "one"), "--json"], tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    (tmp_path / "bad.jsonl").write_text('{"x": 1}\n')
    done = run_unread(["check", str(tmp_path / "bad.jsonl"), "--model", small["model"]], tmp_path)
    assert done.returncode == 2 and done.stderr.startswith("sftbench: ") and "Traceback" not in done.stderr


def book(path: Path, *cells: str) -> Path:
    """A notebook of code cells, the first of them its parameters."""
    written = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    written.cells[0].metadata["tags"] = ["parameters"]
    written.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(written, path)
    return path


@pytest.mark.parametrize(("cell", "error", "words"), [
    ("import sys; sys.exit(0)", RunFailed, "without writing|did not finish|SystemExit"),
    ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", RunFailed, "did not finish"),
    ("import time; time.sleep(60)", RunFailed, "did not finish"),
    ("1 / 0", RunFailed, "ZeroDivisionError: division by zero"),
    ("print('nothing was trained')", RunFailed, "without writing"),
    ("import sftbench; sftbench.from_parameters({'learning_rat': 1.0})", BadInput,
     "did you mean 'learning_rate'"),
])
@pytest.mark.slow
def test_a_notebook_is_judged_by_its_result_alone(tmp_path, cell, error, words):
    path = book(tmp_path / "a.ipynb", 'output_dir: str = None', cell)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "result.json").write_text(json.dumps({"schema": 1, "complete": True}))
    os.utime(tmp_path / "out" / "result.json", (1e9, 1e9))  # an older run's result does not count
    with pytest.raises(error, match=words):
        execute_notebook(path, {}, tmp_path / "out", timeout=10)


@pytest.mark.slow
def test_plain_papermill_runs_a_mode_too(small, tmp_path):
    source = next((ROOT / "notebooks").glob("mode_2_*.ipynb"))
    command = [sys.executable, "-m", "papermill", str(source), str(tmp_path / "out.ipynb"),
               "--no-progress-bar", *arguments(small | {"method": "lora", "output_dir": tmp_path / "run"})]
    subprocess.run(command, check=True, capture_output=True, cwd=tmp_path)
    result = read_result(tmp_path / "run")
    assert [stage["method"] for stage in result["stages"]] == ["lora", "lora"]


@pytest.mark.parametrize(("words", "field"), [
    ("run 2 -p mode 3", "mode"), ("run 2 -p seed 1 -p seed 2", "seed"),
])
def test_a_value_that_is_given_twice_is_refused(words, field):
    with bad_input(field):
        parse_command(words.split())
    assert parse_command("run 2 -p mode 2 -p seed 1 -p seed 1".split())[1]["recipe"].seed == 1


def test_a_file_where_a_folder_belongs_is_refused_in_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a.txt").write_text("")
    for words in ("run 2 --out a.txt", "run 2 --out b -p output_dir c", "show a.txt", "stop a.txt",
                  "show a.txt --json", "resume a.txt", "compare a.txt", "export a.txt b",
                  "eval a.txt --tasks b",
                  "pocket write a.txt", "talk pocket --max-new-tokens -3"):
        assert main(words.split()) == 2, words
        assert len(capsys.readouterr().err.splitlines()) == 1, words


def test_tab_offers_the_public_names():
    import sftbench
    assert set(sftbench.__all__) <= set(dir(sftbench))
