"""Output never fails: whatever its encoding, closed, full, unread; and what a system without fcntl hears."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sftbench.options import print_json
from sftbench.runs.events import append_event, read_events
from sftbench.runs.folder import read_json, write_json

ROOT = Path(__file__).parent.parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
# the last as on a system whose locale is no UTF-8 one, also for the names of files and their content
PLACES = {"cp1252": {"PYTHONIOENCODING": "cp1252"}, "ascii": {"PYTHONIOENCODING": "ascii"},
          "latin": {"PYTHONIOENCODING": "latin-1:strict"},
          "C": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}}
each_place = pytest.mark.parametrize("place", PLACES)


def sftbench(command: str, redirected: str = "", **environment: str) -> subprocess.CompletedProcess:
    """The command line as a shell starts it, with `redirected` output."""
    return subprocess.run(f"{sys.executable} -m sftbench {command} {redirected}", shell=True,
                          capture_output=True, env=ENVIRONMENT | environment, cwd=ROOT)


@pytest.fixture
def run(tmp_path):
    """A stopped run whose words need more than ASCII."""
    words = "Tee ☕ 茶 — 😀 é"
    write_json(tmp_path / "recipe.json", {"schema": 1, "recipe": {"domain_tasks": words}})
    append_event(tmp_path, {"stage": "start", "step": 0, "plan": {"cpt": 30}})
    append_event(tmp_path, {"stage": "cpt", "step": 9, "loss": 1.0, "state": "failed", "message": words})
    write_json(tmp_path / "result.json", {"schema": 1, "complete": False, "state": "failed",
                                          "message": words})
    return tmp_path


@each_place
def test_text_that_the_output_cannot_encode_becomes_escapes(run, place):
    shown = sftbench(f"show {run}", **PLACES[place])
    assert shown.returncode == 0 and not shown.stderr
    assert b"\\u2615" in shown.stdout and b"\\U0001f600" in shown.stdout
    refused = sftbench(f"show {run}/☕", **PLACES[place])
    assert refused.returncode == 2 and refused.stderr.startswith(b"sftbench: ")
    assert b"Traceback" not in refused.stderr


@each_place
def test_json_is_the_same_data_in_every_encoding(run, place):
    shown = json.loads(sftbench(f"show {run} --json", **PLACES[place]).stdout.decode("ascii"))
    assert shown["message"] == shown["result"]["message"] == "Tee ☕ 茶 — 😀 é"


def test_half_a_character_is_written_and_read_back(tmp_path, capfd):
    event = {"stage": "cpt", "step": 1, "message": "path \udce4 \ud83d"}
    append_event(tmp_path, event)
    write_json(tmp_path / "result.json", {"schema": 1, "message": event["message"]})
    assert read_events(tmp_path)[0]["message"] == event["message"]
    assert read_json(tmp_path, "result.json")["message"] == event["message"]


@pytest.mark.slow
@each_place
def test_a_run_and_every_report_of_it_work_in_any_encoding(place, make_model, small_files, tmp_path):
    for path in small_files.values():
        text = Path(path).read_text(encoding="utf-8").replace("Oslo", "Óslo 茶 😀")
        Path(path).write_text(text, encoding="utf-8")
    recipe = [word for name, value in {"model": make_model(), "max_steps": 2, "probe_rows": 4,
                                       "save_steps": 1, **small_files}.items()
              for word in ("-p", name, str(value))]
    out = str(tmp_path / "run")
    commands = [["check", small_files["domain_tasks"], "--model", make_model()], ["look", "1", *recipe],
                ["check", small_files["domain_tasks"], "--model", make_model(), "--json"],
                ["run", "1", *recipe, "--out", out], ["show", out], ["show", out, "--json"],
                ["talk", out, "--prompt", "茶?"], ["export", out, str(tmp_path / "exported")]]
    code = ("import json, sys; from sftbench.cli import main\nfor words in json.loads(sys.argv[1]):\n"
            "    assert main(words) == 0, words\n    print('=====', flush=True)")
    done = subprocess.run([sys.executable, "-c", code, json.dumps(commands)], capture_output=True,
                          env=ENVIRONMENT | PLACES[place], cwd=tmp_path)
    assert done.returncode == 0 and b"Traceback" not in done.stderr, done.stderr.decode()
    printed = done.stdout.split(b"=====\n")
    assert json.loads(printed[2].decode("ascii"))["rows"] == 40
    assert json.loads(printed[5].decode("ascii"))["state"] == "done"
    assert b"\\u8336" in printed[6]


@pytest.mark.parametrize(("redirected", "code", "said"), [
    (">/dev/full", 1, "sftbench: standard output cannot be written (No space left on device)\n"),
    (">&-", 0, ""), (">&- 2>&-", 0, ""), ("2>/dev/full", 0, ""), ("<&-", 0, ""), ("<&- >&- 2>&-", 0, "")])
@pytest.mark.parametrize("command", ["methods", "modes --help"])
def test_output_that_is_closed_or_full_ends_in_no_traceback(command, redirected, code, said):
    done = sftbench(command, redirected)
    assert (done.returncode, done.stderr.decode()) == (code, said)


@pytest.mark.parametrize("redirected", [">&-", ">/dev/full", "2>&-", "<&- >&- 2>&-"])
def test_bad_input_keeps_its_exit_code_where_output_is_closed_or_full(redirected):
    done = sftbench("show nowhere", redirected)
    assert done.returncode == 2 and b"Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("redirected", [">/dev/full", ">&- 2>&-"])
def test_a_run_whose_output_is_lost_is_completed(redirected, make_model, small_files, tmp_path):
    recipe = " ".join(f"-p {name} {value}" for name, value in {
        "model": make_model(), "max_steps": 2, "probe_rows": 4, **small_files}.items())
    done = sftbench(f"run 1 {recipe} --out {tmp_path / 'run'}", redirected)
    assert done.returncode == 0 and read_json(tmp_path / "run", "result.json")["complete"]
    events = (tmp_path / "run" / "events.jsonl").read_text(encoding="utf-8")
    assert all(line.startswith("{") for line in events.splitlines()), "output went into a file of the run"


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_json_has_readable_characters_only_where_output_has_them(encoding, monkeypatch):
    import io
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding))
    print_json({"a": "茶"})
    assert raw.getvalue().decode().split('"')[3] == {"utf-8": "茶", "ascii": "\\u8336"}[encoding]


@pytest.mark.parametrize("module", ["fcntl", "resource"])
@pytest.mark.parametrize("way", ["import", "script", "-m"])
def test_where_a_module_of_unix_lacks_one_sentence_says_what_to_do(module, way, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(f"import sys; sys.modules[{module!r}] = None")
    (tmp_path / "sftbench").write_text("import sys; from sftbench.cli import main; sys.exit(main())")
    command = {"import": ["-c", "import sftbench"], "-m": ["-m", "sftbench", "methods"],
               "script": [str(tmp_path / "sftbench"), "methods"]}[way]
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True,
                          env=ENVIRONMENT | {"PYTHONPATH": f"{tmp_path}:{ROOT}"}, cwd=ROOT)
    lines = done.stderr.splitlines()
    assert module in lines[-1] and "WSL 2" in lines[-1] and "wsl --install" in lines[-1]
    if way == "import":
        assert lines[-1].startswith("ImportError: ") and done.returncode == 1
    else:
        assert len(lines) == 1 and lines[0].startswith("sftbench: ") and done.returncode == 2
