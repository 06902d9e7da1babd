"""Notebooks headless through papermill, strictly: what papermill only warns of is an error here.

Names and types of parameters are checked before a kernel starts; a run is judged by its `result.json` alone.
"""

import logging
import time
from pathlib import Path

from .errors import BadInput, RunFailed, Stopped
from .recipes.recipe import Recipe, override
from .runs.folder import read_result
from .runs.ownership import FLAG, catch_stops, live_owner


def find_notebook(which: str) -> Path:
    """The notebook of a mode's number, or the path itself; raises BadInput where there is none."""
    if which.endswith(".ipynb"):
        if not Path(which).is_file():
            raise BadInput(f"{which}: no such notebook", field="which", where=which)
        return Path(which)
    folder = Path(__file__).resolve().parent.parent / "notebooks"
    paths = sorted(folder.glob(f"mode_{which}_*.ipynb")) if which.isdigit() else []
    if len(paths) != 1:
        raise BadInput(f"no notebook for mode {which!r} in {folder}; give 1 to 7, or the path of a notebook",
                       field="which", where=str(folder))
    return paths[0]


def execute_notebook(notebook: Path, values: dict, out: Path, timeout: int | None = None) -> Path:
    """Run a notebook with these recipe values into the folder `out`; returns the executed notebook's path.

    `timeout` is in seconds per cell. Raises BadInput for unknown names and wrong types, before a kernel
    starts or from within the notebook, and RunFailed unless this execution leaves a complete result in `out`.
    """
    if "{" in str(out) or "}" in str(out):
        raise BadInput(f"{out}: papermill would fill in the braces of this path; choose another name",
                       field="out", where=str(out))
    override(Recipe(), **values)
    out.mkdir(parents=True, exist_ok=True)
    started, executed, result = time.time(), out / "notebook.ipynb", out / "result.json"
    with catch_stops(lambda number, frame: _pass_stop_on(out)):
        _execute(notebook, executed, values | {"output_dir": str(out)}, timeout)
    # an older run's result does not count; some file systems round times to a second
    if not result.exists() or result.stat().st_mtime < started - 1:
        raise RunFailed(f"{executed}: the notebook ended without writing {result}; its run is not done")
    read_result(out)
    return executed


def _pass_stop_on(folder: Path) -> None:
    """Stop the run in the notebook's kernel after its step; Ctrl-C and SIGTERM are nbclient's own (0.11)."""
    if live_owner(folder) is None:
        raise Stopped("stopped")
    (folder / FLAG).touch()


def _execute(notebook: Path, executed: Path, values: dict, timeout: int | None) -> None:
    import papermill
    from papermill.exceptions import PapermillException
    # papermill warns of recipe fields that the cell does not list
    logging.getLogger("papermill").setLevel(logging.ERROR)
    try:
        papermill.execute_notebook(
            notebook, executed, parameters=values, kernel_name="python3", execution_timeout=timeout,
            progress_bar=False, log_output=False,
            extra_arguments=["--IPKernelApp.log_level=40"])  # 40: errors only
    except papermill.PapermillExecutionError as error:
        cell = f"cell {error.exec_count} of {executed}"
        text = f"{error.ename}: {error.evalue} ({cell})"
        kinds = {"BadInput": BadInput(text, where=cell), "Stopped": Stopped(
            f"{error.evalue}; go on with: sftbench resume {executed.parent}")}
        raise kinds.get(error.ename, RunFailed(text)) from None
    except (PapermillException, RuntimeError, TimeoutError) as error:
        raise RunFailed(f"{executed}: the notebook did not finish: "
                        f"{type(error).__name__}: {error}") from error
