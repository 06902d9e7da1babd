"""Plain text, PDF, Word and web pages: how they are cut into rows, and what is named instead of read."""

import gzip
import io
import sys

import docx
import pypdf
import pytest

from sftbench.data.rows import read_source
from sftbench.sources.documents import NEEDED
from sftbench.sources.origins import open_sources
from sftbench.sources.plain_text import choose_piece, cut_text
from tests.conftest import bad_input
from tests.test_sources import fill, texts, zipped


def pdf(*pages, password=""):
    """A PDF with a line of text on each page, written by hand."""
    objects = [
        "<</Type/Catalog/Pages 2 0 R>>",
        f"<</Type/Pages/Count {len(pages)}/Kids[{' '.join(f'{4 + 2 * n} 0 R' for n in range(len(pages)))}]>>",
        "<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>",
    ]
    for number, text in enumerate(pages):
        stream = (
            "BT /F1 9 Tf 9 700 Td 12 TL " + "".join(f"({line}) Tj T* " for line in text.split("\n")) + "ET"
        )
        objects += [
            f"<</Type/Page/Parent 2 0 R/MediaBox[0 0 600 800]/Contents {5 + 2 * number} 0 R"
            "/Resources<</Font<</F1 3 0 R>>>>>>",
            f"<</Length {len(stream)}>>stream\n{stream}\nendstream",
        ]
    data, places = "%PDF-1.4\n", []
    for number, text in enumerate(objects, 1):
        places.append(len(data))
        data += f"{number} 0 obj{text}endobj\n"
    table = "".join(f"{place:010} 00000 n \n" for place in places)
    data += (
        f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n{table}trailer<</Size {len(objects) + 1}"
        f"/Root 1 0 R>>\nstartxref\n{len(data)}\n%%EOF"
    )
    if not password:
        return data.encode()
    writer, file = pypdf.PdfWriter(clone_from=io.BytesIO(data.encode())), io.BytesIO()
    writer.encrypt(password, algorithm="RC4-128")
    writer.write(file)
    return file.getvalue()


def word(*blocks):
    """A Word file: text, `# heading` or a list of rows of a table."""
    document, file = docx.Document(), io.BytesIO()
    for block in blocks:
        if isinstance(block, list):
            table = document.add_table(len(block), len(block[0]))
            for row, cells in zip(table.rows, block, strict=True):
                for cell, text in zip(row.cells, cells, strict=True):
                    cell.text = text
        elif block.startswith("# "):
            document.add_heading(block[2:])
        else:
            document.add_paragraph(block)
    document.save(file)
    return file.getvalue()


def words_of(parts):
    return " ".join(parts).split()


SENTENCES = {
    "en": "The cat sat. ",
    "zh": "猫坐在垫子上。",
    "hi": "बिल्ली चटाई पर बैठी। ",
    "ja": "猫が座った！本当？",
    "ar": "أين القطة؟ ",
    "quote": 'He said: "No!" ',
    "am": "ድመቷ ተቀመጠች። ",
}


