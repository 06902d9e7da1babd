"""Documents to rows: plain text, and the text of PDF, Word and web pages by page or section.

Plain text is cut by `plain_text`; so are pages and sections that are long. What a document has beside its
text (pages without any, footnotes, a web page's menu) is not read, and `describe_document` counts it.
"""

import functools
import importlib.util
import io
import logging
import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field

from ..errors import BadInput, file_error
from .contents import Content, check_expansion
from .names import TEXT_SUFFIXES
from .plain_text import PIECE_CHARACTERS, SHORT_TEXT, choose_piece, cut_text, describe_cuts
from .readers import read_sound_lines

NEEDED = {".pdf": "pypdf", ".docx": "docx", ".html": "inscriptis", ".htm": "inscriptis"}
INSTALL_DOCUMENTS = "where sftbench lies: pip install -c requirements.lock -e '.[documents]'"
MENUS = ("nav", "footer")  # elements of a web page that are not its text
HEADINGS = ("h1", "h2", "h3", "h4", "h5", "h6")
CHARSET = re.compile(rb"charset|encoding", re.IGNORECASE)
WORD = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
WORD_SPACE = {WORD + "tab": "\t", WORD + "br": "\n", WORD + "cr": "\n", WORD + "noBreakHyphen": "-"}
WORD_FALLBACK = "{http://schemas.openxmlformats.org/markup-compatibility/2006}Fallback"  # the same text again


@dataclass
class Document:
    """The sections of a document, each with heading and text, and what was not read of it."""

    sections: list[tuple[str, str]]
    left_out: list[str] = field(default_factory=list)


def check_document(content: Content) -> None:
    """Raise BadInput where the package is missing that reads this kind of document."""
    if importlib.util.find_spec(NEEDED.get(content.suffix, "sys")) is None:
        raise file_error(content.name, f"files ending in {content.suffix} are read by packages that are not "
                         f"installed; {INSTALL_DOCUMENTS}")


def read_document(content: Content, alone: bool = False) -> Iterator[tuple]:
    """The rows of a document, numbered by line, page or section; of one that is `alone` they are shorter.

    Rows of a PDF, Word or web page have the field `group`, the document's name.
    """
    group = {} if content.suffix in TEXT_SUFFIXES else {"group": content.relative}
    for number, text, _ in _cut_document(content, alone):
        yield number, {"text": text} | group


def describe_document(content: Content, alone: bool = False) -> str:
    """How a document was cut and what of it was not read, as one line; empty where nothing is to be said."""
    left_out = [] if content.suffix in TEXT_SUFFIXES else _load(content).left_out
    return "; ".join(filter(None, [describe_cuts(_cut_document(content, alone)), *left_out]))


def name_section(content: Content, number: int) -> str:
    """The name of a section: `section 2 (Returns)`, or without its heading where it has none."""
    heading = dict(enumerate(_load(content).sections, 1)).get(number, ("", ""))[0]
    return f"section {number}" + f" ({heading})" * bool(heading)


def _cut_document(content: Content, alone: bool) -> Iterator[tuple[int, str, int | None]]:
    if content.suffix in TEXT_SUFFIXES:
        limit = choose_piece(_count_characters(content)) if alone else PIECE_CHARACTERS
        yield from cut_text(read_sound_lines(content), limit)
        return
    sections = _load(content).sections
    limit = choose_piece(sum(len(text) for _, text in sections)) if alone else PIECE_CHARACTERS
    for number, (_, text) in enumerate(sections, 1):
        for _, piece, cut in cut_text(enumerate(text.split("\n"), 1), limit):
            yield number, piece, cut


def _count_characters(content: Content) -> int:
    """The characters of a text file, up to as many as make a difference."""
    size = 0
    for _, line in read_sound_lines(content):
        size += len(line) + 1
        if size >= SHORT_TEXT:
            break
    return size


def _load(content: Content) -> Document:
    return _load_once(content, content.path.stat().st_mtime_ns)


@functools.lru_cache(maxsize=4)  # rows, description and headings of a document come from one parsing
def _load_once(content: Content, changed: int) -> Document:
    """A document's sections; raises BadInput for one without text and for what is no such document."""
    parse = {".pdf": _parse_pdf, ".docx": _parse_docx}.get(content.suffix, _parse_html)
    try:
        document = parse(content)
    except BadInput:
        raise
    except Exception as error:  # these parsers document no errors: KeyError, ValueError and their own occur
        why = f"not readable as {content.suffix}: {error or type(error).__name__}"
        raise file_error(content.name, why) from None
    if not any(text.strip() for _, text in document.sections):
        why = ("it has no text, as a scan has none; run text recognition over it (ocrmypdf IN OUT)"
               if content.suffix == ".pdf" else "it has no text")
        raise file_error(content.name, why)
    return document


