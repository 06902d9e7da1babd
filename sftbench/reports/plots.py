"""Pictures of runs, from their events, and of data. No pyplot, so any thread may draw."""

import io
import itertools
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter

from ..runs.events import read_events

# One meaning, one look: domain blue, general orange (Okabe-Ito); text dashed, tasks solid; a shade each for
# CPT and SFT.
COLOURS = {"domain": "#0072B2", "general": "#E69F00", "training": "#444444"}
STYLES = {"text": "--", "tasks": "-"}
MARKERS = {"domain_text": "s", "domain_tasks": "o", "general_text": "D", "general_tasks": "^"}
LOOKS = (("-", "o"), ("--", "s"), (":", "^"), ("-.", "D"), ("-", "v"), ("--", "P"))
MIN_LOSS = 0.01  # nats per token: below it rows are memorised; a log scale shows such losses at its foot
SHADES = {"cpt": "#EAF1EA", "sft": "#F4EEF6"}
# offsets of a point's label from it, in points, best first, with the end of the label that is there
LABEL_OFFSETS = [((x, y), end) for rise in range(0, 80, 13) for y in (4 + rise, -11 - rise)
                 for x, end in ((7, "left"), (-7, "right"))]
MARKER_RADIUS = 5  # pixels


def loss_figure(events: list[dict], log: bool = True, rates: bool = False) -> Figure:
    """Training loss (raw and smoothed) and each probe's loss over the steps of all stages, in nats per token.

    Stage borders are shaded and named; the last values are text under the picture. `rates` adds the
    learning rate as a strip of its own.
    """
    figure, axes, *strip = _figure(9.6, 4.8, rows=1 + rates, sharex=True, height_ratios=(5, 1)[:1 + rates])
    starts, end = _stage_starts(events)
    least, last = MIN_LOSS * log, []
    if training := _points(events, starts, "loss"):
        for weight, looks in ((0.0, {"alpha": 0.25, "linewidth": 0.8}),
                              (0.8, {"linewidth": 1.8, "label": "training (thin: each step)"})):
            smoothed = _smooth(training, set(starts.values()), weight)
            axes.plot(*_columns(smoothed, least), color=COLOURS["training"], **looks)
        last += [] if training[-1][1] is None else [f"training {_few(training[-1][1])}"]
    for role, marker in MARKERS.items():
        if points := _probe_points(events, role):
            side, kind = role.split("_")
            axes.plot(*_columns(points, least), color=COLOURS[side], linestyle=STYLES[kind], marker=marker,
                      markersize=4, linewidth=1.4, label=f"{side} {kind}, held out")
            last.append(f"{side} {kind} {_few(points[-1][1])}")
    _dress(axes, starts, end, log)
    if rates:
        axes.set_xlabel("")
        _draw_rates(*strip, _smooth(_points(events, starts, "learning_rate"), set(starts.values()), 0.0))
    figure.supxlabel("last values:  " + ("   ·   ".join(last) or "none yet"), fontsize=9, color="#333333")
    return figure


def rates_figure(tests: list[dict]) -> Figure:
    """Range tests side by side: loss over the rate of each step, raw and smoothed, and the chosen rate."""
    figure, *panels = _figure(5.2 * len(tests), 3.6, columns=len(tests))
    for axes, test in zip(panels, tests, strict=True):
        axes.plot(test["rates"], test["losses"], color=COLOURS["training"], alpha=0.3, linewidth=0.8)
        axes.plot(test["rates"], test["smoothed"], color=COLOURS["training"], linewidth=1.8)
        chosen = f"{test['chosen']:.2g}" if test["chosen"] else "none, as the loss never fell"
        if test["chosen"]:
            axes.axvline(test["chosen"], color=COLOURS["domain"], linestyle="--")
        axes.set_xscale("log")
        axes.set_ylim(0, 1.3 * max(test["smoothed"][0], min(test["smoothed"])))
        axes.set_title(f"{test['kind'].upper()}, {test['method']}: {chosen}", fontsize=10)
        axes.set_xlabel("learning rate, rising from step to step")
        axes.set_ylabel("loss, nats per token")
    return figure


