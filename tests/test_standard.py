"""Standard benchmarks through lm-eval, on a task file and data of our own; nothing is fetched."""

import http.server
import json
import sys
import threading
import time

import datasets
import pytest
from huggingface_hub import constants

from sftbench.cli import main
from sftbench.data.tokenization import EncodedRow
from sftbench.errors import BadInput
from sftbench.evaluation.benchmarks import run_benchmarks
from sftbench.evaluation.probes import row_nats
from sftbench.evaluation.yardstick import yardstick_rows
from sftbench.models.checkpoint import load_stage
from sftbench.recipes.recipe import Recipe, override
from sftbench.reports.text import format_scores
from sftbench.runs.folder import read_json
from sftbench.sources.origins import offline_without_network
from sftbench.training.chain import run_chain
from tests.conftest import run_failed

TASK = """task: everyday
dataset_path: json
dataset_kwargs:
  data_files:
    test: {rows}
output_type: multiple_choice
test_split: test
doc_to_text: "Question: {{{{question}}}}\\nAnswer:"
doc_to_choice: "{{{{options}}}}"
doc_to_target: answer
metric_list:
  - metric: acc
"""


@pytest.fixture(scope="module")
def run(make_model, tmp_path_factory):
    """A finished run of one stage, and a task file beside it."""
    from tests.conftest import small_rows
    folder = tmp_path_factory.mktemp("standard")
    (folder / "tasks.jsonl").write_text("".join(
        json.dumps(row) + "\n" for row in small_rows("domain_tasks")))
    return run_chain(override(
        Recipe(), mode="1", model=make_model(), max_steps=4, probe_rows=4, yardstick=False,
        learning_rate=1e-2, domain_tasks=str(folder / "tasks.jsonl"), output_dir=str(folder / "run")))


@pytest.fixture
def task(tmp_path):
    """A task file over the yardstick's English questions."""
    rows = [row for row in yardstick_rows("questions") if row["language"] == "en"][:40]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "everyday.yaml").write_text(TASK.format(rows=tmp_path / "rows.jsonl"))
    return str(tmp_path / "everyday.yaml"), rows


def accuracy(model, tokenizer, rows) -> float:
    """The share of questions whose right option has the highest log-likelihood, computed row by row."""
    hits = 0
    for row in rows:
        prompt = tokenizer(f"Question: {row['question']}\nAnswer:")["input_ids"]
        costs = []
        for option in row["options"]:
            ids = tokenizer(" " + option)["input_ids"]
            costs += row_nats(model, [EncodedRow(prompt + ids, [-100] * len(prompt) + ids)], 0)
        hits += costs.index(min(costs)) == row["answer"]
    return hits / len(rows)


@pytest.mark.slow
def test_a_task_file_scores_start_and_last_stage_as_computed_by_hand(run, task, capsys):
    path, rows = task
    assert main(["eval", str(run), "--tasks", path]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["benchmark", "start", "domain_sft"] and lines[2].split()[0] == "everyday"
    scores = read_json(run, "standard.json")["scores"]
    model, tokenizer = load_stage(run)
    assert scores["domain_sft"]["everyday"]["acc,none"] == pytest.approx(accuracy(model, tokenizer, rows))
    assert set(scores) == {"start", "domain_sft"}
    run_benchmarks(run, [path], ["start"], limit=5)
    again = read_json(run, "standard.json")["scores"]
    assert again["start"]["everyday"]["limit"] == 5 and again["domain_sft"] == scores["domain_sft"]
    for name in ("nonsense", "nowhere.yaml"):
        with pytest.raises(BadInput, match=name) as error:
            run_benchmarks(run, [path, name])
        assert error.value.field == "tasks"


def test_without_lm_eval_the_remedy_is_named(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval.config.evaluate_config", None)
    with pytest.raises(BadInput, match=r"pip install -c requirements.lock -e '\.\[eval,track\]'"):
        run_benchmarks(run, ["hellaswag"])


def test_scores_stand_side_by_side():
    text = format_scores({"start": {"a": {"acc,none": 0.5}}, "domain_sft": {"a": {"acc,none": 0.25}}})
    assert text.splitlines()[0].split() == ["benchmark", "start", "domain_sft"]
    assert text.splitlines()[2].split() == ["a", "acc", "0.500", "0.250"]


@pytest.mark.parametrize("answers", [True, False])
def test_without_a_hub_only_the_cache_is_read_and_at_once(answers, monkeypatch):
    server = http.server.HTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler)
    if answers:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    began = time.monotonic()
    with offline_without_network():
        assert constants.HF_HUB_OFFLINE == datasets.config.HF_HUB_OFFLINE != answers
        if not answers:
            with pytest.raises(ConnectionError):
                datasets.load_dataset("owner/nothing-of-this-name")
    assert time.monotonic() - began < 10
    assert not constants.HF_HUB_OFFLINE and not datasets.config.HF_HUB_OFFLINE
    if answers:
        server.shutdown()
    server.server_close()


@pytest.mark.slow
def test_data_that_cannot_be_fetched_end_with_the_command_that_fetches_them(run, tmp_path):
    path = tmp_path / "far.yaml"
    path.write_text(TASK.format(rows="x").replace("json", "owner/far-away", 1).replace(
        "dataset_kwargs:\n  data_files:\n    test: x\n", ""))
    with run_failed("", match=r"datasets.load_dataset\('owner/far-away'\)"):
        run_benchmarks(run, [str(path)], limit=1)
