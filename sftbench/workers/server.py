"""The worker process itself: it loads the libraries, answers requests, and becomes the run it is handed.

Requests are dicts that come through a pipe: `do` names a request (`ANSWERS`), `run` hands a recipe over, and
its folder's lock follows. Whatever comes while a request is being answered cuts the answer short, since then
no one waits for it: a run, the next request after a timeout, or the end of the client.
"""

import contextlib
import faulthandler
import fcntl
import os
import signal
import sys
import traceback
from dataclasses import asdict
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle
from pathlib import Path

from ..errors import BadInput
from ..named.models import NAMED
from ..pocket import FOLDERS
from ..recipes.modes import MODES
from ..recipes.recipe import ROLES, Recipe, override, recipe_from_dict, recipe_to_dict
from ..recipes.stages import stage_field
from ..runs.folder import mask_message, new_run_folder, store_folder
from ..runs.ownership import StopSignal, attach_lock, catch_stops, release_folder
from ..sources.names import SELF_REPLAY, locate_source, parse_source
from .client import LOG, receive_message, send_message

SMALL_MODEL = 5e6  # parameters up to which scoring it, or training it for a few steps, takes seconds
SOURCE_FIELDS = ("mode", "model", "chat_model", "system_prompts", *ROLES,
                 *(f"{role}_probe" for role in ROLES))
NOT_FILES = (*MODES, *(mode.name for mode in MODES.values()), *FOLDERS, *NAMED,
             SELF_REPLAY)
IDLE_SECONDS = 0.3  # without a request, after which the start model is scored ahead


class Dropped(BaseException):
    """The answer is no longer waited for, as after the start of a run."""


class Worker:
    """What the process works with: the pipe to its client, and the recipe that was prepared last."""

    def __init__(self, connection: Connection | None = None):
        self.connection, self.answering = connection, False
        self.prepared, self.prepared_key = None, None

    def serve(self) -> Recipe | None:
        """Answer requests until a run is handed over, and return its recipe; None if the client is gone."""
        signal.signal(signal.SIGIO, lambda number, frame: self._drop_if_unwanted())
        fcntl.fcntl(self.connection.fileno(), fcntl.F_SETOWN, os.getpid())  # SIGIO comes when a request does
        fcntl.fcntl(self.connection.fileno(), fcntl.F_SETFL, os.O_ASYNC)
        with contextlib.suppress(EOFError, OSError):
            while True:
                if not self.connection.poll(IDLE_SECONDS):
                    self.score_ahead()
                request = receive_message(self.connection)
                os.chdir(request["cwd"])
                if "run" in request:
                    attach_lock(request["run"]["output_dir"], recv_handle(self.connection))
                    return recipe_from_dict(request["run"])
                send_message(self.connection, {"number": request["number"], "answer": self._answer(request)})
        return None

    def _answer(self, request: dict) -> dict:
        """The answer to a request, or what is wrong with it."""
        try:
            try:
                self.answering = True
                self._drop_if_unwanted()  # for what arrived before this moment no signal comes
                if request.get("do") not in ANSWERS:
                    raise BadInput(f"do must be one of {', '.join(ANSWERS)}, not {request.get('do')!r}",
                                   field="do")
                return ANSWERS[request["do"]](self, request)
            finally:
                self.answering = False
        except (Exception, Dropped) as error:
            return {"error": {"kind": type(error).__name__, "message": str(error)}}

    def _drop_if_unwanted(self) -> None:
        if self.answering and self.connection.poll():  # SIGIO comes for room to write, too
            self.answering = False
            raise Dropped("its client no longer waits for it")

    def prepare(self, recipe: Recipe):
        """The prepared recipe, of an earlier request if that was the same and no file it names changed."""
        from ..training.prepare import prepare_recipe
        values = recipe_to_dict(recipe) | {"output_dir": None}
        files = [_file_stamps(values[name]) for name in SOURCE_FIELDS
                 if values[name] and values[name] not in NOT_FILES]
        if None in files or self.prepared_key != (values, files):
            self.prepared = prepare_recipe(recipe)
            self.prepared_key = values, files
        self.prepared.recipe = override(self.prepared.recipe, output_dir=recipe.output_dir)
        return self.prepared

    def score_ahead(self) -> None:
        """Score a small start model while the user still chooses, into the store where the run will look.

        Of the embedded model this halves the time from Start to the first loss.
        """
        if self.prepared and self.prepared.facts.parameters < SMALL_MODEL:
            recipe = self.prepared.recipe
            folder = new_run_folder(recipe.mode, recipe.method, recipe.output_dir)
            with contextlib.suppress(Exception):  # the run will report it
                state = self.prepared.start_state(store_folder(folder))
                self.prepared.probes.answer(state)
                if self.prepared.prompted:
                    self.prepared.prompted[0].answer(state)

    def look(self, request: dict) -> dict:
        """The resolved recipe, its chain, its data and their mask, and the forecast, as data and as text."""
        from ..reports.text import format_recipe, look_at_data
        ready = self.prepare(recipe_from_dict(request["recipe"]))
        page = look_at_data(ready, request.get("rows", 1))
        return {"recipe": recipe_to_dict(ready.recipe), "reasons": ready.reasons, "start": ready.start,
                "stages": [asdict(stage) for stage in ready.stages], "plan": ready.plan,
                "facts": ready.facts.to_dict(), "text": page, "markup": page.markup,
                "recipe_text": format_recipe(ready),
                **self.forecast(request, timed=ready.facts.parameters <= SMALL_MODEL)}

    def forecast(self, request: dict, timed: bool = True) -> dict:
        """Memory and time that the run would take, as data and as text; not `timed`: memory only."""
        from ..reports.ledger import format_forecast
        from ..training.forecast import forecast_recipe
        forecast = forecast_recipe(self.prepare(recipe_from_dict(request["recipe"])), timed)
        return {"forecast": forecast, "forecast_text": format_forecast(forecast)}

    def try_rates(self, request: dict) -> dict:
        """Range tests of the recipe's stages: the rate to take by recipe field, and where the curve is."""
        from ..calibration.range_test import measure_rates
        ready = self.prepare(recipe_from_dict(request["recipe"]))
        folder = new_run_folder("range_test", ready.recipe.method, None).absolute()
        tests = measure_rates(ready, folder)
        return {"rates": {stage_field("learning_rate", test.kind): test.chosen for test in tests},
                "folder": str(folder), "picture": str(folder / "rates.png")}

    def talk(self, request: dict) -> dict:
        """The same prompts to several checkpoints."""
        from ..evaluation.chat import talk
        return {"answers": talk(request["checkpoints"], request["prompts"], request["system"])}


