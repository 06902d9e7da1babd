"""The form's building blocks: its one style, text that stays text, choices, folds, and guarded callbacks."""

import functools
import logging
import threading
from collections.abc import Callable

import ipywidgets as widgets
import traitlets

from ..errors import BadInput

# The form's own markup: a constant. Text from outside goes into labels and text areas; only rows token by
# token are markup, made by `page.escape`.
STYLE = """<style>
.sftb { container-type: inline-size; max-width: 1060px; line-height: 1.45; overflow: visible;
  color: var(--jp-ui-font-color1); }
.sftb .widget-label { white-space: normal; height: auto; line-height: 1.45; overflow: visible;
  overflow-wrap: anywhere; }
.sftb .widget-label-basic { white-space: normal; overflow-wrap: anywhere; line-height: 1.45; height: auto; }
.sftb .widget-checkbox { height: auto; }
.sftb .widget-box, .sftb .widget-vbox, .sftb .widget-hbox { overflow: visible; }
.sftb .sftb-page { padding-top: 6px; }
.sftb .sftb-title { font-size: 17px; font-weight: 600; }
.sftb .sftb-head { font-weight: 600; }
.sftb .sftb-quiet { color: var(--jp-ui-font-color2); }
.sftb .sftb-warn { color: #A33B00; font-weight: 600; }
.sftb .sftb-note { font-size: 12px; }
.sftb .sftb-lines { white-space: pre-line; }
.sftb .sftb-pre { white-space: pre; font-family: var(--jp-code-font-family); font-size: 12px;
  overflow-x: auto; padding: 8px 10px; background: var(--jp-layout-color2); }
.sftb .sftb-seen { padding: 0 10px; border-left: 3px solid var(--jp-border-color2); }
.sftb .sftb-seen pre { font: 12px/1.5 var(--jp-code-font-family); background: none; color: inherit;
  padding: 0; overflow-wrap: anywhere; word-break: normal; }
.sftb .sftb-seen div { min-width: 0; overflow-wrap: anywhere; }
.sftb textarea { font-family: var(--jp-code-font-family) !important; font-size: 12px !important; }
.sftb .jupyter-button { border: 1px solid var(--jp-border-color1); border-radius: 4px; box-shadow: none;
  background: var(--jp-layout-color1); width: auto; height: 30px; line-height: 28px; }
.sftb .jupyter-button:focus-visible, .sftb input:focus-visible, .sftb select:focus-visible,
.sftb textarea:focus-visible { outline: 2px solid #0072B2; outline-offset: 1px; }
.sftb .sftb-on { background: #0072B2; border-color: #0072B2; color: white; font-weight: 600; }
.sftb .sftb-main { background: #0072B2; border-color: #0072B2; color: white; font-weight: 600;
  padding: 0 18px; }
.sftb .jupyter-button:disabled { opacity: .5; background: var(--jp-layout-color2);
  border-color: var(--jp-border-color2); color: var(--jp-ui-font-color1); }
.sftb .sftb-fold { border: none; text-align: left; font-weight: 600; padding: 0 4px; background: none;
  overflow: hidden; text-overflow: ellipsis; }
.sftb .sftb-steps { border-bottom: 1px solid var(--jp-border-color1); flex-wrap: wrap; gap: 4px; }
.sftb .sftb-steps .jupyter-button { border-radius: 4px 4px 0 0; border-bottom: none;
  margin: 0; min-width: 0; }
.sftb .sftb-row { flex-wrap: wrap; gap: 4px 12px; align-items: center; }
.sftb .sftb-status { border-top: 1px solid var(--jp-border-color1); padding-top: 8px; margin-top: 6px; }
.sftb .sftb-modes { display: grid; gap: 4px 6px; align-items: stretch;
  grid-template-columns: 48px 58px repeat(3, minmax(86px, 1fr)) minmax(200px, 1.5fr); }
.sftb .sftb-modes > * { margin: 0 2px; width: auto; min-width: 0; }
.sftb .sftb-modes .jupyter-button { height: auto; min-height: 34px; padding: 0 4px; }
.sftb .sftb-box { border-radius: 4px; padding: 3px; color: #333; font-size: 12px; line-height: 1.3;
  display: flex; flex-direction: column; justify-content: center; align-items: center; text-align: center;
  border: 1px solid transparent; white-space: pre-line; }
.sftb .sftb-lit { border-color: #0072B2; color: #000; box-shadow: 0 0 0 1px #0072B2; }
.sftb .sftb-says { display: flex; align-items: center; font-size: 12px; line-height: 1.3; }
.sftb .sftb-pair { display: grid; grid-template-columns: 130px 1fr; gap: 4px 12px; align-items: center; }
.sftb .sftb-pair > * { margin: 0 2px; width: auto; min-width: 0; }
.sftb .sftb-values { display: grid; gap: 3px 14px; align-items: center;
  grid-template-columns: minmax(350px, 1.2fr) 84px minmax(0, 2fr); }
.sftb .sftb-values > * { margin: 0; width: auto; min-width: 0; }
.sftb .sftb-wide { grid-column: 1 / -1; }
.sftb .sftb-two { display: grid; grid-template-columns: 1fr 1fr; gap: 4px 20px; }
.sftb .sftb-two > * { margin: 0; width: auto; min-width: 0; }
.sftb .sftb-pair .jupyter-button { text-align: left; }
.sftb .widget-inline-hbox .widget-label { text-align: left; }
.sftb .sftb-values .widget-inline-hbox .widget-label { font-size: 12px; }
.sftb .sftb-wrap { white-space: pre-wrap; overflow-wrap: anywhere; }
.sftb .sftb-bars, .sftb .sftb-roles, .sftb .sftb-plan, .sftb .sftb-runs, .sftb .sftb-answers {
  display: grid; gap: 3px 14px; align-items: center; }
.sftb .sftb-bars > *, .sftb .sftb-roles > *, .sftb .sftb-plan > *, .sftb .sftb-runs > *,
.sftb .sftb-answers > * { margin: 0 2px; width: auto; min-width: 0; }
.sftb .sftb-bars { grid-template-columns: 110px minmax(80px, 1fr) minmax(150px, 1fr); }
.sftb .sftb-bars { gap: 0 14px; }
.sftb .sftb-bars .progress { height: 14px; }
.sftb .sftb-roles { grid-template-columns: 130px 130px 130px; }
.sftb .sftb-plan { grid-template-columns: 110px minmax(0, 1fr) 90px; }
.sftb .sftb-runs { grid-template-columns: minmax(250px, 2.4fr) 44px minmax(60px, 1fr) minmax(60px, 1fr)
  repeat(2, minmax(80px, 1fr)) repeat(2, minmax(64px, 1fr)); font-size: 12px; gap: 1px 10px; }
.sftb .sftb-answers { grid-template-columns: repeat(auto-fit, minmax(220px, 1fr)); align-items: start; }
.sftb img { max-width: min(100% - 4px, 960px); height: auto; align-self: flex-start; }
@container (max-width: 680px) {
  .sftb .sftb-two, .sftb .sftb-values { grid-template-columns: 1fr; }
  .sftb .sftb-modes { grid-template-columns: 44px 50px repeat(3, minmax(0, 1fr)); }
  .sftb .sftb-says { display: none; }
  .sftb .sftb-runs { grid-template-columns: minmax(120px, 2fr) 38px repeat(2, minmax(50px, 1fr))
    repeat(4, minmax(54px, 1fr)); gap: 1px 6px; }
  .sftb .sftb-runs .widget-label, .sftb .sftb-runs .widget-checkbox { font-size: 11px; }
  .sftb .sftb-values > .widget-label { padding-left: 8px; }
  .sftb .sftb-columns { display: none; }
  .sftb .sftb-advised::before { content: "advised: "; }
}
@container (max-width: 460px) {
  .sftb .widget-text, .sftb .widget-dropdown, .sftb .widget-textarea, .sftb .widget-select-multiple {
    flex-wrap: wrap; height: auto; }
  .sftb .widget-inline-hbox > select, .sftb .widget-inline-hbox > input { flex: 1 1 100px; height: 28px; }
  .sftb .sftb-modes { grid-template-columns: 40px repeat(4, minmax(0, 1fr)); }
  .sftb .sftb-box { font-size: 10px; padding: 2px; overflow-wrap: anywhere; }
  .sftb .sftb-pair, .sftb .sftb-plan, .sftb .sftb-bars { grid-template-columns: 1fr; }
  .sftb .sftb-roles { grid-template-columns: repeat(3, minmax(0, 1fr)); }
  .sftb .sftb-runs { grid-template-columns: 1fr 1fr; }
  .sftb .sftb-runs > .widget-checkbox { grid-column: 1 / -1; }
}
</style>"""


