"""sftbench: seven modes and five methods of supervised fine-tuning, compared on one bench.

The names below are all a notebook needs; torch is imported when the first of them that needs it is used.
"""

import importlib
import logging
import os
import sys

from .errors import BadInput, RunFailed

try:
    import fcntl  # noqa: F401
    import resource  # noqa: F401
except ImportError as missing:
    text = (f"sftbench needs Linux or macOS (this Python lacks the module {missing.name}); on Windows take "
            "WSL 2: type `wsl --install` in PowerShell, restart, open Ubuntu, and install and run it there")
    if os.path.basename(sys.argv[0]).split(".")[0] in ("sftbench", "-m"):  # a command's errors are one line
        sys.stderr.write(f"sftbench: {text}\n")
        sys.exit(2)
    raise ImportError(text) from None

# On CPUs with AVX512-BF16 bitsandbytes (0.50) warns at import of an optional package that it lacks.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

_PUBLIC = {
    "Recipe": "recipes.recipe", "override": "recipes.recipe", "from_parameters": "recipes.recipe",
    "prepare": "training.prepare:prepare_recipe", "advise": "training.prepare:advise_recipe",
    "advise_measured": "calibration.range_test",
    "forecast": "training.forecast:forecast_recipe", "run": "training.chain:run_chain",
    "load": "models.checkpoint:load_stage",
    "start_run": "workers.client", "run_state": "workers.client", "stop_run": "workers.client",
    "resume_run": "workers.client",
    "ask": "reports.text:ask_probes", "look": "reports.text:look_at_data",
    "recipe_text": "reports.text:format_recipe", "check_data": "reports.data_report",
    "ledger": "reports.ledger:format_ledger", "forecast_text": "reports.ledger:format_forecast",
    "changes": "runs.answers", "rows_text": "reports.comparison:format_rows",
    "score": "evaluation.scoring:score_run",
    "LivePlot": "reports.progress", "save_plot": "reports.plots", "form": "workbench.form",
}

__version__ = "0.1.0"
__all__ = ["BadInput", "RunFailed", *_PUBLIC]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})  # so that Tab offers what is not loaded yet


def __getattr__(name: str):
    if name not in _PUBLIC:
        raise AttributeError(f"module 'sftbench' has no attribute {name!r}")
    module, _, function = _PUBLIC[name].partition(":")
    return getattr(importlib.import_module(f".{module}", __name__), function or name)
