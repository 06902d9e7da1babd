"""The fields of a record beside question and answer: what they mean, and which of them nothing reads.

A field that says what must not be trained, or without which a row is another one, is honoured or makes the
row one that cannot be used; every other field that nothing reads is counted.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable

from ..errors import BadInput

MEDIA = frozenset((
    "image", "images", "picture", "pictures", "photo", "img", "image_path", "image_url", "image_urls",
    "pixel_values", "video", "videos", "video_path", "audio", "audios", "audio_path", "sound", "sounds",
    "speech", "attachments"))
# What stands in a text for a picture, sound or film beside it; an element of HTML is closed, a word of a text
# on such is in quotes.
PLACEHOLDER = re.compile(
    r"(?<![`'\"])<\|?((?:\w*_)?(?:image|img|video|audio|sound|speech|picture)(?:_\w+|\d+)?)\|?>(?!.*</\1>)",
    re.DOTALL)
# whether an answer is a good one, as data of preferences and ratings have it; in the first also as a number
VERDICTS = frozenset((
    "label", "kto_tag", "kto_label", "is_good", "good", "is_correct", "correct", "accepted", "is_accepted",
    "desirable", "is_desirable", "preferred", "is_preferred", "thumbs_up", "approved"))
WORD_VERDICTS = frozenset((
    "verdict", "status", "quality", "rating", "feedback", "judgement", "judgment", "vote"))
FAULTS = frozenset((  # true of an answer that is not to be learnt
    "is_bad", "bad", "rejected", "is_rejected", "flagged", "toxic", "is_toxic", "harmful", "wrong",
    "is_wrong", "incorrect", "spam", "is_spam", "deleted", "is_deleted", "excluded", "exclude", "skip",
    "ignore", "hallucinated"))
YES = ("true", "yes", "good", "correct", "right", "accepted", "desirable", "preferred", "chosen", "approved",
       "thumbs_up", "upvote")
NO = ("false", "no", "bad", "incorrect", "wrong", "rejected", "undesirable", "dispreferred", "declined",
      "thumbs_down", "downvote", "deleted")
RATINGS = frozenset((  # words in the names of fields that may say which rows are good ones, and are not read
    "label", "score", "scores", "rating", "ratings", "reward", "rewards", "quality", "grade", "stars", "rank",
    "votes", "upvotes", "upvoted", "likes", "helpful", "helpfulness", "preference", "feedback", "confidence",
    "passed", "valid", "success", "hallucination", "toxicity", "flagged"))
ROW_WEIGHTS = ("weight", "sample_weight", "loss_weight")
ROW_MARKS = ("train", "trainable", "training", "train_on")  # of a row; true or false
TRAIN_FLAGS = ("train", "loss", "weight", "loss_weight", "loss_mask", "trainable", "training", "train_on",
               "train_on_turn", "compute_loss", "calculate_loss")
MASK_FLAGS = ("mask", "masked", "mask_loss", "ignore", "ignore_loss", "ignore_in_loss", "no_loss", "no_train",
              "skip")
PARTLY = ("train_detail", "train_details", "token_weights", "spans")  # marks within a turn
THOUGHTS = ("reasoning_content", "reasoning", "thinking", "thought", "thoughts", "chain_of_thought", "cot",
            "complex_cot", "rationale")
PASSAGES = ("context", "contexts", "passage", "passages", "document", "documents", "article", "story",
            "paragraph", "paragraphs", "background", "knowledge", "facts", "evidence", "excerpt", "snippet",
            "snippets")
PASSAGE_TEXTS = ("text", "content", "page_content", "passage", "body")
OPTIONS = ("options", "choices")
CHOICE_WORDS = ("option", "choice", "opt", "op")  # before a letter or number: a column with a choice
SYSTEMS = ("system", "system_prompt")
TOOLS = ("tools", "functions", "available_tools")
CALLS = ("tool_calls", "function_call")  # of a message
# parts of a message's content, by their type
TEXT_PARTS = ("text", "input_text", "output_text")
THOUGHT_PARTS = ("reasoning", "thinking", "thought")
CALL_PARTS = ("tool_call", "tool_calls", "function_call", "tool_use")
GROUPS = ("group", "group_id", "conversation_id", "dialogue_id", "dialog_id", "thread_id")
DOCUMENTS = ("document_id", "doc_id", "docid", "document", "url")  # whose pieces a text's rows are
# a better and a worse answer to a question
PREFERENCES = (("chosen", "rejected"), ("preferred_output", "non_preferred_output"))
SPECIAL = MEDIA | VERDICTS | WORD_VERDICTS | FAULTS
FLAGS = frozenset((*TRAIN_FLAGS, *MASK_FLAGS, *PARTLY))  # of a message
OF_MESSAGES = SPECIAL - FLAGS
MARKS = sorted(SPECIAL | FLAGS | {"tools", "tool_calls"})  # whose slips are pointed out
EMPTY = ("", [], {})


def plain_names(record: dict) -> tuple[dict, dict[str, str]]:
    """The record with its fields' names in lower case, without spaces around; and what they were called."""
    if all(map(str.islower, record)) and not any(name != name.strip() for name in record):
        return record, {}
    plain = {name: name.strip().lower() for name in record}
    count = Counter(plain.values())
    plain = {name: new if count[new] == 1 else name for name, new in plain.items()}
    return ({plain[name]: value for name, value in record.items()},
            {new: name for name, new in plain.items()})


