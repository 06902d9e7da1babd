"""The house's rules: imports go down only, modules and functions stay small, no pyplot, no raw HTML."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "sftbench"
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py")
# What a user waits for at a prompt: importing these loads no heavy library.
LIGHT = ("sftbench", "sftbench.cli", "sftbench.notebook", "sftbench.workers.client", "sftbench.sources.names",
         "sftbench.recipes.rules", "sftbench.recipes.serialize", "sftbench.runs.checkpoints",
         "sftbench.runs.stage_store")
HEAVY = ("torch", "transformers", "trl", "peft", "datasets", "accelerate", "matplotlib", "IPython",
         "papermill")


def name_of(path: Path) -> str:
    """A module's name in the package, such as `training.chain`."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


each_module = pytest.mark.parametrize("path", MODULES, ids=name_of)


def test_imports_go_down_only():
    linter = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([linter], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert "1 kept, 0 broken" in done.stdout


@pytest.mark.parametrize("module", LIGHT)
def test_what_a_prompt_waits_for_loads_no_heavy_library(module):
    code = f"import sys, {module}; print(*[name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


@each_module
def test_modules_and_functions_are_small_and_documented(path):
    text = path.read_text()
    tree = ast.parse(text)
    assert len(text.splitlines()) <= 300 and ast.get_docstring(tree)
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 40, f"{node.name} is long"
            public = not node.name.startswith("_") and not node.name.startswith("on_")
            nested = any(isinstance(other, ast.FunctionDef) and node in ast.walk(other) and other is not node
                         for other in ast.walk(tree))
            assert not public or nested or ast.get_docstring(node), f"{node.name} has no docstring"


def test_no_folder_holds_more_than_a_reader_keeps_in_mind():
    for folder in {path.parent for path in MODULES}:
        assert len([path for path in MODULES if path.parent == folder]) <= 9, folder
        assert ast.get_docstring(ast.parse((folder / "__init__.py").read_text())), f"{folder} has no charter"


@each_module
def test_nothing_that_the_house_bans(path):
    text = path.read_text()
    assert "pyplot" not in text.replace("No pyplot", "")
    markup = re.findall(r"\bHTML\(.*", text)
    # a constant, and an empty area for what `html.escape_html` returned
    allowed = ['HTML(value=STYLE, layout={"display": "none"})', "HTML()"]
    assert markup == (allowed if name_of(path) == "workbench.widgets" else [])
    assert "trust_remote_code=True" not in text and "pickle" not in text


@each_module
def test_text_files_are_utf_8_whatever_the_locale(path):
    for call in [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]:
        name, words = ast.unparse(call.func), ast.unparse([*call.args, *call.keywords])
        mode = re.search(r"'(?:[rwax]\+?[bt]?|[rwax][bt]?\+?)'", words)
        is_text = mode is None or "b" not in mode[0]
        opens = name.endswith((".read_text", ".write_text")) or is_text and name in (
            "open", "os.fdopen", "path.open", "io.TextIOWrapper") or (
            mode and is_text and name.endswith(("TemporaryFile", "gzip.open", "bz2.open", "lzma.open")))
        assert not opens or re.search(r"encoding|'utf-8'", words), ast.unparse(call)


def test_every_public_name_resolves():
    import sftbench
    for name in sftbench.__all__:
        assert getattr(sftbench, name) is not None
    with pytest.raises(AttributeError):
        sftbench.nothing  # noqa: B018
