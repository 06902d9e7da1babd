"""Columns by name: a file's own names read as the fields of a shape, and a proposal for them."""

import itertools
import re
from collections.abc import Callable, Iterator

from ..errors import file_error
from ..recipes.recipe import suggest_name
from .names import SHAPES

LOOKED_AT = 1000  # rows, of which one must have each column that is named
MISSING = object()
TASK_FIELDS = {field for shape, fields in SHAPES.items() if shape != "text" for field in fields}
# What columns are called, by the field as which they are read. Of several the one whose word comes first is
# taken; a word of several languages is written once.
QUESTION = ("question", "query", "instruction", "prompt", "input", "user", "human", "ask",
            "request", "problem", "q", "title", "frage", "pregunta", "consulta", "domanda",
            "pergunta", "vraag", "fråga", "spørgsmål", "pytanie", "otázka", "kérdés", "soru",
            "kysymys", "вопрос", "питання", "запрос", "问题", "問題", "提问", "問", "问", "質問", "질문",
            "سؤال", "سوال", "प्रश्न", "सवाल", "pertanyaan", "ερώτηση", "שאלה", "คำถาม")
ANSWER = ("answer", "response", "reply", "completion", "output", "assistant", "solution",
          "target", "a", "body", "content", "antwort", "respuesta", "risposta", "resposta",
          "réponse", "reponse", "antwoord", "svar", "odpowiedź", "odpověď", "válasz", "cevap",
          "yanıt", "vastaus", "ответ", "відповідь", "答案", "回答", "答", "답변", "대답", "إجابة",
          "جواب", "پاسخ", "उत्तर", "जवाब", "jawaban", "απάντηση", "תשובה", "คำตอบ")
CONTEXT = ("context", "passage", "paragraph", "document", "article", "evidence", "background",
           "kontext", "contexte", "contexto", "contesto", "bağlam", "контекст", "上下文", "背景",
           "文脈", "문맥", "سياق", "संदर्भ", "text", "texte", "texto", "testo", "текст", "文本",
           "本文")
TEXT = ("text", "content", "body", "document", "article", "passage", "paragraph", "sentence",
        "inhalt", "satz", "texte", "texto", "testo", "tekst", "metin", "текст", "文本", "正文",
        "内容", "本文", "텍스트", "본문", "نص", "متن", "पाठ", "teks", "teksti", "szöveg", "κείμενο",
        "טקסט", "ข้อความ")


def rename_columns(records: Callable[[], Iterator[tuple]], columns: dict[str, str],
                   name: str) -> Iterator[tuple]:
    """The records with these columns under the fields as which they are read; `a.b.0` is a nested value.

    A column that has the name of such a field keeps its value under another. Raises BadInput, with near
    names, for a column that none of the first rows has.
    """
    rows = records()
    first = list(itertools.islice(rows, LOOKED_AT))
    looked_at = [record for _, record in first if isinstance(record, dict)]
    for column in columns.values():
        if looked_at and all(_look_up(record, column) is MISSING for record in looked_at):
            names = list(dict.fromkeys(itertools.chain(*looked_at)))
            raise file_error(name, f"no column {column!r}{suggest_name(column, names)}; it has "
                             f"{', '.join(map(repr, names[:20]))}", column)
    for number, record in itertools.chain(first, rows):
        yield number, _rename(record, columns) if isinstance(record, dict) else record


def _rename(record: dict, columns: dict[str, str]) -> dict:
    found = {field: value for field, column in columns.items()
             if (value := _look_up(record, column)) is not MISSING}
    used = {column if column in record else column.partition(".")[0] for column in columns.values()}
    # where the question is named, a column `text` is no passage unless it is named as one
    unread = {*columns, *(("text",) if columns.keys() & TASK_FIELDS else ())}
    rest = {f"{key} (not read)" if key in columns or key.strip().lower() in unread else key: value
            for key, value in record.items() if key not in used}
    return found | rest


def _look_up(record: dict, column: str):
    """The value of a column, or of a dotted path into nested objects and lists; MISSING if there is none."""
    if column in record:
        return record[column]
    value = record
    for part in column.split("."):
        if isinstance(value, dict) and part in value:
            value = value[part]
        elif isinstance(value, list) and part.isdecimal() and int(part) < len(value):
            value = value[int(part)]
        else:
            return MISSING
    return value


