"""What `make bench` compares trains the same, and its page says what was measured."""

import importlib
import json
import subprocess
import sys
import time

import pytest

from tests.test_docs import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
performance = importlib.import_module("performance")


def train(who: str, method: str, steps: int) -> dict:
    words = [str(ROOT / "benchmarks" / "trainers.py"), who, "pocket", "-", method, str(steps)]
    ran = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, check=True)
    return json.loads(ran.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("method", ["full", "lora", "ptuning_v2"])
def test_the_raw_loop_trains_what_sftbench_trains(method):
    own, loop = train("sftbench", method, 4), train("loop", method, 4)
    assert own["losses"] == pytest.approx(loop["losses"], abs=1e-5) and own["tokens"] == loop["tokens"]
    assert len(own["seconds"]) == len(loop["seconds"]) == 4
    padding = 1 - sum(own["tokens"]) / sum(own["computed"])
    assert padding <= 0.05 or method == "ptuning_v2"


@pytest.mark.slow
def test_trl_alone_trains_rows_of_the_same_length():
    plain, packed = train("trl", "full", 4), train("trl-packed", "full", 4)
    assert len(plain["losses"]) == 4 and sum(packed["tokens"]) > 1.5 * sum(plain["tokens"])


def test_the_page_says_what_was_measured():
    here = {"machine": "a machine", "others": 0.03}
    measured = {
        "a training": here | {"ms_per_token": {"sftbench": [2, 1, 3]}, "ratio": {"loop": [1.5, 1, 2]},
                              "padding": 0.031, "gigabytes": {"sftbench": [1.234, 1, 2], "loop": [1, 1, 1]}},
        "import it": here | {"seconds": [0.25, 0.2, 0.3]},
        "a run": here | {"shares": {"steps": 9, "probe_rows": 40, "seconds": 200.0, "start": 30.0,
                                    "scores between stages": 30.0, "scores while it trains": 5.0,
                                    "forecast": 4.0, "picture and events": 1.0}}}
    text = performance.page_text(measured)
    assert "| a training | 2 (1–3) | 1.5 (1–2) | – | – | – | – | 3.1% | 1.23, – | 0.03 |" in text
    assert "| `import it` | 0.25 (0.2–0.3) | – | ≤ 0.2 | 0.03 |\n" in text
    assert "| scores between stages | 15.0% |" in text and "| forecast | 2.0% | ≤ 5% |" in text
    assert text.startswith("a machine. Median")
    elsewhere = performance.page_text(measured | {"import it": measured["import it"] | {"machine": "other"}})
    assert elsewhere.startswith("a machine (a training; a run). Median") and "other (import it)." in elsewhere


def test_a_busy_machine_is_not_measured(monkeypatch):
    monkeypatch.setattr(performance, "PATIENCE", 2)
    monkeypatch.setattr(performance.psutil, "cpu_percent", lambda interval: 90.0)
    with pytest.raises(SystemExit, match="other programs use"):
        performance.check_quiet(busy=False)
    performance.check_quiet(busy=True)


def test_the_cores_of_others_are_counted_and_ones_own_are_not():
    load = performance.UsedCores()
    performance.run_python(["-c", "import time, json; t = time.time()\nwhile time.time() < t + 2: pass\n"
                                  "print(json.dumps({}))"])
    alone = load.others()
    other = subprocess.Popen([sys.executable, "-c", "import time; t = time.time()\n"
                                                    "while time.time() < t + 2: pass"])
    load = performance.UsedCores()
    time.sleep(1.5)
    beside = load.others()
    other.wait()
    assert beside > alone


@pytest.mark.slow
def test_the_parts_of_a_run_are_timed(tmp_path):
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps({"question": f"What is {number}?", "answer": f"{number}."}) + "\n"
                            for number in range(60)))
    ran = performance.run_python([str(ROOT / "benchmarks" / "shares.py"), "pocket-chat", str(data), "24"])
    assert ran["steps"] == 24 and 0 < ran["scores while it trains"] < ran["seconds"] and ran["start"] > 0
    assert ran["forecast"] > 0 and ran["picture and events"] > 0 and ran["scores between stages"] > 0


def test_runs_made_for_the_comparison_are_found(tmp_path):
    performance.write_runs(tmp_path, 12)
    ran = performance.run_python(["-c", performance.COMPARE, str(tmp_path)])
    assert ran["runs"] == 12 and ran["seconds"] > 0
    assert performance.run_python(["-c", "raise SystemExit('no')"]) is None