def _figure(width: float, height: float, rows: int = 1, columns: int = 1, **options) -> tuple:
    """A figure of so many inches that any thread may draw, and its panels, without a frame."""
    figure = Figure(figsize=(width, height), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(rows, columns, squeeze=False, **options).flatten()
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
    return figure, *panels


def _draw_rates(strip, points: list[tuple]) -> None:
    """The learning rate under the loss, over the same steps."""
    strip.plot(*_columns(points), color=COLOURS["training"], linewidth=1.2)
    strip.set_ylim(bottom=0)
    strip.set_ylabel("learning\nrate", fontsize=9)
    strip.ticklabel_format(axis="y", style="sci", scilimits=(0, 0), useMathText=True)
    strip.tick_params(labelsize=8)
    _label_steps(strip)


def overlay_figure(runs: dict[str, list[dict]], kind: str = "tasks", log: bool = True) -> Figure:
    """The held-out loss of several runs, by their events, over their steps: domain left, general right.

    `kind` is `tasks` or `text`. A run has its line and marker in both panels and one legend below.
    """
    figure, *panels = _figure(9.6, 3.6 + 0.2 * len(runs), columns=2)
    for axes, side in zip(panels, ("domain", "general"), strict=True):
        for (name, events), (line, marker) in zip(runs.items(), itertools.cycle(LOOKS)):
            points = _columns(_probe_points(events, f"{side}_{kind}"), MIN_LOSS * log)
            axes.plot(*points, color=COLOURS[side], linestyle=line, marker=marker, markersize=5,
                      linewidth=1.4, label=" " + _literal(name))
        axes.set_title(f"{side} {kind}, held out", fontsize=10)
        _label_steps(axes)
        axes.grid(axis="y", color="#E5E5E5", linewidth=0.8)
        _scale(axes, log)
    panels[0].set_ylabel("loss (nats per token)")
    legend = figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower left", fontsize=9,
                           frameon=False)
    for handle in legend.legend_handles:
        handle.set_color(COLOURS["training"])
    return figure


def gain_figure(runs: list[dict]) -> Figure:
    """Runs, by `comparison.summarise_run`, in the plane of domain gained against general lost (accuracy)."""
    figure, axes = _figure(7.2, 4.0)
    axes.axhline(0, color="#888888", linewidth=0.8)
    axes.axvline(0, color="#888888", linewidth=0.8)
    names = [f"mode {run['mode']} {run['method']}" for run in runs]
    points = [(run["general"][0] - run["general"][1], run["domain"][1] - run["domain"][0]) for run in runs]
    for name, run, point in zip(names, runs, points, strict=True):
        if names.count(name) > 1:  # the same mode and method: the run's own name
            name = _literal(run["name"])
        axes.plot(*point, "o", color=COLOURS["domain"], markersize=7)
        axes.annotate(name, point, xytext=(7, 4), textcoords="offset points", fontsize=9)
    axes.set_xlabel("general lost (accuracy before − after; left is better)")
    axes.set_ylabel("domain gained (accuracy after − before)")
    axes.margins(0.25)
    axes.grid(color="#E5E5E5", linewidth=0.8)
    axes.set_axisbelow(True)
    _separate_labels(axes, points)
    return figure


def _separate_labels(axes, points: list[tuple]) -> None:
    """Move each label that covers a point or an earlier label to another side of its own point."""
    axes.figure.draw_without_rendering()  # the layout gives points and labels their pixels
    markers, taken = axes.transData.transform(points), []
    for label in axes.texts:
        for offset, end in LABEL_OFFSETS:
            label.set(position=offset, horizontalalignment=end)
            box = label.get_window_extent()
            if not box.padded(MARKER_RADIUS).count_contains(markers) and not box.count_overlaps(taken):
                break
        taken.append(box)


def _literal(name: str) -> str:
    """A name as matplotlib shows it literally, not as mathematics."""
    return name.replace("$", r"\$")


def _points(events: list[dict], starts: dict[str, int], name: str) -> list[tuple]:
    """An event's field over the steps of all stages, None where it was no number."""
    return [(starts[event["stage"]] + event["step"], event[name]) for event in events
            if event["stage"] in starts and name in event]


def _stage_starts(events: list[dict]) -> tuple[dict[str, int], int]:
    """Where each stage begins on the common axis of steps, and where the last one ends."""
    plan = next((event["plan"] for event in events if "plan" in event), {})
    *begins, end = itertools.accumulate(plan.values(), initial=0)
    return {"start": 0, **dict(zip(plan, begins, strict=True))}, max(end, 1)


def _probe_points(events: list[dict], role: str) -> list[tuple]:
    """The losses of a role's probe over the steps of all stages."""
    # a stage's score at step 0 is of a part of the probe; the state before it was scored on all of it
    scored = [event for event in events if "steps" not in event]
    points = _points(scored, _stage_starts(events)[0], f"eval_{role}_loss")
    return [(step, loss) for step, loss in points if loss is not None]


def _few(value: float) -> str:
    """A loss with two digits after the point, a small one with two that count."""
    return f"{value:.2f}" if value >= 0.1 else f"{value:.2g}"


