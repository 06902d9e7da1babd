"""sftbench: seven modes and five methods of supervised fine-tuning, compared on one bench.

The names below are all a notebook needs; torch is imported when the first of them that needs it is used.
"""

import importlib
import logging
import os

from .errors import BadInput, RunFailed

# Threads that wait for each other must not spin: on shared cores that made steps up to 20 times slower
# (torch 2.13). The variable is read when torch is first imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# On CPUs with AVX512-BF16 bitsandbytes (0.50) warns at import of an optional package that it lacks.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

_HOMES = {
    "Recipe": "recipe", "override": "recipe", "from_parameters": "recipe",
    "prepare": "ready", "advise": "ready", "run": "chain", "load": "states", "expect": "chain",
    "ask": "views", "look": "views", "recipe_text": "views", "check_data": "check", "ledger": "table",
    "forecast_text": "table",
    "LivePlot": "live", "save_plot": "plots", "form": "workbench",
}

__version__ = "0.1.0"
__all__ = ["BadInput", "RunFailed", *_HOMES]


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module 'sftbench' has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
