"""A run on text and questions that nobody here wrote, given as files."""

import pytest

from sftbench.cli import main
from sftbench.runs.folder import read_result
from tests import stdlib_docs


@pytest.mark.slow
def test_the_standard_librarys_docstrings_are_learnt(tmp_path, capsys):
    counts = stdlib_docs.write(tmp_path)
    assert min(counts.values()) > 300
    assert main(["run", "2", "-p", "domain_text", str(tmp_path / "domain_text.jsonl"),
                 "-p", "domain_tasks", str(tmp_path / "domain_tasks.jsonl"), "-p", "max_steps", "80",
                 "-p", "probe_rows", "60", "--out", str(tmp_path / "run")]) == 0
    result = read_result(tmp_path / "run")
    start, end = result["start"]["probes"], result["stages"][-1]["probes"]
    for role in ("domain_text", "domain_tasks"):
        assert end[role]["loss"] < 0.7 * start[role]["loss"]
    assert "general_text" in end  # the pocket's general side stands beside it and shows what was forgotten
