"""The worker process itself: it loads the libraries, answers requests, and becomes the run it is handed.

Requests are dicts that come through a pipe: `do` names a question (`ANSWERS`), `run` hands a recipe over, and
its folder's lock follows. Whatever comes while a question is being answered cuts the answer short, since then
no one waits for it: a run, the next question after a timeout, or the end of who asked.
"""

import contextlib
import faulthandler
import fcntl
import json
import os
import signal
import sys
import threading
import traceback
from dataclasses import asdict
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle
from pathlib import Path

from ..data.sources import locate_source, parse_source
from ..errors import BadInput, Stopped
from ..pocket import FOLDERS
from ..recipes.modes import MODES
from ..recipes.recipe import ROLES, Recipe, override, recipe_from_dict, recipe_to_dict
from ..runs.folder import mask_message, new_run_folder, store_folder
from ..runs.ownership import attach_lock, release_folder
from .client import LOG, receive_message, send_message

SMALL_MODEL = 5e6  # parameters: its scores are taken ahead, in seconds
PLACES = ("mode", "model", "chat_model", "system_prompts", *ROLES, *(f"{role}_probe" for role in ROLES))
NOT_FILES = (*MODES, *(mode.name for mode in MODES.values()), *FOLDERS)
QUIET = 0.3  # seconds without a request after which there is time for that


def main() -> int:
    """Load the libraries, answer requests, run the recipe that is handed over; returns the exit code."""
    signal.signal(signal.SIGTERM, _stopped)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    faulthandler.enable()
    from ..reports import text  # noqa: F401
    from ..training import chain  # noqa: F401
    prepared: dict = {}
    with Connection(int(sys.argv[1])) as connection:
        signal.signal(signal.SIGIO, lambda number, frame: _drop_if_unwanted(connection))
        fcntl.fcntl(connection.fileno(), fcntl.F_SETOWN, os.getpid())  # SIGIO comes when something arrives
        fcntl.fcntl(connection.fileno(), fcntl.F_SETFL, os.O_ASYNC)
        recipe = _serve(connection, prepared)
    return _run(recipe, prepared) if recipe else 0


def _serve(connection: Connection, prepared: dict) -> Recipe | None:
    """Answer requests until a run is handed over, and return its recipe; None where who asks is gone."""
    with contextlib.suppress(EOFError, OSError):
        while True:
            if not connection.poll(QUIET):
                _score_ahead(prepared)
            request = receive_message(connection)
            os.chdir(request["cwd"])
            if "run" in request:
                attach_lock(request["run"]["output_dir"], recv_handle(connection))
                return recipe_from_dict(request["run"])
            answer = _answer(request, prepared, connection)
            send_message(connection, {"number": request["number"], "answer": answer})
    return None


class Dropped(BaseException):
    """The answer is no longer waited for, as after the start of a run."""


_answering = threading.Event()


def _drop_if_unwanted(connection: Connection) -> None:
    if _answering.is_set() and connection.poll():  # SIGIO comes for room to write, too
        raise Dropped("a run was started")


def _answer(request: dict, prepared: dict, connection: Connection) -> dict:
    """The answer to a request, or what is wrong with it."""
    try:
        try:
            _answering.set()
            _drop_if_unwanted(connection)  # for what arrived before this moment no signal comes
            if request.get("do") not in ANSWERS:
                raise BadInput(f"do must be one of {', '.join(ANSWERS)}, not {request.get('do')!r}")
            return ANSWERS[request["do"]](request, prepared)
        finally:
            _answering.clear()
    except (Exception, Dropped) as error:
        return {"error": {"kind": type(error).__name__, "message": str(error)}}


def _score_ahead(prepared: dict) -> None:
    """Score a small start model while the user still chooses, into the store where the run will look."""
    for ready in prepared.values():
        if ready.facts.parameters < SMALL_MODEL:
            recipe = ready.recipe
            folder = new_run_folder(recipe.mode, recipe.method, recipe.output_dir)
            with contextlib.suppress(Exception):  # the run will say it
                ready.probes.score(ready.start_state(store_folder(folder)))


def _stopped(number, frame) -> None:
    raise Stopped("stopped")