ANSWERS = {"look": Worker.look, "forecast": Worker.forecast, "try_rates": Worker.try_rates,
           "talk": Worker.talk}


def _file_stamps(source: str) -> list | None:
    """Size and age of every file that a source names; None where these are unknown, as of a hub name."""
    try:
        paths = [locate_source(part.path, "") for part in parse_source(source, "")]
        if None in paths:
            return None
        files = [file for path in paths for file in (sorted(path.rglob("*")) if path.is_dir() else [path])]
        return [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    except (OSError, BadInput):
        return None


def _run(recipe: Recipe, worker: Worker) -> int:
    """Run the recipe with all output in the folder's log; what ends it early is left in its folder."""
    from ..reports.plots import save_plot
    from ..training.chain import run_chain
    folder = Path(recipe.output_dir)
    with open(folder / LOG, "ab") as log:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(log.fileno(), stream.fileno())
    try:
        StopSignal(folder).check()
        run_chain(worker.prepare(recipe), timed=False)
        save_plot(folder)
    except BaseException as error:
        stopped = isinstance(error, KeyboardInterrupt)
        if not stopped:
            traceback.print_exc()
        # where the chain had begun, its own message is in result.json and this record is gone
        release_folder(folder, {"state": "stopped" if stopped else "failed",
                                "message": mask_message(str(error))})
        return 130 if stopped else 2 if isinstance(error, BadInput) else 1
    return 0


def main() -> int:
    """Load the libraries, answer requests, run the recipe that is handed over; returns the exit code."""
    faulthandler.enable()
    with catch_stops(lambda number, frame: None):  # a stop while libraries load is seen by its flag
        from ..reports import text  # noqa: F401
        from ..training import chain  # noqa: F401
        with catch_stops():
            with Connection(int(sys.argv[1])) as connection:
                worker = Worker(connection)
                recipe = worker.serve()
            return _run(recipe, worker) if recipe else 0


if __name__ == "__main__":
    sys.exit(main())
