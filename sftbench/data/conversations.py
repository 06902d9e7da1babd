"""Shapes of rows (OpenAI, ShareGPT, Alpaca, …), each turned into `{"text": …}` or `{"messages": […]}`.

A message has a `role` (system, user, assistant, tool) and a `content`, both text. Where they mean something
it has more: an assistant's `reasoning_content` (its thoughts), `tool_calls` as OpenAI writes them, with the
arguments as an object, and `"train": False` for a turn that is read only; a tool's `name` and `tool_call_id`.
A row has `tools` (definitions as OpenAI writes them) and `scorer` where the record has them. Every answer of
a conversation that does not say otherwise is trained, those of a `history` too.
"""

import itertools
from dataclasses import dataclass

from ..errors import BadInput
from ..recipes.recipe import SCORERS, suggest_name
from ..sources.names import SHAPES
from .choices import first_answer, read_choice, read_choices
from .fields import (
    CALL_PARTS,
    CALLS,
    OF_MESSAGES,
    SYSTEMS,
    TEXT_PARTS,
    THOUGHT_PARTS,
    THOUGHTS,
    TOOLS,
    Record,
    check_text,
    find_field,
    group_of,
    names_of,
    plain_names,
    read_passages,
    read_train_flag,
    refuse_placeholder,
    refuse_preferences,
    refuse_unusable,
    refuse_weight,
    speaker_of,
)
from .tool_calls import parse_calls, parse_definitions, parse_list

SPEAKERS = {
    "system": "system", "developer": "system", "user": "user", "human": "user", "assistant": "assistant",
    "gpt": "assistant", "chatgpt": "assistant", "bing": "assistant", "bard": "assistant",
    "model": "assistant", "function_call": "assistant", "tool_call": "assistant", "tool": "tool",
    "function": "tool", "observation": "tool", "tool_response": "tool", "ipython": "tool",
}
CALLERS = ("function_call", "tool_call")  # speakers whose words are a call
WANTED = {"text": "'text'", "tasks": "'messages', 'conversations', 'instruction', 'prompt' or 'question'"}
QUESTIONS = {"alpaca": ("instruction",), "prompt": ("prompt",), "qa": ("question", "query")}
ANSWERS = {"alpaca": ("output", "response", "answer", "completion"),
           "prompt": ("completion", "response", "answer", "output"),
           "qa": ("answer", "response", "output", "completion", "answers", "answerkey")}
PLAIN = {"role", "content"}  # all that most messages have
FIRST = ("system", "user", "assistant")  # by whom a conversation begins, then who answers
STEPS = {("system", "user"), ("user", "assistant"), ("assistant", "user"), ("assistant", "tool"),
         ("tool", "tool"), ("tool", "assistant")}


@dataclass
class ParsedRow:
    """A record as a row: its shape's name, the row, its group for the probe, fields that are not used."""

    shape: str
    row: dict
    group: str
    unused: list[str]


def parse_row(record, kind: str | None = None, shape: str | None = None, form=None) -> ParsedRow:
    """The record as a row; `shape` overrides what its fields say.

    `kind` is what the role has: "text", "tasks", or None for either; `form` is that of `Record`. Raises
    BadInput with the field at fault.
    """
    if not isinstance(record, dict):
        raise BadInput(f"a row must be an object {{…}}, not {type(record).__name__}")
    record, unused = Record(*plain_names(record)), []
    record.form, shape = form, shape or _recognise_shape(record, kind)
    refuse_unusable(record, is_text=shape == "text")
    refuse_weight(record)
    if shape == "text":
        row, question = {"text": check_text("text", record.get("text"))}, ""
    else:
        row = _read_task(record, shape, unused)
        question = "\n".join(turn["content"] for turn in row["messages"] if turn["role"] == "user")
    group = group_of(record, question)
    unused = record.unused() + unused
    if unseen := [name for name in unused if name != "type"]:
        refuse_placeholder([row["text"]] if shape == "text" else [
            turn["content"] for turn in row["messages"]], unseen)
    return ParsedRow(shape, row, group, unused)


def _recognise_shape(record: dict, kind: str | None) -> str:
    for shape, fields in SHAPES.items():
        if kind != ("tasks" if shape == "text" else "text") and any(field in record for field in fields):
            return shape
    if kind != "text" and "input" in record and any(field in record for field in ANSWERS["alpaca"]):
        return "alpaca"
    refuse_preferences(record)
    other = next((field for shape, fields in SHAPES.items() for field in fields if field in record), "")
    wanted = " or ".join(WANTED.values()) if kind is None else WANTED[kind]
    fits = "text" if kind == "tasks" else "tasks"
    fits = f", while {other!r} fits domain_{fits} or general_{fits}" * bool(other)
    raise BadInput(f"no field {wanted}{fits}; it has {names_of(record)}", field=other)