def style() -> widgets.Widget:
    """The form's constant style, to be shown once; nothing from outside ever goes in."""
    return widgets.HTML(value=STYLE, layout={"display": "none"})


def text_label(value: str = "", *classes: str, **layout) -> widgets.Label:
    """Plain text that wraps; markup and dollar signs in it stay what they are."""
    label = widgets.Label(value, layout=layout)
    for name in ("mathjax_ignore", *classes):  # JupyterLab would set $…$ in a label as mathematics
        label.add_class(name)
    return label


def html_area(*classes: str) -> widgets.HTML:
    """A place for the markup of a `Page`, whose words went through `escape`; nothing else may go in."""
    made = widgets.HTML()
    for name in ("mathjax_ignore", *classes):
        made.add_class(name)
    return made


def box(*children, classes: tuple = (), kind=widgets.VBox, **layout) -> widgets.Box:
    """A box of widgets with style classes."""
    made = kind(list(children), layout=layout)
    for name in classes:
        made.add_class(name)
    return made


def row(*children, **layout) -> widgets.Box:
    """Widgets side by side, wrapping where the page is narrow."""
    return box(*children, classes=("sftb-row",), kind=widgets.HBox, **layout)


def button(label: str, act: Callable[[], None], *classes: str, tooltip: str = "") -> widgets.Button:
    """A button that calls `act` without arguments."""
    made = widgets.Button(description=label, tooltip=tooltip or label)
    for name in classes:
        made.add_class(name)
    made.on_click(lambda _: act())
    return made


