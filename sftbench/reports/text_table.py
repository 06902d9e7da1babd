"""Tables and wrapped text for terminals, logs and notebooks: plain characters, at most WIDTH columns.

Cells are text and nothing else: rich's markup, emoji codes and colours are neither read from nor put into
them. Widths are in terminal columns, of which a Chinese character takes two.
"""

import textwrap
from collections.abc import Iterable, Sequence

from rich.box import Box
from rich.cells import cell_len
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from .html import make_visible

WIDTH = 100  # columns of every text the bench prints: fits half a wide screen, and a cell in JupyterLab


def format_table(rows: Sequence[Sequence[str]], headings: Sequence[str], gap: int = 2,
                 total: int = 0) -> str:
    """Rows under headings and a rule: the first column to the left, figures to the right.

    `total` puts a rule before the last so many rows. Where the columns do not fit into WIDTH, the table goes
    on below with the rest of them, its first column repeated. Rows without figures and empty columns are left
    out.
    """
    rows = [row for row in rows if any(row[1:])]
    columns = [column for column in zip(headings, *rows, strict=True) if any(column)]
    first, *widths = (max(map(cell_len, "\n".join(column).split("\n"))) for column in columns)
    parts, used = [[0]], first
    for number, width in enumerate(widths, 1):
        used += gap + width
        if used > WIDTH and len(parts[-1]) > 1:
            parts.append([0])
            used = first + gap + width
        parts[-1].append(number)
    return "\n\n".join(_ruled([columns[number] for number in part], gap, total) for part in parts)


def _ruled(columns: list[Sequence[str]], gap: int, total: int) -> str:
    # of rich's eight lines only those under the headings and before the total are drawn
    lines = ("    ", "    ", " -- ", "    ", " -- ", "    ", "    ", "    ")
    table = Table(box=Box("\n".join(lines)), show_edge=False, pad_edge=False, padding=(0, gap - 1, 0, 0))
    for number, column in enumerate(columns):
        table.add_column(Text(column[0]), justify="right" if number else "left", overflow="fold")
    rows = list(zip(*(column[1:] for column in columns), strict=True))
    above, below = ([row for row in part if any(row[1:])]
                    for part in (rows[:len(rows) - total], rows[len(rows) - total:]))
    for cells in above:
        table.add_row(*map(Text, cells))
    table.add_section()
    for cells in below:
        table.add_row(*map(Text, cells))
    return _plain_text(table)


def format_pairs(rows: Iterable[Sequence[str]], indent: int = 0, width: int = 0, gap: int = 2) -> str:
    """Rows of short cells and a text, which is wrapped beside them; `width` is the first column's minimum.

    Line breaks in the text stay. A name longer than half of WIDTH loses its beginning.
    """
    rows = [[*(shorten_start(name, WIDTH // 2) for name in names), text] for *names, text in rows]
    if not rows:
        return ""
    table = Table.grid(padding=(0, gap, 0, 0))
    for number in range(len(rows[0]) - 1):
        table.add_column(no_wrap=True, min_width=0 if number else width)
    table.add_column(overflow="fold")
    for cells in rows:
        table.add_row(*map(Text, cells))
    return _plain_text(Padding(table, (0, 0, 0, indent), expand=False))


def wrap_text(text: str) -> str:
    """A paragraph whose further lines begin four columns to the right of the first."""
    indent = " " * (len(text) - len(text.lstrip()) + 4)
    return textwrap.fill(text, WIDTH, subsequent_indent=indent, break_on_hyphens=False)


def shorten_start(text: str, limit: int) -> str:
    """A text of at most `limit` characters; a longer one loses its beginning, as paths differ at the end."""
    return text if len(text) <= limit else f"…{text[1 - limit:]}"


def plural(count: int, noun: str) -> str:
    """`1 row`, `2 rows`, `1,000 rows`."""
    return f"{count:,} {noun}" + "s" * (count != 1)


def format_counts(counts: dict[str, int], form: str = "`{name}` {count:,} {rows}", limit: int = 12) -> str:
    """Names with their numbers of rows, the first of them: "`id` 500 rows, `source` 1 row and 3 more"."""
    shown = [form.format(name=make_visible(name, 40), count=count, rows="row" if count == 1 else "rows")
             for name, count in list(counts.items())[:limit]]
    return ", ".join(shown) + f" and {len(counts) - limit:,} more" * (len(counts) > limit)


def _plain_text(renderable) -> str:
    """What rich makes of a table, as text: no colours, wherever it runs, and no space at a line's end."""
    # force_jupyter: in a notebook rich would display HTML; height: else it asks the terminal for its size
    console = Console(width=WIDTH, height=25, color_system=None, force_terminal=False, force_jupyter=False,
                      legacy_windows=False)
    return "\n".join("".join(segment.text for segment in line).rstrip()
                     for line in console.render_lines(renderable, pad=False))


def mark_cut(entry: dict) -> str:
    """An answer of `talk`, with a mark below it where it was cut at max_new_tokens."""
    return (entry["answer"] or "(nothing)") + "\n[cut]" * entry["cut"]