def _read_task(record: Record, shape: str, unused: list[str]) -> dict:
    messages = (_conversation if shape in ("messages", "sharegpt") else _question)(record, shape, unused)
    if messages[-1]["role"] != "assistant":
        refuse_preferences(record)
    tools = [tool for message in messages for tool in message.pop("tools", ())]
    _, system = record.first(SYSTEMS)
    if system and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": check_text("system", system)})
    row = {"messages": _check_turns(messages)}
    name, given = record.first(TOOLS)
    if tools := tools + (parse_definitions(name, given) if name else []):
        row["tools"] = tools
    if record.first(("scorer",))[0]:
        row["scorer"] = check_text("scorer", record["scorer"])
        if row["scorer"] not in SCORERS:
            raise BadInput(f"unknown scorer {row['scorer']!r}{suggest_name(row['scorer'], SCORERS)}; "
                           f"there is {', '.join(SCORERS)}", field="scorer")
    return row


def _conversation(record: Record, shape: str, unused: list[str]) -> list[dict]:
    """OpenAI's `role`/`content` or ShareGPT's `from`/`value`, as a list or as JSON text of one."""
    names = (*SHAPES["messages"], *SHAPES["sharegpt"])
    name = next((name for name in names if name in record), "messages")
    messages = _messages(name, record.get(name), unused)
    return _put_before_question(record, messages)


def _put_before_question(record: Record, messages: list[dict]) -> list[dict]:
    """The messages with the record's passages, if it has any, before the first question."""
    first = next((message for message in messages if message["role"] == "user"), None)
    if first and (passages := read_passages(record, first["content"])):
        first["content"] = f"{passages}\n\n{first['content']}"
    return messages


def _messages(field: str, value, unused: list[str]) -> list[dict]:
    messages = []
    value = parse_list(field, value, "messages")
    if all(isinstance(one, str) for one in value):  # what both say, in turn
        value = [{"role": FIRST[1 + number % 2], "content": text} for number, text in enumerate(value)]
    for number, message in enumerate(value, 1):
        speaker = speaker_of(message)
        role = SPEAKERS.get(speaker)
        if role is None:
            shown = message if speaker is None else speaker
            raise BadInput(f"message {number} must have the role system, user, assistant or tool, "
                           f"not {shown!r:.40}", field=f"{field}[{number}]")
        if message.keys() == PLAIN and isinstance(message["content"], str) and speaker not in CALLERS:
            # most messages have no more: a million rows take 10 s less so
            text = check_text(f"{field}[{number}].content", message["content"])
            messages.append({"role": role, "content": text})
            continue
        record = Record(message)
        record.read |= {"role", "from"}
        messages += _message(f"{field}[{number}]", role, record, speaker in CALLERS)
        unused += [f"{field}[].{name}" for name in record.unused()]
    return messages


def _message(name: str, role: str, record: Record, calls: bool) -> list[dict]:
    """One message in this project's form; several where its parts hold answers of tools."""
    refuse_unusable(record, names=OF_MESSAGES)
    train = read_train_flag(record, name)
    if train and role != "assistant":
        raise BadInput(f"message {name} is the {role}'s and says that it is to be trained; only an "
                       "assistant's turns are", field=name)
    key = next((key for key in ("value", "content", "parts") if key in record), "content")
    content, more, results = record.get(key), {}, []
    if isinstance(content, list | dict):
        content = content if isinstance(content, list) else [content]
        content, more, results = _read_parts(f"{name}.{key}", content)
    if calls and isinstance(content, str):
        more["tool_calls"] = parse_calls(f"{name}.{key}", content)
        content = ""
    call_field, given = record.first(CALLS)
    if call_field:
        more["tool_calls"] = [*more.get("tool_calls", []), *parse_calls(f"{name}.{call_field}", given)]
    if role == "assistant":
        _, thoughts = record.first(THOUGHTS)
        more |= {"reasoning_content": check_text(f"{name}.thoughts", thoughts)} if thoughts else {}
        more |= {"train": False} if train is False else {}
    elif more.keys() - {"tools"}:
        raise BadInput(f"message {name} is the {role}'s and has {', '.join(sorted(more))}, which only an "
                       "assistant's can have", field=name)
    if role == "tool":
        more |= {field: record.get(field) for field in ("name", "tool_call_id")
                 if isinstance(record.get(field), str)}
    is_empty = not content and (more.keys() & {"tool_calls"} or results)
    text = "" if is_empty else check_text(f"{name}.{key}", content)
    return results + ([] if results and not text else [{"role": role, "content": text} | more])


