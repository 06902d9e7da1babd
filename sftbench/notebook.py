"""The strict way to run a notebook headless: papermill, with every doubt it lets pass turned into an error.

Names and types of parameters are checked before a kernel starts, and the run is judged by its `result.json`
alone.
"""

import logging
import time
from pathlib import Path

from .errors import BadInput, RunFailed
from .recipes.recipe import FIELDS, Recipe, override, suggest_name
from .runs.folder import read_result


def find_notebook(which: str) -> Path:
    """The notebook of a mode's number, or the path itself; raises BadInput where there is none."""
    if which.endswith(".ipynb"):
        if not Path(which).is_file():
            raise BadInput(f"{which}: no such notebook")
        return Path(which)
    folder = Path(__file__).resolve().parent.parent / "notebooks"
    found = sorted(folder.glob(f"mode_{which}_*.ipynb")) if which.isdigit() else []
    if len(found) != 1:
        raise BadInput(f"no notebook for mode {which!r} in {folder}; give 1 to 7, or the path of a notebook")
    return found[0]


def execute_notebook(notebook: Path, values: dict, out: Path, timeout: int | None = None) -> Path:
    """Run a notebook with these recipe values into the folder `out`; returns the executed notebook's path.

    `timeout` is in seconds per cell. Raises BadInput for unknown names and wrong types, before a kernel
    starts or as the notebook says it, and RunFailed unless the folder ends with a complete result of this
    very execution.
    """
    import papermill
    from papermill.exceptions import PapermillException
    if "{" in str(out) or "}" in str(out):
        raise BadInput(f"{out}: braces in the output path would be filled in by papermill; take another name")
    for name in values:
        if name not in FIELDS:
            raise BadInput(f"unknown parameter {name!r}{suggest_name(name, FIELDS)}")
    override(Recipe(), **values)
    # papermill warns of recipe fields that the cell does not list
    logging.getLogger("papermill").setLevel(logging.ERROR)
    out.mkdir(parents=True, exist_ok=True)
    began, executed = time.time(), out / "notebook.ipynb"
    try:
        papermill.execute_notebook(
            notebook, executed, parameters=values | {"output_dir": str(out)}, kernel_name="python3",
            progress_bar=False, log_output=False, execution_timeout=timeout,
            extra_arguments=["--IPKernelApp.log_level=40"])
    except papermill.PapermillExecutionError as error:
        kind = BadInput if error.ename == "BadInput" else RunFailed
        raise kind(f"{error.ename}: {error.evalue} (cell {error.exec_count} of {executed})") from None
    except (PapermillException, RuntimeError, TimeoutError) as error:
        raise RunFailed(f"{executed}: the notebook did not finish: "
                        f"{type(error).__name__}: {error}") from error
    result = out / "result.json"
    if not result.exists() or result.stat().st_mtime < began - 1:
        raise RunFailed(f"{executed}: the notebook ended without writing {result}; its run is not done")
    read_result(out)
    return executed