def _columns(points: list[tuple], least: float = 0.0) -> tuple[list, list]:
    """Points as two lists; a missing value (a loss that was no number) is a gap, none lies below `least`."""
    return [x for x, _ in points], [float("nan") if y is None else max(y, least) for _, y in points]


def _smooth(points: list[tuple], borders: set[int], weight: float = 0.8) -> list[tuple]:
    """Exponential moving average, corrected for its start, begun anew at stage borders and missing values."""
    smoothed, mean, count, previous = [], 0.0, 0, 0
    for x, y in points:
        if smoothed and any(previous <= border < x for border in borders):
            mean, count = 0.0, 0
            smoothed.append((previous, None))  # a gap, so that no line joins two stages
        previous = x
        if y is None:
            mean, count = 0.0, 0
            smoothed.append((x, None))
        else:
            mean, count = weight * mean + (1 - weight) * y, count + 1
            smoothed.append((x, mean / (1 - weight**count)))
    return smoothed


def _dress(axes, starts: dict[str, int], end: int, log: bool) -> None:
    """Shades and names of the stages, scales, labels, legend."""
    _, *stages = starts.items()
    for (name, left), right in zip(stages, [*(begin for _, begin in stages[1:]), end], strict=False):
        axes.axvspan(left, right, color=SHADES["cpt" if "cpt" in name else "sft"], zorder=0, linewidth=0)
        axes.text((left + right) / 2, 1.02, name.replace("_", " "), ha="center", va="bottom", fontsize=10,
                  transform=axes.get_xaxis_transform())
        if left:
            axes.axvline(left, color="#888888", linewidth=0.8)
    axes.set_xlim(0, end)
    _scale(axes, log)
    axes.set_ylabel("loss (nats per token)")
    _label_steps(axes)
    axes.grid(axis="y", color="#FFFFFF", linewidth=1)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=9, frameon=False)


def _label_steps(axes) -> None:
    axes.set_xlabel("step")
    axes.xaxis.get_major_locator().set_params(integer=True)


def _scale(axes, log: bool) -> None:
    """A log scale with plain numbers, or a linear one from 0."""
    if log:
        axes.set_yscale("log")
        _plain_ticks(axes.yaxis)
        axes.set_ylim(bottom=max(axes.get_ylim()[0], MIN_LOSS * 0.9))
    else:
        axes.set_ylim(bottom=0)


def _plain_ticks(axis) -> None:
    """Plain numbers on a log scale, at minor ticks too where it spans too little for several major ones."""
    axis.set_major_formatter(_plain_number)
    minor = LogFormatter(minor_thresholds=(2, 0.5))
    minor._num_to_string = _plain_number  # matplotlib (3.11) has no public hook for it
    axis.set_minor_formatter(minor)


def _plain_number(value: float, *_) -> str:
    return f"≤ {value:g}" if value == MIN_LOSS else f"{value:g}"


def length_figure(role: str, lengths: np.ndarray, borders: np.ndarray, max_length: int,
                  title: str = "") -> Figure:
    """The histogram of a role's rows by their length in tokens, with the median and `max_length`."""
    figure, axes = _figure(9.6, 4.0)
    if len(lengths):
        # a bar's middle, not its edge, is over the length it counts
        axes.hist(lengths, borders - 0.5, color=COLOURS[role.split("_")[0]], edgecolor="white", linewidth=0.4)
        if borders[-1] - borders[-2] > borders[1] - borders[0] + 1:
            axes.set_xscale("log")
            _plain_ticks(axes.xaxis)
        median, longer = float(np.median(lengths)), int((lengths > max_length).sum())
        axes.axvline(median, color="#444444", linewidth=1, linestyle=":", label=f"median {median:,.0f}")
        if max_length <= 3 * lengths.max():  # else the line would press the bars together
            axes.axvline(max_length, color="#A33B00", linewidth=1.4, linestyle="--",
                         label=f"max_length {max_length:,}: {longer:,} rows are longer")
        axes.legend(loc="upper right", fontsize=9, frameon=False)
    axes.set_xlabel("tokens of a row")
    axes.set_ylabel("rows")
    axes.set_title(title, loc="left", fontsize=11)
    return figure


def figure_png(figure: Figure) -> bytes:
    """The figure as PNG bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def save_plot(run: Path | str, log: bool = True) -> Path:
    """Write the run's `loss.png` into its folder and return its path."""
    path = Path(run) / "loss.png"
    path.write_bytes(figure_png(loss_figure(read_events(run), log=log)))
    return path