def show(widget: widgets.Widget, shown: bool) -> None:
    """Show or hide a widget without leaving a gap."""
    widget.layout.display = None if shown else "none"


class Choice(traitlets.HasTraits):
    """One of several values, each a button; one that is ruled out is grey, and its tooltip says why."""

    value = traitlets.Unicode()

    def __init__(self, labels: dict[str, str], value: str, marks: bool = True):
        super().__init__()
        self.labels, self.marks, self.reasons = labels, marks, {}
        self.buttons = {name: button(label, functools.partial(self.set_trait, "value", name))
                        for name, label in labels.items()}
        self.observe(self._dress, "value")
        self.value = value

    def rule_out(self, reasons: dict[str, str]) -> None:
        """Grey the values of `reasons`, and no others."""
        self.reasons = reasons
        self._dress()

    def _dress(self, _=None) -> None:
        for name, made in self.buttons.items():
            chosen = name == self.value
            (made.add_class if chosen else made.remove_class)("sftb-on")
            made.description = f"{'●' if chosen else '○'} {self.labels[name]}" if self.marks \
                else self.labels[name]
            made.disabled = name in self.reasons and not chosen
            state = "chosen" if chosen else self.reasons.get(name, "not chosen")
            made.tooltip = f"{self.labels[name]}: {state}"


class Fold:
    """A heading that opens and closes what stands under it; `widget` is what to show."""

    def __init__(self, title: str, *children, is_open: bool = False):
        self.title, self.note, self.is_open = title, "", is_open
        self.head = button(title, self.toggle, "sftb-fold")
        self.body = box(*children, padding="0 0 6px 8px")
        self.widget = box(self.head, self.body, align_items="stretch")
        self._dress()

    def toggle(self) -> None:
        """Open if closed, and the other way round."""
        self.is_open = not self.is_open
        self._dress()

    def say(self, note: str) -> None:
        """A few words after the title, which tell what is inside while it is closed."""
        if note != self.note:
            self.note = note
            self._dress()

    def _dress(self) -> None:
        show(self.body, self.is_open)
        self.head.description = f"{'▾' if self.is_open else '▸'} {self.title}" + (
            f":  {self.note}" if self.note else "")
        self.head.tooltip = f"{self.title}, {'open' if self.is_open else 'closed'}"


def guarded(say: Callable[[str, bool], None], act: Callable, *arguments) -> None:
    """Call `act`; an error is told to `say` (text, whether it is bad) and logged, never raised."""
    try:
        act(*arguments)
    except BadInput as error:
        say(str(error), True)
    except Exception as error:  # whatever a callback raises, the form stays usable
        logging.getLogger(__name__).exception("a callback of the form failed")
        say(f"{type(error).__name__}: {error}", True)


def in_background(act: Callable, *arguments) -> threading.Thread:
    """Start `act` in a thread that ends with the kernel."""
    thread = threading.Thread(target=act, args=arguments, daemon=True)
    thread.start()
    return thread
