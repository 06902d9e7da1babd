"""Tables and wrapped text: they fit the page, keep every word, and show text from outside as it is."""

from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from sftbench.reports.text_table import WIDTH, format_pairs, format_table, plural, shorten_start, wrap_text

WORDS = st.text(st.characters(exclude_categories=("C", "Z", "M")), min_size=1, max_size=30)
ATTACK = "[bold red]x[/] :smile: https://x.y 'text' 1.5 None"


@given(st.lists(st.tuples(WORDS, st.lists(WORDS, max_size=40)), min_size=1, max_size=5))
def test_pairs_fit_the_page_and_keep_every_word(rows):
    lines = format_pairs([(name, " ".join(words)) for name, words in rows], indent=2, width=8).splitlines()
    assert max(map(cell_len, lines)) <= WIDTH and all(line == line.rstrip() for line in lines)
    text = "".join("".join(line.split()) for line in lines)
    for name, words in rows:
        assert name in text and all(word in text for word in words)


@given(st.integers(1, 9), st.integers(1, 4), st.data())
def test_tables_fit_the_page_and_hold_every_cell_once(columns, rows, data):
    cells = [[f"{row}.{column}.{data.draw(WORDS)}" for column in range(columns)] for row in range(rows)]
    text = format_table(cells, [f"heading{column}" for column in range(columns)], total=True)
    lines = text.splitlines()
    assert max(map(cell_len, lines)) <= WIDTH and all(line == line.rstrip() for line in lines)
    words = text.split()
    assert all(words.count(cell) == 1 for row in cells for cell in row[1:])


def test_figures_stand_under_each_other_with_rules_and_a_total():
    rows = [["a", "1"], ["b", "10,000"], ["sum", "10,001"]]
    assert format_table(rows, ["name", "two\nlines"], total=True) == """\
         two
name   lines
------------
a          1
b     10,000
------------
sum   10,001"""


def test_what_does_not_fit_goes_on_below():
    text = format_table([["row", "x" * 60, "y" * 60]], ["first", "left", "right"])
    upper, lower = text.split("\n\n")
    assert "left" in upper and "right" in lower and "row" in upper and "row" in lower


def test_rows_and_columns_without_anything_are_left_out():
    assert format_table([["a", "1", ""], ["b", "", ""]], ["", "n", ""]) == "   n\n----\na  1"


def test_text_stays_text_and_its_line_breaks_stay():
    assert format_pairs([("name", f"{ATTACK}\n{ATTACK}")]) == f"name  {ATTACK}\n      {ATTACK}"
    table = format_table([[ATTACK, "1"]], ["", "[b]n"])
    assert ATTACK in table and "[b]n" in table
    assert format_pairs([("", "")]) == "" == format_pairs([])


def test_chinese_is_wrapped_by_its_width():
    lines = format_pairs([("name", "北京在哪里" * 20)]).splitlines()
    assert [cell_len(line) for line in lines] == [100, 100, 18] and lines[1].startswith(" " * 6 + "在")


def test_paragraphs_hang_and_counts_agree_with_their_noun():
    assert wrap_text("  " + "word " * 30).splitlines()[1].startswith("      word")
    assert [plural(count, "row") for count in (0, 1, 1000)] == ["0 rows", "1 row", "1,000 rows"]
    assert shorten_start("abcdef", 4) == "…def" and shorten_start("abcd", 4) == "abcd"