def _parse_pdf(content: Content) -> Document:
    from pypdf import PdfReader
    from pypdf.errors import DependencyError, FileNotDecryptedError
    logging.getLogger("pypdf").setLevel(logging.ERROR)  # it reports each repair of a file
    try:
        pages = [page.extract_text() for page in PdfReader(io.BytesIO(content.read())).pages]
    except (FileNotDecryptedError, DependencyError):
        why = "encrypted; store it without a password (qpdf --decrypt IN OUT)"
        raise file_error(content.name, why) from None
    # what broken fonts give can be stored nowhere: halves of surrogate pairs and NUL
    pages = [text.encode(errors="replace").decode().replace("\0", "\ufffd") for text in pages]
    empty = [str(number) for number, text in enumerate(pages, 1) if not text.strip()]
    return Document([("", text) for text in pages], [f"pages without text: {', '.join(empty)}"] * bool(empty))


def _parse_docx(content: Content) -> Document:
    import docx
    data = content.read()
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        check_expansion(content.name, sum(part.file_size for part in archive.infolist()), len(data))
    word = docx.Document(io.BytesIO(data))
    body, styles = word.element.body, {style.style_id: style.name for style in word.styles}
    lines = []
    for element in body.iter(WORD + "p", WORD + "tr"):
        if next(element.iterancestors(WORD + "tr", WORD_FALLBACK), None) is not None:
            continue
        if element.tag == WORD + "tr":
            lines.append((False, " | ".join(" ".join(map(_word_text, cell.iter(WORD + "p")))
                                            for cell in element.iterchildren(WORD + "tc"))))
        else:
            style = styles.get(element.style) or ""
            lines.append((style == "Title" or style.startswith("Heading"), _word_text(element)))
    notes = len(body.xpath(".//w:footnoteReference | .//w:endnoteReference"))
    return Document(_make_sections(lines), [f"footnotes that are not read: {notes}"] * bool(notes))


def _word_text(paragraph) -> str:
    """The text of a paragraph with what is inserted and linked; python-docx (1.2) leaves out the inserted."""
    return "".join(WORD_SPACE.get(part.tag, part.text or "")
                   for part in paragraph.iter(WORD + "t", *WORD_SPACE)
                   if part.getparent().tag == WORD + "r"
                   and next(part.iterancestors(WORD + "p")) is paragraph)


def _parse_html(content: Content) -> Document:
    import lxml.html
    from inscriptis.html_engine import Inscriptis
    from inscriptis.model.config import ParserConfig
    data, encoding = content.read(), "utf-8"
    try:
        data.decode()
    except UnicodeDecodeError:  # then it must say what it is; without a word, lxml (6.1) takes it for Latin-1
        encoding = None
        if not (data.startswith((b"\xff\xfe", b"\xfe\xff")) or CHARSET.search(data[:2048])):
            why = "neither UTF-8 nor with a charset in its head; save it as UTF-8"
            raise file_error(content.name, why) from None
    tree = lxml.html.document_fromstring(data, parser=lxml.html.HTMLParser(encoding=encoding))
    menus = tree.xpath(" | ".join(f"//{name}" for name in MENUS))
    left_out = [f"left out: {len(menus)} of {' and '.join(MENUS)}"] * bool(menus)
    for menu in menus:
        menu.drop_tree()
    page = Inscriptis(tree, ParserConfig(annotation_rules=dict.fromkeys(HEADINGS, ["heading"])))
    text, lines, end = page.get_text(), [], 0
    for heading in sorted(page.get_annotations(), key=lambda annotation: annotation.start):
        lines += [(False, text[end:heading.start].strip("\n")),
                  (True, text[heading.start:heading.end].strip())]
        end = heading.end
    return Document(_make_sections([*lines, (False, text[end:].strip("\n"))]), left_out)


def _make_sections(lines: list[tuple[bool, str]]) -> list[tuple[str, str]]:
    """Sections of lines of which some are headings; a heading without text joins the section below it."""
    sections, heading, text, filled = [], "", [], False
    for is_heading, line in lines:
        if not line.strip():
            continue
        if is_heading and filled:
            sections.append((heading, "\n\n".join(text)))
            text = []
        heading, filled = (line.strip(), False) if is_heading else (heading, True)
        text.append(line)
    return sections + [(heading, "\n\n".join(text))] * bool(text)
