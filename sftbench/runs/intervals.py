"""A probe's figures: the means over its rows, and 95 % intervals of them and of what changed.

Intervals are by the percentile bootstrap over rows (Efron and Tibshirani 1993, chapter 13), with one seed,
so that equal rows give equal intervals. They say how far another draw of rows would shift a figure, not how
far another training would.
"""

import numpy as np

from .answers import AnsweredRow

INTERVALS = {"loss", "accuracy"}  # figures that get one
LEVEL = 0.95
RESAMPLES = 2000
DRAWN_AT_ONCE = 10**6  # numbers in memory
MIN_ROWS = 6  # with fewer, all go one way by chance in more than one case of twenty (sign test: 2 / 2^5)


def mean_scores(rows: list[AnsweredRow]) -> dict[str, float]:
    """A probe's figures: `loss` in nats per token; for tasks `accuracy` and `f1`, from 0 to 1.

    Accuracy is the mean over rows of their scores. What no row has is left out.
    """
    return {name: round(float(above.sum() / below.sum()), 5) for name, (above, below) in _parts(rows).items()}


def _parts(rows: list[AnsweredRow]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """By figure what each row adds above and below its fraction; a row that has no such value adds 0."""
    known = {"loss": [row.nats for row in rows], "accuracy": [row.score for row in rows],
             "f1": [row.f1 for row in rows]}
    weights = {"loss": [row.tokens for row in rows]}
    return {name: (np.array([0.0 if value is None else value for value in values]),
                   np.where([value is None for value in values], 0, weights.get(name, 1)))
            for name, values in known.items() if any(value is not None for value in values)}


def score_intervals(rows: list[AnsweredRow]) -> dict[str, list[float]]:
    """The 95 % interval [low, high] of a probe's `loss` and `accuracy`; absent where rows are too few.

    Where all rows are right, or all wrong, drawing them again shows no spread; then the exact bound holds
    (Clopper and Pearson 1934): with 200 rows wrong the accuracy may be 0.018.
    """
    intervals = {}
    for name, (above, below) in _parts(rows).items():
        if name in INTERVALS and len(above := above[below > 0]) >= MIN_ROWS:
            low, high = _bootstrap(above, below[below > 0])
            if name == "accuracy" and above.max() == above.min() in (0, 1):
                bound = ((1 - LEVEL) / 2) ** (1 / len(above))
                low, high = (bound, 1.0) if above.min() == 1 else (0.0, 1 - bound)
            intervals[name] = [round(float(low), 5), round(float(high), 5)]
    return intervals


def change_intervals(before: list[AnsweredRow], after: list[AnsweredRow]) -> dict[str, list[float]]:
    """The 95 % interval of how `loss` and `accuracy` changed between two states, over the same rows in pairs.

    A change is within chance where 0 lies in it. It is stretched to 0 where fewer than MIN_ROWS rows changed
    at all: that few go one way by chance in more than one case of twenty.
    """
    first, second, intervals = _parts(before), _parts(after), {}
    for name in INTERVALS & first.keys() & second.keys():
        (above, below), (later, also) = first[name], second[name]
        both = (below > 0) & (also > 0)
        if (change := (later - above)[both]).size >= MIN_ROWS:
            low, high = _bootstrap(change, also[both])
            if np.count_nonzero(change) < MIN_ROWS:
                low, high = min(low, 0.0), max(high, 0.0)
            intervals[name] = [round(float(low), 5), round(float(high), 5)]
    return intervals


def _bootstrap(above: np.ndarray, below: np.ndarray) -> tuple[float, float]:
    """The interval of sum(above) / sum(below) over rows drawn anew, with replacement."""
    generator, count, drawn = np.random.default_rng(0), len(above), []
    for size in _sizes(RESAMPLES, max(1, DRAWN_AT_ONCE // count)):
        times = generator.multinomial(count, np.full(count, 1 / count), size)  # how often each row is drawn
        drawn.append((times @ above) / (times @ below))
    tail = (1 - LEVEL) / 2
    return tuple(np.quantile(np.concatenate(drawn), [tail, 1 - tail]))


def _sizes(total: int, most: int) -> list[int]:
    """Parts of at most so many that add up to the total."""
    return [min(most, total - start) for start in range(0, total, most)]