class Record(dict):
    """A record, or a message of one, that remembers which fields were read; a null field is absent.

    `form` tells how answers of its file name a choice, see `choices.find_form`; by the names of its fields.
    """

    form: Callable[[tuple[str, ...]], str | None] | None = None

    def __init__(self, fields: dict, names: dict[str, str] | None = None):
        super().__init__(fields)
        self.read, self.names = set(), names or {}  # what fields are called, where they are read as others
        if None in fields.values():
            for name in [name for name, value in fields.items() if value is None]:
                del self[name]

    def get(self, name, default=None):
        """The field's value, which counts as read from now on."""
        self.read.add(name)
        return super().get(name, default)

    def first(self, names: Iterable[str]) -> tuple[str, object]:
        """Name and value of the first of these fields that has one; an empty name and None without."""
        for name in names:
            if name in self and not _is_empty(self[name]):
                return name, self.get(name)
        return "", None

    def unused(self) -> list[str]:
        """The fields with a value that nothing has read."""
        return [self.names.get(name, name) for name, value in self.items()
                if name not in self.read and not _is_empty(value)]


def _is_empty(value) -> bool:
    return value in EMPTY or isinstance(value, str) and value.isspace()


def check_text(name: str, value, empty: bool = False) -> str:
    """The value if it is text; half a surrogate pair is not, as UTF-8 and so Arrow cannot store it."""
    if not isinstance(value, str) or not (empty or value.strip()):
        quotes = "; write it in quotes" if type(value) in (int, float) else ""
        raise BadInput(f"field {name!r} must be text that is not empty, not {value!r:.40}{quotes}",
                       field=name)
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise BadInput(f"field {name!r} has half a surrogate pair at character {error.start}",
                       field=name) from None
    return value


def refuse_unusable(record: Record, is_text: bool = False, names: frozenset = SPECIAL) -> None:
    """Raise BadInput for a record that says itself that it is not to be trained, or that is no text alone."""
    if names.isdisjoint(record):
        return
    for name in [name for name in record if name in names]:
        value = record[name]
        if name in MEDIA:
            if value not in EMPTY:
                raise BadInput(f"field {name!r} holds pictures or sound, which the model would not get; only "
                               "text can be trained here", field=name)
        elif name == "label" and type(value) is int and "completion" not in record:
            continue  # a class's number: as a verdict it stands beside a completion (TRL's form of KTO)
        elif (good := _verdict(name, value, is_text)) is not None:
            record.read.add(name)
            if not good:
                raise BadInput(f"field {name!r} says that this answer is a bad one ({value!r:.20}), and "
                               "training would teach it; keep the good rows only", field=name)


def refuse_placeholder(texts: Iterable[str], unused: list[str]) -> None:
    """Raise BadInput for a text with a placeholder beside unread fields, one of which it may mean."""
    marked = [text for text in texts if "<" in text]
    if found := next(filter(None, map(PLACEHOLDER.search, marked)), None):
        raise BadInput(f"the text has {found[0]!r}, and may mean by it what nothing reads "
                       f"({', '.join(map(repr, unused[:4]))}), so the model would not get it; leave such "
                       "rows out, or, where it is but text, remove those fields", field=unused[0])


def _verdict(name: str, value, is_text: bool) -> bool | None:
    """Whether a field of this value says that a row is a good one; None for what says nothing of it.

    Of a text only true and false count, since its label may be a class's.
    """
    if name in FAULTS:
        return not _flag(name, value) if value in (True, False, "true", "false", "True", "False") else None
    if isinstance(value, bool):
        return value
    if is_text:
        return None
    if isinstance(value, str):
        word = value.strip().lower()
        return True if word in YES else False if word in NO else None
    return value > 0 if name in VERDICTS and value in (-1, 0, 1) else None


def names_of(record: Record) -> str:
    """The record's first fields, for an error."""
    return ", ".join(repr(record.names.get(name, name)) for name in list(record)[:12]) or "none"


def find_field(record: Record, names: tuple[str, ...]) -> str:
    """The first of these fields that the record has; raises BadInput without any."""
    for name in names:
        if name in record:
            return name
    raise BadInput(f"no field {' or '.join(map(repr, names))}; it has {names_of(record)}", field=names[0])