def _run(recipe: Recipe, prepared: dict) -> int:
    """Run the recipe with all output in the folder's log; what ends it early is left in its folder."""
    from ..reports.plots import save_plot
    from ..training.chain import run_chain
    folder = Path(recipe.output_dir)
    log = os.open(folder / LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    try:
        run_chain(_prepared(recipe, prepared), timed=False)
        save_plot(folder)
    except BaseException as error:
        stopped = isinstance(error, KeyboardInterrupt)
        if not stopped:
            traceback.print_exc()
        # where the chain had begun, its own words are in result.json and this record is gone
        release_folder(folder, {"state": "stopped" if stopped else "failed",
                                "message": mask_message(str(error))})
        return 130 if stopped else 2 if isinstance(error, BadInput) else 1
    return 0


def _prepared(recipe: Recipe, kept: dict):
    """The recipe made ready, or what an earlier question made of it, unless a file that it names changed."""
    from ..training.prepare import prepare_recipe
    values = recipe_to_dict(recipe)
    files = [_ages(values[name]) for name in PLACES if values[name] and values[name] not in NOT_FILES]
    key = json.dumps([{**values, "output_dir": None}, files])
    if key not in kept or None in files:
        made = prepare_recipe(recipe)
        kept.clear()
        kept[key] = made
    kept[key].recipe = override(kept[key].recipe, output_dir=recipe.output_dir)
    return kept[key]


def _ages(source: str) -> list | None:
    """Size and age of every file that a source names; None where that cannot be told, as of a hub name."""
    found = []
    try:
        for _, path, _ in parse_source(source, ""):
            if (place := locate_source(path, "")) is None:
                return None
            for file in sorted(place.rglob("*")) if place.is_dir() else [place]:
                found.append([str(file), file.stat().st_size, file.stat().st_mtime_ns])
    except (OSError, BadInput):
        return None
    return found


def _asked(request: dict) -> Recipe:
    return recipe_from_dict(request.get("recipe") or {})


def _answer_prepare(request: dict, kept: dict) -> dict:
    """The resolved recipe with reasons and warnings, the chain, and the facts of data and model."""
    from ..recipes.warnings import recipe_warnings
    ready = _prepared(_asked(request), kept)
    return {"recipe": recipe_to_dict(ready.recipe), "reasons": ready.reasons,
            "stages": [asdict(stage) for stage in ready.stages],
            "start": ready.start, "revision": ready.revision, "facts": ready.facts.to_dict(),
            "warnings": recipe_warnings(ready.recipe, ready.facts)}


def _answer_look(request: dict, kept: dict) -> dict:
    """As `prepare`, and as text the recipe and the data with its mask (as markup too), steps, forecast."""
    from ..reports.text import format_recipe, look_at_data
    ready = _prepared(_asked(request), kept)
    small, page = ready.facts.parameters <= TRIED_AT_ONCE, look_at_data(ready, request.get("rows", 1))
    return _answer_prepare(request, kept) | {
        "text": page, "markup": page.markup, "recipe_text": format_recipe(ready),
        "plan": ready.plan} | _answer_forecast(request | {"timed": small}, kept)


def _answer_forecast(request: dict, kept: dict) -> dict:
    """Memory and time that the run would take, as data and as text; `timed` False: memory only."""
    from ..reports.ledger import format_forecast
    from ..training.forecast import forecast_recipe
    found = forecast_recipe(_prepared(_asked(request), kept), request.get("timed", True))
    return {"forecast": found, "forecast_text": format_forecast(found)}


def _answer_advise(request: dict, kept: dict) -> dict:
    """The advice as text; `stated` is what the user wants and has."""
    from ..reports.text import format_advice
    from ..training.prepare import advise_recipe
    return {"text": format_advice(advise_recipe(
        _asked(request), request.get("stated") or {}, request.get("with_losses", True),
        request.get("settle_mode", False)))}


def _answer_talk(request: dict, kept: dict) -> dict:
    """The same prompts to several checkpoints."""
    from ..evaluation.chat import talk
    return {"answers": talk(request["checkpoints"], request["prompts"], system=request.get("system"),
                                 max_new_tokens=request.get("max_new_tokens"))}


TRIED_AT_ONCE = 5e6  # parameters up to which a look takes the time for a few steps
ANSWERS = {"prepare": _answer_prepare, "look": _answer_look, "forecast": _answer_forecast,
           "advise": _answer_advise, "talk": _answer_talk}


if __name__ == "__main__":
    sys.exit(main())
