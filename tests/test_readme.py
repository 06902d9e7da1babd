"""README tells the truth: every command in it runs, the tree is whole, the pictures are there and small."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from sftbench.cli import main
from sftbench.recipes.modes import MODES

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
COMMANDS = [line.split("  #")[0].strip() for block in re.findall(r"```sh\n(.*?)```", README, re.S)
            for line in block.strip().splitlines()]
SHORT = ["-p", "max_steps", "2", "-p", "probe_rows", "4"]


def test_there_are_commands_of_every_kind():
    assert {command.split()[0] for command in COMMANDS} == {"make", "sftbench", "python"}


@pytest.mark.slow
def test_the_sftbench_commands_run_in_their_order(tmp_path, monkeypatch, make_model, capsys):
    monkeypatch.chdir(tmp_path)
    for command in COMMANDS:
        words = shlex.split(command)
        if words[0] == "python":
            subprocess.run(["python", str(ROOT / words[1]), *words[2:]], check=True)
        if words[0] != "sftbench":
            continue
        if "Qwen/Qwen3-0.6B-Base" in words:  # no hub in the tests: models made from configurations stand in
            words = [{"Qwen/Qwen3-0.6B-Base": make_model(), "Qwen/Qwen3-0.6B": make_model("llama"),
                      "text.jsonl": "docs_data/domain_text.jsonl",
                      "tasks.jsonl": "docs_data/domain_tasks.jsonl"}.get(word, word) for word in words]
        trains = words[1] in ("run", "notebook")
        assert main(words[1:] + (SHORT if trains else [])) == 0, (command, capsys.readouterr().err)


@pytest.mark.parametrize("command", [command for command in COMMANDS if command.startswith("make")])
def test_the_make_commands_are_targets(command):
    target = command.split()[1]
    done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0
    assert {"demo": "notebook 2 --out runs/demo", "test": "pytest"}[target] in done.stdout


def test_the_tree_names_every_package():
    tree = README.split("## The tree")[1]
    packages = {path.parent.name for path in (ROOT / "sftbench").glob("*/__init__.py")}
    assert set(re.findall(r"^  (\w+)/ +\w", tree, re.M)) == packages


def test_the_table_has_every_mode_and_the_pictures_are_small():
    for number in MODES:
        assert re.search(rf"^\| {number} \| .* \| [01]\.\d\d", README, re.M)
    for picture in re.findall(r"!\[.*?\]\((.*?)\)", README):
        assert (ROOT / picture).stat().st_size < 250_000
