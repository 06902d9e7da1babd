"""The ways a run ends early: wrong input (exit code 2), failed work (1), a requested stop (130)."""

from pathlib import Path


class BadInput(ValueError):
    """What the user gave cannot be used; the message names fault and remedy, and nothing was started.

    `field` is the recipe field, option or field of a row at fault, `where` its file and line or the path;
    both are empty where there is none. Tests and programs read these, people read the message.
    """

    def __init__(self, message: str, *, field: str = "", where: str = ""):
        super().__init__(message)
        self.field, self.where = field, where


def file_error(where: Path | str, why: str, field: str = "") -> BadInput:
    """Bad input at a file, folder or hub name, which the message names first."""
    return BadInput(f"{where}: {why}", field=field, where=str(where))


class RunFailed(RuntimeError):
    """The work began and could not be finished; the message has stage and step, and what to do.

    `reason` is one word for it: `memory`, `disk`, `non-finite`, `damaged`, `unchanged` (training changed no
    weight), `frozen` (it changed one that is frozen), `hand-over` (what was stored is not what was trained),
    or empty.
    """

    def __init__(self, message: str, reason: str = ""):
        super().__init__(message)
        self.reason = reason


class Stopped(KeyboardInterrupt):
    """The run was requested to stop and did; the same recipe in the same folder goes on from there."""
