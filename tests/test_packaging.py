"""The files that say what is installed agree with each other and with the environment the tests run in."""

import ast
import os
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
RUNTIME = [Requirement(text) for text in PROJECT["dependencies"]]
EXTRAS = {name: [Requirement(text) for text in texts]
          for name, texts in PROJECT["optional-dependencies"].items()}
OPTIONAL = EXTRAS["eval"] + EXTRAS["track"] + EXTRAS["documents"] + EXTRAS["real"]
DIRECT = RUNTIME + EXTRAS["test"] + OPTIONAL
# A CUDA build of torch requires these at exact versions of its own, so the lock does not repeat them.
AS_ROOT = "" if os.getuid() else " --allow-root"
PINNED_BY_TORCH = ("nvidia-", "cuda-", "triton")


def read_lock() -> dict[str, Version]:
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    pins = [line.split("==") for line in lines if line and not line.startswith("#")]
    assert all(len(pin) == 2 for pin in pins), [pin for pin in pins if len(pin) != 2]
    names = [canonicalize_name(name) for name, _ in pins]
    assert len(names) == len(set(names)), "a package has two lines"
    return dict(zip(names, (Version(version) for _, version in pins), strict=True))


def conda_file(name: str) -> tuple[list[str], list[str]]:
    """The conda packages and the pip lines of an environment file."""
    entries = yaml.safe_load((ROOT / name).read_text())["dependencies"]
    pip_lines = [line for entry in entries if isinstance(entry, dict) for line in entry["pip"]]
    return [entry for entry in entries if isinstance(entry, str)], pip_lines


def closure(direct: list[Requirement]) -> set[str]:
    """All packages that the direct ones need on this machine, by the metadata of what is installed."""
    names, seen, todo = set(), set(), list(direct)
    while todo:
        requirement = todo.pop()
        name = canonicalize_name(requirement.name)
        if (name, frozenset(requirement.extras)) in seen or name.startswith(PINNED_BY_TORCH):
            continue
        seen.add((name, frozenset(requirement.extras)))
        names.add(name)
        for text in metadata.requires(name) or []:
            child = Requirement(text)
            if child.marker is None or any(
                child.marker.evaluate({"extra": extra}) for extra in {"", *requirement.extras}
            ):
                todo.append(child)
    return names


def test_every_requirement_of_the_project_is_in_the_lock():
    lock = read_lock()
    for requirement in DIRECT:
        assert lock[canonicalize_name(requirement.name)] in requirement.specifier, requirement


def test_requirements_are_exact_but_for_the_server_whose_floor_is_an_advisory():
    loose = [r.name for r in DIRECT if [s.operator for s in r.specifier] != ["=="]]
    assert loose == ["jupyter_server"]


def test_lock_names_versions_only():
    text = (ROOT / "requirements.lock").read_text()
    assert not [line for line in text.splitlines() if not line.startswith("#") and set("+@/ ") & set(line)]
    assert not [name for name in ("sftbench", "pip") if name in read_lock()]


def test_lock_holds_all_that_is_needed_at_the_installed_version():
    lock = read_lock()
    wrong = {}
    for name in sorted(closure(DIRECT)):
        installed = Version(metadata.version(name)).public
        if str(lock.get(name)) != installed:
            wrong[name] = (str(lock.get(name)), installed)
    assert not wrong, f"package: (lock, installed) {wrong}"


def test_environment_installs_this_package_with_its_extras_under_the_lock():
    packages, pip_lines = conda_file("environment.yml")
    assert pip_lines == ["-c requirements.lock", "-e .[test,eval,track,documents,real]"]
    pythons = [package for package in packages if package.startswith("python=")]
    assert len(pythons) == 1
    assert pythons[0].split("=")[1] + ".0" in SpecifierSet(PROJECT["requires-python"])


def test_binder_gets_the_same_torch_without_cuda():
    packages, pip_lines = conda_file(".binder/environment.yml")
    assert packages == conda_file("environment.yml")[0]
    torch = [line for line in pip_lines if line.startswith("torch")]
    assert torch == [f"torch=={read_lock()['torch']}+cpu"]
    assert [line for line in pip_lines if line.startswith("--")] == [
        "--extra-index-url https://download.pytorch.org/whl/cpu"
    ]
    folder = ROOT / ".binder"
    assert (folder / "../requirements.lock").samefile(ROOT / "requirements.lock")
    assert {"-c ../requirements.lock", "-e .."} < set(pip_lines)