def refuse_preferences(record: dict, answer: str = "") -> None:
    """Explain data that have a better and a worse answer, where they have no other; `answer` is its field."""
    for chosen, rejected in PREFERENCES:
        if chosen in record and rejected in record:
            value = record[chosen]
            remedy = f"name them as the answer: FILE[{answer}={chosen}]"
            if isinstance(value, list) and value and speaker_of(value[0]) in ("user", "human", "system"):
                remedy = f"name them as the messages: FILE[messages={chosen}]"
            elif not answer:
                remedy = "put each at the end of its messages"
            raise BadInput(f"preference data, with {chosen} and {rejected} answers; to train on the {chosen} "
                           f"ones, {remedy}", field=chosen)


def speaker_of(message) -> str | None:
    """Who speaks a message, in lower case; None where it does not say."""
    speaker = (message.get("role") or message.get("from")) if isinstance(message, dict) else None
    return speaker.lower() if isinstance(speaker, str) else None


def refuse_weight(record: Record) -> None:
    """Raise BadInput for a row whose own weight is not 1."""
    for name in ROW_MARKS:
        if name in record and isinstance(record[name], bool | int) and not record.get(name):
            raise BadInput(f"field {name!r} says that this row is not to be trained", field=name)
    name, value = record.first(ROW_WEIGHTS)
    if name and value in (0, "0"):
        raise BadInput(f"field {name!r} says that this row is not to be trained", field=name)
    if name and value not in (1, "1"):
        raise BadInput(f"field {name!r} is {value!r:.20}, but a row's own weight can be 0 or 1 only; weigh "
                       "whole files instead (FILE:2), or remove the field", field=name)


def read_train_flag(message: Record, name: str) -> bool | None:
    """Whether a message says that it is trained; None where it does not say; `name` is the message's.

    Raises BadInput for a weight between 0 and 1, and for flags that contradict each other.
    """
    if FLAGS.isdisjoint(message):
        return None
    for field in PARTLY:
        if field in message and message[field] not in EMPTY:
            raise BadInput(f"message {name} has {field!r}: parts of a turn cannot be left untrained; split "
                           "the turn, or mark all of it", field=f"{name}.{field}")
    stated = {field: _flag(f"{name}.{field}", message.get(field)) == (field in TRAIN_FLAGS)
              for field in (*TRAIN_FLAGS, *MASK_FLAGS) if field in message}
    if len(set(stated.values())) > 1:
        raise BadInput(f"message {name} has {' and '.join(map(repr, stated))}, which contradict each other; "
                       "keep one of them", field=name)
    return next(iter(stated.values()), None)


def _flag(name: str, value) -> bool:
    word = value.strip().lower() if isinstance(value, str) else value
    if word in (0, 1) or word in ("true", "false", "0", "1"):
        return word in (1, "true", "1")
    raise BadInput(f"field {name!r} must be true or false (1 or 0), not {value!r:.20}: a turn is trained or "
                   "it is not", field=name)


def read_passages(record: Record, question: str) -> str:
    """The passages that a question is about, with blank lines between them; empty where there are none.

    A field `text` in which the question is not is one of them; else it is the row written out, and not used.
    """
    names = [name for name in PASSAGES if name in record and record[name] not in EMPTY]
    text = record["text"] if "text" in record else ""  # not by `get`, as which it would count as read
    if isinstance(text, str) and text.strip() and question not in text:
        names.append("text")
    return "\n\n".join(_passage(name, record.get(name)) for name in names)


def _passage(name: str, value) -> str:
    if isinstance(value, list) and value:
        return "\n\n".join(_passage(name, one) for one in value)
    if isinstance(value, dict):
        title, text = value.get("title"), next((value[key] for key in PASSAGE_TEXTS if value.get(key)), None)
        text = check_text(name, text)
        return f"{check_text(name, title)}\n{text}" if title else text
    return check_text(name, value)


def group_of(record: Record, question: str = "") -> str:
    """What names the group of rows that stay on one side of the probe's split; empty for a row by itself.

    The field `group`; else of a task its question, whose answers may be worded in several ways, and of a
    text the document that it is a piece of.
    """
    name, value = record.first(GROUPS if question else (*GROUPS, *DOCUMENTS))
    if name:
        return f"{name} {value}"
    return " ".join(unicodedata.normalize("NFC", question).casefold().split())


def without_nulls(value):
    """The value without fields that are None or NaN: Arrow gives every struct of a column the fields of all.

    NaN is how pandas says that a cell is empty.
    """
    if isinstance(value, dict):
        return {name: without_nulls(one) for name, one in value.items()
                if one is not None and not (isinstance(one, float) and one != one)}
    return [without_nulls(one) for one in value] if isinstance(value, list) else value
