"""The form's building blocks: style, text that stays text, boxes, buttons, choices, folds, status line."""

import contextlib
import functools
import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path

import ipywidgets as widgets
import traitlets

from ..errors import BadInput

STYLE = f"<style>\n{Path(__file__).with_name('workbench.css').read_text(encoding='utf-8')}</style>"


def style_sheet() -> widgets.HTML:
    """The form's constant style, to be shown once; nothing from outside ever goes in."""
    return widgets.HTML(value=STYLE, layout={"display": "none"})


def add_classes(widget: widgets.DOMWidget, *names: str) -> widgets.DOMWidget:
    """The widget, with these style classes."""
    for name in names:
        widget.add_class(name)
    return widget


def set_class(widget: widgets.DOMWidget, name: str, on: bool) -> None:
    """Add or remove one style class."""
    (widget.add_class if on else widget.remove_class)(name)


def text_label(value: str = "", *classes: str, **layout) -> widgets.Label:
    """Plain text that wraps: text from outside goes into such labels and into text areas, never into HTML."""
    # mathjax_ignore: JupyterLab would set $…$ in a label as mathematics
    return add_classes(widgets.Label(value, layout=layout), "mathjax_ignore", *classes)


def html_area(*classes: str) -> widgets.HTML:
    """An empty area, only for markup whose words went through `reports.html.escape_html`."""
    area = widgets.HTML()
    return add_classes(area, "mathjax_ignore", *classes)


def column(*children, css: str = "", **layout) -> widgets.VBox:
    """Widgets one below the other."""
    return add_classes(widgets.VBox(list(children), layout=layout), *css.split())


def row(*children, css: str = "sftb-row") -> widgets.HBox:
    """Widgets side by side, wrapping where the page is narrow."""
    return add_classes(widgets.HBox(list(children)), css)


def grid(css: str, *children) -> widgets.Box:
    """Widgets in the columns that the style sheet gives this class."""
    return add_classes(widgets.Box(list(children)), css)


def button(label: str, act: Callable[[], None], *classes: str) -> widgets.Button:
    """A button that calls `act` without arguments."""
    widget = add_classes(widgets.Button(description=label, tooltip=label), *classes)
    widget.on_click(lambda _: act())
    return widget


def log_checkbox() -> widgets.Checkbox:
    """Whether a picture has a logarithmic scale."""
    return widgets.Checkbox(True, description="log scale", indent=False, layout={"width": "auto"})


def show(widget: widgets.Widget, shown: bool) -> None:
    """Show or hide a widget without leaving a gap."""
    widget.layout.display = None if shown else "none"


class Choice(traitlets.HasTraits):
    """One of several values, each a button; one that is ruled out is grey, and its tooltip says why.

    Radio buttons of ipywidgets cannot grey a single value (8.1).
    """

    value = traitlets.Unicode()

    def __init__(self, labels: dict[str, str], value: str, marks: bool = True):
        super().__init__(value=value)
        self.labels, self.marks, self.reasons = labels, marks, {}
        self.buttons = {name: button(label, functools.partial(self.set_trait, "value", name))
                        for name, label in labels.items()}
        self.observe(self._update, "value")
        self._update()

    def rule_out(self, reasons: dict[str, str]) -> None:
        """Grey the values of `reasons`, and no others."""
        self.reasons = reasons
        self._update()

    def _update(self, _=None) -> None:
        for name, widget in self.buttons.items():
            label, chosen = self.labels[name], name == self.value
            set_class(widget, "sftb-chosen", chosen)
            widget.description = f"{'●' if chosen else '○'} {label}" if self.marks else label
            widget.disabled = name in self.reasons and not chosen
            widget.tooltip = f"{label}: {'chosen' if chosen else self.reasons.get(name, 'not chosen')}"


class Fold:
    """A heading that opens and closes what is under it; `widget` is what to show."""

    def __init__(self, title: str, *children, is_open: bool = False):
        self.title, self.note, self.is_open = title, "", is_open
        self.head = button(title, self.toggle, "sftb-fold")
        self.body = column(*children, padding="0 0 6px 8px")
        self.widget = column(self.head, self.body, align_items="stretch")
        self._update()

    def toggle(self) -> None:
        """Open if closed, close if open."""
        self.is_open = not self.is_open
        self._update()

    def set_note(self, note: str) -> None:
        """A few words after the title, which summarise what is inside while it is closed."""
        if note != self.note:
            self.note = note
            self._update()

    def _update(self) -> None:
        show(self.body, self.is_open)
        note = f":  {self.note}" if self.note else ""
        self.head.description = f"{'▾' if self.is_open else '▸'} {self.title}{note}"
        self.head.tooltip = f"{self.title}, {'open' if self.is_open else 'closed'}"


class Status:
    """One line at the form's foot, and the errors of all callbacks, which it shows; `label` is its widget."""

    def __init__(self):
        self.label = text_label("", "sftb-message")

    def report(self, text: str, error: bool = False) -> None:
        """Show one line, marked if it is an error."""
        self.label.value = f"! {text}" if error else text
        set_class(self.label, "sftb-warn", error)

    @contextlib.contextmanager
    def guard(self):
        """An error inside is reported and logged, never raised, so that the form stays usable."""
        try:
            yield
        except BadInput as error:
            self.report(str(error), error=True)
        except Exception as error:
            logging.getLogger(__name__).exception("a callback of the form failed")
            self.report(f"{type(error).__name__}: {error}", error=True)

    @contextlib.contextmanager
    def count_seconds(self, label: widgets.Label, text: str):
        """Show in `label` what is going on inside, and for how long, as a sign of life; then empty it."""
        ended, started = threading.Event(), time.monotonic()

        def count() -> None:
            while not ended.wait(1):
                label.value = f"{text} ({time.monotonic() - started:.0f} s)"

        label.value = text
        counting = threading.Thread(target=count, daemon=True)
        counting.start()
        try:
            yield
        finally:
            ended.set()
            counting.join()
            label.value = ""

    def call_in_thread(self, act: Callable, *arguments) -> threading.Thread:
        """Call `act` so guarded in a thread that ends with the kernel; the form stays usable meanwhile."""
        def call() -> None:
            with self.guard():
                act(*arguments)

        thread = threading.Thread(target=call, daemon=True)
        thread.start()
        return thread
