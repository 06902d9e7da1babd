"""What `make bench` compares trains the same, and its page says what was measured."""

import importlib
import json
import subprocess
import sys

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
    text = performance.page_text({
        "a training": {"ms_per_token": {"sftbench": [2, 1, 3]}, "ratio": {"loop": [1.5, 1, 2]},
                       "padding": 0.031, "busy": True},
        "import it": {"seconds": [0.25, 0.2, 0.3], "busy": False}})
    assert "| a training | 2 (1–3) | 1.5 (1–2) | – | – | – | – | 3.1% | (busy machine)" in text
    assert "| `import it` | 0.25 (0.2–0.3) | – | ≤ 0.2 |\n" in text


def test_a_busy_machine_is_not_measured(monkeypatch):
    monkeypatch.setattr(performance.psutil, "cpu_percent", lambda interval: 90.0)
    with pytest.raises(SystemExit, match="other programs use"):
        performance.check_quiet(busy=False)
    performance.check_quiet(busy=True)


def test_runs_made_for_the_comparison_are_found(tmp_path):
    performance.write_runs(tmp_path, 12)
    ran = performance.run_python(["-c", performance.COMPARE, str(tmp_path)])
    assert ran["runs"] == 12 and ran["seconds"] > 0
    assert performance.run_python(["-c", "raise SystemExit('no')"]) is None