def propose_columns(names: list[str], sample: list[dict], kind: str = "tasks") -> str | None:
    """The columns to write behind a file's name, as `[question=Frage,answer=Antwort]`; None where none fit.

    They are recognised by what they are called in some twenty languages, else by the texts of a sample: of
    two columns with text the longer is the answer. `kind` is that of the role, "text" or "tasks".
    """
    listed = [name for name in names if any(_is_conversation(row.get(name)) for row in sample)]
    if kind == "tasks" and listed:
        return _write_columns({"messages": listed[0]})
    texts = {name: [text for row in sample if isinstance(text := _look_up(row, name), str) and text.strip()]
             for name in dict.fromkeys([*names, *itertools.chain(*map(_nested_names, sample))])}
    filled = [name for name in texts if texts[name]]
    # words with spaces between them, or many letters: no identifiers, no categories
    worded = [name for name in filled if any(" " in text.strip() or len(text) > 40 for text in texts[name])]
    others = [name for name in names if name not in filled]
    if kind == "text":
        text = _find_named(filled, TEXT) or (worded[0] if len(worded) == 1 else None)
        return _write_columns({"text": text}) if text and "text" not in others else None
    question = _find_named(filled, QUESTION)
    answer = _find_named([name for name in filled if name != question], ANSWER)
    context = _find_named([name for name in filled if name not in (question, answer)], CONTEXT)
    if (question is None and _find_named(others, QUESTION, whole_only=True)
            or answer is None and _find_named(others, ANSWER, whole_only=True)):
        return None  # it is there, but no text
    if question is None or answer is None:
        rest = [name for name in worded if name not in (question, answer)]
        rest = rest if len(rest) == 1 else [name for name in rest if name != context] or [
            name for name in filled if name not in (question, answer, context)]
        if len(rest) != (question is None) + (answer is None):
            return None
        rest.sort(key=lambda name: sum(map(len, texts[name])) / len(texts[name]))
        question, answer = question or rest[0], answer or rest[-1]
    columns = {"question": question, "answer": answer, "context": context}
    return _write_columns({field: column for field, column in columns.items() if column})


def name_a_task(names: list[str]) -> bool:
    """Whether columns are called as a question and its answer are, whatever else there is."""
    question = _find_named(names, QUESTION, whole_only=True)
    return bool(question and question.casefold() != "title" and _find_named(
        [name for name in names if name != question], ANSWER, whole_only=True))


def _is_conversation(value) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict) and (
        bool({"role", "from"} & value[0].keys()))


def _nested_names(record: dict) -> Iterator[str]:
    """Dotted paths to the texts in objects and lists of a record."""
    for name, value in record.items():
        if isinstance(value, list):
            value = {"0": value[0]} if value and not isinstance(value[0], list) else {}
        if isinstance(value, dict):
            yield from (f"{name}.{key}" for key, inner in value.items() if isinstance(inner, str))
            yield from (f"{name}.{inner}" for inner in _nested_names(
                {key: inner for key, inner in value.items() if isinstance(inner, (dict, list))}))


def _find_named(names: list[str], words: tuple[str, ...], whole_only: bool = False) -> str | None:
    """The first name that is one of these words, else the first that has one, by the order of the words."""
    spaced = {name: re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).casefold() for name in names}
    parts = {name: [part.removesuffix("s") if len(part) > 3 and part.isascii() else part
                    for part in re.findall(r"(?:[^\W\d_]|[\u0300-\u0eff])+", text)]
             for name, text in spaced.items()}
    for whole in (True,) if whole_only else (True, False):
        for word in words:
            for name, found in parts.items():
                if found == [word] if whole else word in found and len(word) > 1:
                    return name
    return None


def _write_columns(columns: dict[str, str]) -> str | None:
    pairs = [f'{field}="{column}"' if set(column) & set(",[]=") else f"{field}={column}"
             for field, column in columns.items() if field != column]
    return f"[{','.join(pairs)}]" if pairs else None