@pytest.mark.parametrize("language", SENTENCES)
def test_long_lines_are_cut_after_sentences(tmp_path, language):
    sentence = SENTENCES[language]
    line = sentence * (33_000 // len(sentence))
    path = tmp_path / "a.txt"
    path.write_text("\n".join([line.strip()] * 30))
    pieces = texts(path)
    assert all(1000 < len(piece) <= 2000 for piece in pieces[:-1])
    assert all(piece[-1] in '.。।！？؟"።' and piece.startswith(sentence.split()[0][:2]) for piece in pieces)
    assert "".join("".join(pieces).split()) == "".join(path.read_text().split())
    assert "sentences" in open_sources(str(path), "r")[0].note


def test_text_is_cut_at_blank_lines_else_at_lines_and_the_cut_is_reported(tmp_path):
    cases = {
        "sentences a line": ("\n".join(f"Sentence {n} is here." for n in range(1000)), "cut at lines", 8),
        "white space lines": (
            " \n\t\n".join(f"Paragraph {n} {'word ' * 200}" for n in range(10)),
            "cut at blank",
            5,
        ),
        "CR only": ("\r".join(f"Sentence {n} is here." for n in range(1000)), "cut at lines", 8),
        "CRLF": ("\r\n\r\n".join(f"Paragraph {n} {'word ' * 200}" for n in range(10)), "cut at blank", 5),
        "no stops": ("word " * 4000, "cut at words", 5),
        "short": ("\n".join(f"Fact {n} is so." for n in range(30)), "cut at lines", 4),
        "very short": (
            "One is one and stays it for ever. Two is two, which nobody doubts at all here. "
            "Three is three, as all of them know it well.",
            "cut at sentences",
            2,
        ),
    }
    for name, (text, note, least) in cases.items():
        path = tmp_path / f"{name}.txt"
        path.write_bytes(text.encode())
        pieces = texts(path)
        assert len(pieces) >= least and max(map(len, pieces)) <= 2000, name
        assert words_of(pieces) == text.split(), name
        assert open_sources(str(path), "r")[0].note.startswith(note), name


def test_a_hard_wrapped_book_is_cut_where_a_line_ends_a_sentence():
    lines = []
    for number in range(60):
        lines += [
            f"In sentence {number} the man went on",
            "and on over the hills and far away",
            "until he was home.",
        ]
    pieces = list(cut_text(enumerate(lines, 1), 500))
    assert all(text.endswith("home.") and text.startswith("In sentence") for _, text, _ in pieces)
    assert [lines[number - 1] for number, _, _ in pieces] == [text.split("\n")[0] for _, text, _ in pieces]
    assert "\n".join(text for _, text, _ in pieces).split("\n") == lines


@pytest.mark.parametrize(
    "text",
    [
        "x" * 5000,
        "一" * 5000,
        f"short {'y' * 3000} short",
        "word\n" * 5000,
        " \n\n \t\n",
        "a.b.c." * 900,
        "\n\n".join(["# Title", "z " * 1500, "end"]),
    ],
)
def test_no_word_is_cut_and_none_is_lost(text):
    for limit in (80, 2000):
        pieces = [piece for _, piece, _ in cut_text(enumerate(text.split("\n"), 1), limit)]
        assert words_of(pieces) == text.split()
        assert all(len(piece) <= limit or len(piece.split()) == 1 for piece in pieces)


def test_only_a_short_text_is_cut_finer():
    assert [choose_piece(size) for size in (10, 1600, 4000, 10**9)] == [80, 200, 2000, 2000]


def test_a_pdf_is_read_by_page_and_is_one_group(tmp_path):
    path = fill(
        tmp_path,
        {"handbook.pdf": pdf("Page one text.", "", "\n".join(f"Line {n} of it." for n in range(300)))},
    )
    path = path / "handbook.pdf"
    origin = open_sources(str(path), "domain_text")[0]
    records = list(origin.records())
    assert records[0] == (1, {"text": "Page one text.", "group": "handbook.pdf"})
    assert len(records) > 2 and all(number == 3 and len(row["text"]) <= 2000 for number, row in records[1:])
    assert words_of(row["text"] for _, row in records[1:]) == words_of(f"Line {n} of it." for n in range(300))
    assert origin.where(3) == f"{path}, page 3"
    assert origin.note.startswith("cut at lines") and "pages without text: 2" in origin.note
    assert len(set(read_source(str(path), "domain_text").groups.tolist())) == 1


def test_a_word_file_is_read_by_section(tmp_path):
    path = fill(
        tmp_path,
        {
            "guide.docx": word(
                "Before all.",
                "# Guide",
                "# Orders",
                "You may order.",
                [["Size", "Price"], ["big", "3"]],
                "# Returns",
                "Send it.",
            )
        },
    )
    path = path / "guide.docx"
    found = read_source(str(path), "domain_text")
    assert found.table["text"] == [
        "Before all.",
        "Guide\n\nOrders\n\nYou may order.\n\nSize | Price\n\nbig | 3",
        "Returns\n\nSend it.",
    ]
    assert [found.where(index) for index in range(3)] == [
        f"{path}, section 1",
        f"{path}, section 2 (Orders)",
        f"{path}, section 3 (Returns)",
    ]
    assert read_source(str(path), "domain_text").where(2) == f"{path}, section 3 (Returns)"  # from the cache


def test_inserted_text_of_a_word_file_is_read_and_deleted_text_is_not(tmp_path):
    document = docx.Document()
    paragraph = document.add_paragraph("It is ")._p
    run = (
        '<w:r xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"><w:{0}>{1}</w:{0}></w:r>'
    )
    for name, tag, text in (("ins", "t", "new"), ("del", "delText", "old")):
        change = docx.oxml.OxmlElement(f"w:{name}")
        change.append(docx.oxml.parse_xml(run.format(tag, text)))
        paragraph.append(change)
    document.save(tmp_path / "a.docx")
    assert texts(tmp_path / "a.docx") == ["It is new"]


HTML = (
    "<html><head><title>T</title><style>p {color: red}</style></head><body><nav>Home | About</nav>"
    "<h1>Tea</h1><p>Tea is <b>hot</b>.</p><h2>Green &amp; black</h2>"
    "<ul><li>one</li><li>two</li></ul><script>x()</script>"
    "<table><tr><td>a</td><td>b</td></tr></table><footer>Imprint</footer></body></html>"
)


@pytest.mark.parametrize("name", ["page.html", "page.htm"])
def test_a_web_page_is_read_by_section_without_scripts_and_menus(tmp_path, name):
    path = fill(tmp_path, {name: HTML}) / name
    found = read_source(str(path), "domain_text")
    one, two = found.table["text"]
    assert one.split() == ["Tea", "Tea", "is", "hot."]
    assert two.split() == ["Green", "&", "black", "*", "one", "*", "two", "a", "b"]
    assert found.where(1) == f"{path}, section 2 (Green & black)"
    assert found.origins[0].note == "left out: 2 of nav and footer"


def test_web_pages_are_decoded_by_what_they_state(tmp_path):
    fill(
        tmp_path,
        {
            "utf.html": "<p>Grüße 你好",
            "old.html": '<meta charset="windows-1251"><p>Привет'.encode("cp1251"),
            "xhtml.html": '<?xml version="1.0" encoding="UTF-8"?><html><body><p>Año</p></body></html>',
            "none.html": "<p>Grüße".encode("latin-1"),
        },
    )
    assert [texts(tmp_path / f"{name}.html") for name in ("utf", "old", "xhtml")] == [
        ["Grüße 你好"],
        ["Привет"],
        ["Año"],
    ]
    with bad_input(where=tmp_path / "none.html", match="save it as UTF-8"):
        texts(tmp_path / "none.html")


@pytest.mark.parametrize(
    ("name", "raw", "remedy"),
    [
        ("scan.pdf", pdf("", ""), "ocrmypdf"),
        ("secret.pdf", pdf("text", password="x"), "qpdf"),
        ("broken.pdf", b"%PDF-1.4 nothing", "not readable as .pdf"),
        ("broken.docx", b"PK", "not readable as .docx"),
        ("empty.docx", word(), "no text"),
        ("empty.html", b"<nav>only</nav>", "no text"),
        ("nothing.html", b"", "html"),
    ],
)
def test_documents_without_text_are_named_with_the_remedy(tmp_path, name, raw, remedy):
    (tmp_path / name).write_bytes(raw)
    with bad_input(where=tmp_path / name, match=remedy):
        texts(tmp_path / name)


def test_documents_of_a_folder_are_groups_of_their_own(tmp_path):
    fill(
        tmp_path / "d",
        {
            "a/index.html": HTML,
            "b/index.html": HTML.replace("Tea", "Coffee"),
            "c.pdf.gz": gzip.compress(pdf("Cocoa here.")),
            "d.zip": zipped({"e.docx": word("Milk.")}),
            "f.txt": "Plain.",
        },
    )
    groups = [
        row.get("group")
        for origin in open_sources(str(tmp_path / "d"), "domain_text")
        for _, row in origin.records()
    ]
    assert groups == ["a/index.html"] * 2 + ["b/index.html"] * 2 + ["c.pdf.gz", "d.zip/e.docx", None]


def test_a_bomb_in_a_word_file_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("sftbench.sources.contents.ALWAYS_ALLOWED", 2**20)
    (tmp_path / "a.docx").write_bytes(zipped({"word/document.xml": b" " * 2**22}))
    with bad_input(where=tmp_path / "a.docx", match="expands to more"):
        texts(tmp_path / "a.docx")


@pytest.mark.parametrize("suffix", NEEDED)
def test_a_missing_package_is_named_with_the_command_that_installs_it(tmp_path, suffix, monkeypatch):
    monkeypatch.setitem(sys.modules, NEEDED[suffix], None)
    path = fill(tmp_path, {f"a{suffix}": "x"}) / f"a{suffix}"
    with bad_input(where=path, match=r"pip install -c requirements.lock -e '\.\[documents\]'"):
        open_sources(str(path), "domain_text")


