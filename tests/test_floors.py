"""The house's rules: imports go down only, modules stay small, no pyplot, no print, no raw HTML."""

import ast
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "sftbench"
FLOORS = [
    {"errors"},
    {"recipe", "runs", "pocket", "page", "ranks"},
    {"modes", "store", "table", "template", "process"},
    {"spell", "compare", "watch", "shapes", "workbench.parts"},
    {"sources", "checkpoints", "hyperparameters", "notebook", "plots", "terminal", "hubdata", "mixing"},
    {"advice", "formats", "models"},
    {"blocks", "methods", "live", "rows"},
    {"evaluate", "data"},
    {"encoded", "seen"},
    {"train", "ready", "yardstick"},
    {"folder", "footprint", "check", "states"},
    {"forecast"},
    {"chain"},
    {"views", "talk", "worker", "card"},
    {"service", "standard", "export", "workbench.values"},
    {"workbench.choose"},
    {"workbench.look", "workbench.train", "workbench.compare", "workbench.talk"},
    {"workbench"},
    {"__main__"},
]
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names}
HEAVY = {"torch", "transformers", "trl", "peft", "datasets", "accelerate",
         "matplotlib", "IPython", "papermill"}
LIGHT = {"errors", "recipe", "runs", "modes", "table", "hyperparameters", "advice", "notebook", "spell",
         "__main__", "process", "worker", "page", "shapes",
         "mixing", "terminal", "ranks", "sources"}
MODULES = [path for path in sorted([*PACKAGE.glob("*.py"), *PACKAGE.glob("workbench/*.py")])
           if path != PACKAGE / "__init__.py"]


def name_of(path: Path) -> str:
    """A module's name in the package: `train`, `workbench` or `workbench.train`."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


each_module = pytest.mark.parametrize("path", MODULES, ids=name_of)


def imports(path: Path) -> tuple[set[str], set[str]]:
    """The modules of this package that a file imports anywhere, and what its top imports from outside."""
    tree = ast.parse(path.read_text())
    inside, outside = set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            home = "workbench." if path.parent != PACKAGE and node.level == 1 else ""
            names = [node.module.split(".")[0]] if node.module else [alias.name for alias in node.names]
            inside |= {home + name for name in names}
    for node in tree.body:
        if isinstance(node, ast.Import):
            outside |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            outside.add(node.module.split(".")[0])
    return inside - {"__version__"}, outside


@each_module
def test_a_module_imports_only_from_floors_below(path):
    name, (inside, outside) = name_of(path), imports(path)
    assert name in FLOOR, "give the new module a floor"
    assert {other for other in inside if FLOOR[other] >= FLOOR[name]} == set()
    if name in LIGHT:
        assert not outside & HEAVY, "this module must stay light"
    if name in {"train", "chain", "evaluate"}:
        assert not outside & {"matplotlib", "IPython", "ipywidgets"}


@pytest.mark.parametrize("path", [*MODULES, *(PACKAGE / "pocket").glob("*.py")], ids=name_of)
def test_modules_and_functions_are_small_and_documented(path):
    text = path.read_text()
    tree = ast.parse(text)
    assert len(text.splitlines()) <= 350 and ast.get_docstring(tree)
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 50, f"{node.name} is long"
            public = not node.name.startswith("_") and node.name not in ("on_log", "on_step_end", "on_save")
            nested = any(isinstance(other, ast.FunctionDef) and node in ast.walk(other) and other is not node
                         for other in ast.walk(tree))
            assert not public or nested or ast.get_docstring(node), f"{node.name} has no docstring"


@each_module
def test_nothing_that_the_house_bans(path):
    text = path.read_text()
    assert "pyplot" not in text.replace("No pyplot", "")
    markup = re.findall(r"\bHTML\(.*", text)
    # a constant, and an empty place for what `page.escape` made
    allowed = ['HTML(value=STYLE, layout={"display": "none"})', "HTML()"]
    assert markup == (allowed if name_of(path) == "workbench.parts" else [])
    assert "trust_remote_code=True" not in text and "pickle" not in text


def test_every_public_name_resolves():
    import sftbench
    for name in sftbench.__all__:
        assert getattr(sftbench, name) is not None
    with pytest.raises(AttributeError):
        sftbench.nothing  # noqa: B018
