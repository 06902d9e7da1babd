"""Text from outside for a page: no other module turns it into HTML. Standard library only."""

import html
import unicodedata

MAX_CHARACTERS = 20_000  # characters of one text that are shown


def make_visible(text: str, limit: int = MAX_CHARACTERS) -> str:
    """The text with signs for what cannot be seen: line ends, tabs, control and direction characters."""
    cut = f" … ({len(text) - limit:,} characters more)" if len(text) > limit else ""
    return "".join(map(_visible_sign, text[:limit])) + cut


def _visible_sign(letter: str) -> str:
    """A printable character or space as it is; a sign for control, format, private, surrogate, unassigned."""
    if letter.isprintable() or unicodedata.category(letter) == "Zs":
        return letter
    return {"\n": "↵", "\t": "⇥", "\r": "␍"}.get(letter, f"⟨U+{ord(letter):04X}⟩")


def escape_html(text: str) -> str:
    """Any text as HTML that shows just this text, long ones cut; safe in an element and in an attribute."""
    return html.escape(make_visible(text))


class HtmlText(str):
    """A text that prints as text, and shows in a notebook as the HTML beside it, made by `escape_html`."""

    markup: str

    def __new__(cls, text: str, markup: str):
        page = super().__new__(cls, text)
        page.markup = markup
        return page

    def _repr_html_(self) -> str:
        return self.markup

    def __repr__(self) -> str:
        return str(self)
