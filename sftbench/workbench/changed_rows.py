"""A part of the form's fourth step: which questions were won and lost, and a row's answers side by side."""

from pathlib import Path

import ipywidgets as widgets

from ..errors import BadInput
from ..reports.comparison import format_won_and_lost, loss_words, score_word, shorten_text
from ..reports.html import make_visible
from ..reports.text_table import plural
from ..runs.answers import ANSWERS, CHOICES, Change, changes, read_answers, select_rows
from .widgets import Fold, add_classes, button, column, grid, row, show, text_label

ALL = ""  # of the probes; ipywidgets 8.1 takes None for nothing chosen
PAGE = 15  # rows that are shown at first, and that "more" adds
TITLES = {"gained": "won", "lost": "lost", "wrong": "wrong after", "worst": "worst by loss"}


class ChangedRows:
    """The part's widgets; `widget` is what to show, `show_runs` takes the runs to choose states from."""

    def __init__(self, form):
        self.form, self.rows, self.shown, self.filling = form, [], PAGE, False
        common = {"layout": {"width": "auto"}, "style": {"description_width": "46px"}}
        self.before, self.after = (widgets.Dropdown(description=name, options=[("none", None)], **common)
                                   for name in ("before", "after"))
        self.which = widgets.Dropdown(description="rows", options=[(TITLES[name], name) for name in CHOICES],
                                      **common)
        self.role = widgets.Dropdown(description="of", options=[("all probes", ALL)], **common)
        self.summary, self.note = text_label("", "sftb-pre"), text_label("", "sftb-quiet")
        self.list, self.more = column(), button("More rows", self._show_more)
        for control in (self.before, self.after):
            control.observe(self._compare, "value")
        for control in (self.which, self.role):
            control.observe(self._begin_list, "value")
        self.fold = Fold("Questions won and lost", self.summary, row(self.before, self.after),
                         row(self.which, self.role, self.note), self.list, self.more, is_open=True)
        self.widget = self.fold.widget

    def show_runs(self, folders: list[Path]) -> None:
        """Offer the states of these runs, as far as they have answers; the choice stays while it is there."""
        answered = [folder for folder in folders if (folder / ANSWERS).exists()]
        show(self.widget, bool(answered))
        if not answered:
            return
        states = {folder: list(read_answers(folder)) for folder in answered}
        options = [(f"{folder.name}, {state}", (str(folder), state))
                   for folder, names in states.items() for state in names]
        own = [value for _, value in options if value[0] == str(answered[0])]
        self.filling = True
        for control, default in ((self.before, own[0]), (self.after, own[-1])):
            old = control.value
            control.options = options
            control.value = old if old in [value for _, value in options] else default
        self.filling = False
        self.summary.value = format_won_and_lost(answered)
        self._compare()

    def _compare(self, _=None) -> None:
        """Pair the rows of the two states anew."""
        with self.form.status.guard():
            if self.filling or None in (self.before.value, self.after.value):
                return
            (run, before), (other, after) = self.before.value, self.after.value
            self.rows = changes(run, other, before, after)
            roles = dict.fromkeys(one.role for one in self.rows)
            chosen = self.role.value
            self.role.options = [("all probes", ALL), *((role.replace("_", " "), role) for role in roles)]
            self.role.value = chosen if chosen in roles else ALL
            self._begin_list()

    def _begin_list(self, _=None) -> None:
        self.shown = PAGE
        self._list_rows()

    def _show_more(self) -> None:
        self.shown += PAGE
        self._list_rows()

    def _list_rows(self) -> None:
        with self.form.status.guard():
            try:
                chosen = select_rows(self.rows, self.which.value, self.role.value or None)
            except BadInput:  # the roles are just being exchanged
                return
            self.note.value = f"{plural(len(chosen), 'row')}; each opens to its answers."
            names = self.before.label, self.after.label
            self.list.children = [RowFold(one, names).widget for one in chosen[:self.shown]]
            show(self.more, len(chosen) > self.shown)


class RowFold(Fold):
    """One row as a line, which opens to what was wanted and both answers; made when it is first opened."""

    def __init__(self, change: Change, names: tuple[str, str]):
        self.change, self.names = change, names
        steps = " → ".join(score_word(score) for score in (change.score_before, change.score_after))
        if change.score_after is None:
            steps = " → ".join(loss_words(loss) for loss in (change.loss_before, change.loss_after))
        super().__init__(f"{steps} · {change.role.replace('_', ' ')} {change.row} · "
                         f"{shorten_text(change.prompt or change.wanted)}")
        add_classes(self.head, "sftb-item", "mathjax_ignore")

    def toggle(self) -> None:
        """Open if closed, close if open."""
        if not self.body.children:
            self.body.children = [self._answers()]
        super().toggle()

    def _answers(self) -> widgets.Widget:
        one = self.change
        columns = [("wanted" if one.prompt else "text", one.wanted, "")]
        for name, answer, score, loss in zip(
                self.names, (one.before, one.after), (one.score_before, one.score_after),
                (one.loss_before, one.loss_after), strict=True):
            words = ", ".join(filter(None, (score_word(score), loss_words(loss))))
            columns.append((name, "" if answer is None else answer or "(nothing)", words))
        prompt = [text_label(make_visible(one.prompt), "sftb-lines")] if one.prompt else []
        return column(*prompt, grid("sftb-answers", *(_answer_column(*words) for words in columns)))


def _answer_column(name: str, text: str, words: str) -> widgets.Widget:
    """A state's name, its answer with its line breaks where it has one, and the score in words."""
    lines = "\n".join(map(make_visible, text.split("\n")))
    shown = [text_label(lines, "sftb-pre", "sftb-wrap")] if text else []
    return column(text_label(name, "sftb-quiet"), *shown, text_label(words, "sftb-quiet", "sftb-note"))