def _read_parts(name: str, parts: list) -> tuple[str, dict, list[dict]]:
    """Content given in parts: its text, what else a message has, and answers of tools as messages."""
    texts, thoughts, calls, tools, results = [], [], [], [], []
    for part in parts:
        part = {"text": part} if isinstance(part, str) else part
        kind = part.get("type", "text" if "text" in part else None) if isinstance(part, dict) else None
        value = next((part[key] for key in (kind, "text", "value", "content")
                      if part.get(key) is not None), None) if isinstance(kind, str) else None
        if kind in TEXT_PARTS:
            texts.append(check_text(name, value, empty=True))
        elif kind in THOUGHT_PARTS:
            thoughts.append(check_text(name, value))
        elif kind in CALL_PARTS:
            calls += parse_calls(name, part if value is None else value)
        elif kind == "tools":
            tools.append(value)
        elif kind == "tool_result":
            text = _read_parts(name, value)[0] if isinstance(value, list) else value
            more = {"tool_call_id": part["tool_use_id"]} if isinstance(part.get("tool_use_id"), str) else {}
            results.append({"role": "tool", "content": check_text(name, text, empty=True)} | more)
        else:
            kind = kind if isinstance(kind, str) else type(part).__name__
            raise BadInput(f"field {name!r} has a part of type {kind}; only text can be trained here",
                           field=name)
    more = {"reasoning_content": "\n".join(thoughts), "tool_calls": calls,
            "tools": [tool for one in tools for tool in parse_definitions(name, one)]}
    return "".join(texts), {key: value for key, value in more.items() if value}, results


def _question(record: Record, shape: str, unused: list[str]) -> list[dict]:
    """A question and its answer, with passages before it, `input` and options below it, after a `history`.

    That is a list of earlier pairs of question and answer.
    """
    messages = []
    _, history = record.first(("history",))
    for pair in parse_list("history", history, "pairs") if history else ():
        if not isinstance(pair, list) or len(pair) != 2:
            raise BadInput(f"field 'history' must be a list of [question, answer], not of {pair!r:.40}",
                           field="history")
        for role, value in zip(("user", "assistant"), pair, strict=True):
            messages += _side("history", role, value, unused)
    # an `input` without a question beside it is the question
    field = record.first((*QUESTIONS[shape], "input"))[0] or find_field(record, QUESTIONS[shape])
    asked = _side(field, "user", record.get(field), unused)
    more = record.first(("input",))[1] if field != "input" else None
    choices = read_choices(record)
    lines = [check_text("input", more)] if more else []
    asked[-1]["content"] = "\n".join([asked[-1]["content"], *lines, *(
        f"{letter}. {text}" for letter, text in choices.items())])
    return messages + _put_before_question(record, asked) + _answer(record, shape, choices, unused)


def _answer(record: Record, shape: str, choices: dict[str, str], unused: list[str]) -> list[dict]:
    if not any(name in record for name in ANSWERS[shape]):
        refuse_preferences(record, ANSWERS[shape][0])
    field = find_field(record, ANSWERS[shape])
    value = first_answer(field, record.get(field))
    if choices and not isinstance(value, list | bool):
        value = read_choice(field, value, choices, record.form and record.form(ANSWERS[shape]))
    answered = _side(field, "assistant", value, unused)
    name, thoughts = record.first(THOUGHTS)
    if thoughts:
        answered[-1]["reasoning_content"] = check_text(name, thoughts)
    return answered


def _side(field: str, role: str, value, unused: list[str]) -> list[dict]:
    """What one side says, as text or as a list of messages."""
    if isinstance(value, list):
        return _messages(field, value, unused)
    return [{"role": role, "content": check_text(field, value)}]


def _check_turns(messages: list[dict]) -> list[dict]:
    """The messages if they are [system] (user assistant (tool+ assistant)*)+; calls join the words before."""
    turns = []
    for message in messages:
        before = turns[-1] if turns else {}
        if (message["role"] == before.get("role") == "assistant" and message.get("tool_calls")
                and not message["content"] and message.get("train") == before.get("train")):
            before["tool_calls"] = [*before.get("tool_calls", []), *message["tool_calls"]]
        else:
            turns.append(message)
        text = message["content"]
        if "<think>" in text and "</think>" not in text and message["role"] == "assistant" and (
                text.lstrip().startswith("<think>")):
            raise BadInput("an answer opens <think> and does not close it, so it was cut off within its "
                           "thoughts; leave such rows out, or close it", field="messages")
    roles = [turn["role"] for turn in turns]
    in_turn = roles[0] in FIRST[:2] and STEPS.issuperset(itertools.pairwise(roles))
    if not in_turn or roles[-1] != "assistant":
        shown = ", ".join(roles[roles[0] == "system":][:12]) or "a system message alone"
        raise BadInput("messages must be user and assistant in turn, a tool's answers after a call, and end "
                       f"with assistant, not {shown}", field="messages")
    return turns
