"""More than one process: as one with the doubled batch, in one folder, and no process left when one dies."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from sftbench.recipes.recipe import Recipe, override
from sftbench.runs.events import read_events
from sftbench.runs.folder import read_result
from sftbench.training.chain import run_chain
from tests.conftest import bad_input

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.slow


def launched(words: list[str], processes: int = 2) -> subprocess.Popen:
    """`sftbench WORDS` in so many processes of one thread each."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(processes),
               "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0",
               "-m", "sftbench", *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"})


@pytest.fixture
def values(make_model, small_files):
    """A recipe of two stages; every step has two blocks for two processes, and four for one."""
    return {"mode": "2", "model": make_model(), "probe_rows": 4, "max_length": 64, "learning_rate": 1e-3,
            "cpt_learning_rate": 1e-3, "warmup_ratio": 0.0, "cpt_warmup_ratio": 0.0, "max_steps": 4,
            "num_train_epochs": 9.0, "cpt_num_train_epochs": 9.0, **small_files}


def words_of(values: dict) -> list[str]:
    return [word for name, value in values.items() if name != "mode"
            for word in ("-p", name, str(value))]


def losses(folder) -> list[float]:
    return [event["loss"] for event in read_events(folder) if "loss" in event]


def test_two_processes_train_as_one_with_the_doubled_batch(values, tmp_path):
    batch = {"per_device_train_batch_size": 2, "cpt_per_device_train_batch_size": 2}
    two = launched(["run", "2", *words_of(values | batch), "--out", str(tmp_path / "two" / "run")])
    said, _ = two.communicate(timeout=300)
    assert two.returncode == 0, said
    doubled = {name: 2 * size for name, size in batch.items()}
    one = run_chain(override(Recipe(), **values | doubled, output_dir=str(tmp_path / "one" / "run")))
    assert losses(tmp_path / "two" / "run") == pytest.approx(losses(one), abs=1e-4)
    assert len(losses(one)) == 8
    assert [path.name for path in (tmp_path / "two").iterdir() if path.name[0] != "."] == ["run"]
    assert said.count("In the domain:") == 1, "each rank printed the ledger"
    result, alone = read_result(tmp_path / "two" / "run"), read_result(one)
    assert result["forecast"]["steps"] == alone["forecast"]["steps"]
    for stage, other in zip(result["stages"], alone["stages"], strict=True):
        assert stage["tokens"] == other["tokens"] and stage["key"] != other["key"]
        assert stage["probes"]["domain_tasks"]["loss"] == pytest.approx(
            other["probes"]["domain_tasks"]["loss"], abs=1e-3)


@pytest.mark.parametrize("victim", ["1", "0"])
def test_when_one_process_dies_all_end_and_the_run_is_not_done(values, tmp_path, victim):
    folder = tmp_path / "run"
    run = launched(["run", "2", *words_of(values | {"max_steps": 2000, "num_train_epochs": 900.0,
                                                    "cpt_num_train_epochs": 900.0}), "--out", str(folder)])
    try:
        until = time.monotonic() + 240
        while not losses(folder) and time.monotonic() < until and run.poll() is None:
            time.sleep(0.2)
        assert losses(folder), run.communicate(timeout=5)[0] if run.poll() is not None else "no step"
        ranks = [child for child in psutil.Process(run.pid).children(recursive=True)
                 if child.environ().get("RANK") == victim]
        everyone = psutil.Process(run.pid).children(recursive=True)
        ranks[0].send_signal(signal.SIGKILL)
        run.communicate(timeout=90)
        assert run.returncode != 0
        _, alive = psutil.wait_procs(everyone, timeout=10)
        assert not alive
        result = folder / "result.json"
        assert not result.exists() or json.loads(result.read_text())["complete"] is False
    finally:
        run.kill()


@pytest.mark.parametrize("method", ["full", "lora", "ptuning_v2"])
def test_what_is_gathered_from_shards_becomes_the_stage(values, tmp_path, monkeypatch, method):
    """No shards here, but the way from them: rank 0 fills a fresh model with the state that it gathered."""
    plain = {"mode": "1", "method": method, "seed": 3, "prefix_init": "random", "lora_dropout": 0.0}
    whole = run_chain(override(Recipe(), **values | plain, output_dir=str(tmp_path / "whole" / "run")))
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    gathered = run_chain(override(Recipe(), **values | plain, output_dir=str(tmp_path / "shards" / "run")))
    one, other = (read_result(folder)["stages"][-1] for folder in (whole, gathered))
    assert one["probes"] == other["probes"] and losses(whole) == losses(gathered)
    with bad_input("method", match="qlora"):
        run_chain(override(Recipe(), **values | plain | {"method": "qlora"}, output_dir=str(tmp_path / "no")))


def test_the_shipped_configuration_is_accelerates(monkeypatch):
    from accelerate.commands.config.config_args import load_config_from_file
    config = load_config_from_file(str(ROOT / "docs" / "fsdp_8_gpus.yaml"))
    assert config.num_processes == 8 and config.fsdp_config["fsdp_version"] == 2
    assert config.fsdp_config["fsdp_state_dict_type"] == "FULL_STATE_DICT"
