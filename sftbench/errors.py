"""The two ways a run ends badly: the input was wrong (exit code 2), or the work failed (exit code 1)."""


class BadInput(ValueError):
    """What the user gave cannot be used; the message names place and remedy, and nothing was started."""


class RunFailed(RuntimeError):
    """The work began and could not be finished; the message says at which stage and step, and what to do."""