@pytest.mark.parametrize(
    ("files", "requirements"),
    [("sftbench/**/*.py", RUNTIME + OPTIONAL), ("tests/*.py", DIRECT)],
    ids=["package", "tests"],
)
def test_every_imported_package_is_a_requirement(files, requirements):
    distributions = metadata.packages_distributions()
    direct = {canonicalize_name(requirement.name) for requirement in requirements}
    known = {"sftbench", "tests", *sys.stdlib_module_names, *(path.stem for path in ROOT.glob("tests/*.py"))}
    strangers = {}
    for path in ROOT.glob(files):
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module]
            for top in {name.split(".")[0] for name in names} - known:
                if not direct & {canonicalize_name(name) for name in distributions.get(top, [top])}:
                    strangers.setdefault(top, str(path.relative_to(ROOT)))
    assert not strangers, f"imported, but not in pyproject.toml: {strangers}"


def test_every_data_file_of_the_package_is_in_its_wheel():
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    packed = {path for package, patterns in config.items() for pattern in patterns
              for path in ROOT.joinpath(*package.split(".")).glob(pattern)}
    files = {path for path in (ROOT / "sftbench").rglob("*") if path.is_file()}
    assert {path for path in files if path.suffix not in (".py", ".pyc")} <= packed


def test_git_ignores_what_a_run_and_an_installation_leave():
    lines = (ROOT / ".gitignore").read_text().splitlines()
    assert {".venv/", "/runs/", "/notebooks/runs/", "__pycache__/", "*.egg-info/",
            ".ipynb_checkpoints/"} <= set(lines)


@pytest.mark.skipif(not shutil.which("make"), reason="make is not installed")
@pytest.mark.parametrize(
    ("target", "command"),
    [
        ("demo", "-m sftbench notebook 2 --out runs/demo"),
        ("test", "-m pytest -n logical --maxprocesses 4 --dist loadgroup"),
        ("quick", '-m pytest -m "not slow and not browser"'),
        ("lab", "-m jupyterlab --notebook-dir=. --LabApp.default_url=/lab/tree/notebooks" + AS_ROOT),
        ("lint", "-m ruff check ."),
    ],
)
def test_make_runs_the_right_command_after_the_installation(target, command):
    lines = dry_make(target).splitlines()
    assert lines[-1].strip().endswith(f'".venv/bin/python" {command}')
    installation = "\n".join(lines[:-1])
    extras = "" if target in ("demo", "lab") else "[test,eval,track,documents,real]"
    torch, package = f'"torch=={read_lock()["torch"]}"', f"-c requirements.lock -e '.{extras}'"
    assert torch in installation and package in installation
    assert installation.index(torch) < installation.index(package)


@pytest.mark.skipif(not shutil.which("make"), reason="make is not installed")
def test_make_uses_the_active_environment_but_not_condas_base(tmp_path):
    assert f'"{tmp_path}/bin/python" -m pytest' in dry_make("test", VIRTUAL_ENV=str(tmp_path))
    assert f'"{tmp_path}/bin/python" -m pytest' in dry_make("test", CONDA_PREFIX=str(tmp_path))
    (tmp_path / "condabin").mkdir()
    assert '".venv/bin/python" -m pytest' in dry_make("test", CONDA_PREFIX=str(tmp_path))


@pytest.mark.skipif(not shutil.which("make"), reason="make is not installed")
def test_make_help_lists_targets_that_exist():
    listed = [line.split()[1] for line in dry_make("help", dry=False).splitlines()]
    assert {"demo", "test", "lab", "lint"} <= set(listed)
    for target in listed:
        dry_make(target)


def dry_make(target: str, dry: bool = True, **variables: str) -> str:
    """What make would do for a target, from a shell with these variables and no environment active."""
    hidden = ("VIRTUAL_ENV", "CONDA_", "MAKE", "MFLAGS", "ARGS", "PYTHON")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(hidden)}
    command = ["make", "--no-print-directory", *(["-n"] if dry else []), target]
    return subprocess.run(
        command, cwd=ROOT, env=environment | variables, check=True, capture_output=True, text=True
    ).stdout
