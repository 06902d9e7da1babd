"""Shapes of rows (OpenAI, ShareGPT, Alpaca, …), each turned into `{"text": …}` or `{"messages": […]}`.

A message here has a `role` (system, user, assistant) and a `content`, both text. Tools are left as text:
definitions join the system message, a call is the assistant's words, a tool's answer is the user's.
Every answer of a conversation is trained, those of a `history` too.
"""

import contextlib
import itertools
import json
from operator import itemgetter

from ..errors import BadInput
from ..sources.names import SHAPES
from ..sources.readers import load_json

SPEAKERS = {
    "system": "system", "developer": "system", "user": "user", "human": "user", "assistant": "assistant",
    "gpt": "assistant", "chatgpt": "assistant", "bing": "assistant", "bard": "assistant",
    "model": "assistant", "function_call": "assistant", "tool": "tool", "function": "tool",
    "observation": "tool",
}
WANTED = {"text": "'text'", "tasks": "'messages', 'conversations', 'instruction', 'prompt' or 'question'"}


def parse_row(record, kind: str | None = None, shape: str | None = None) -> tuple[str, dict]:
    """The name of the record's shape and the record as a row; `shape` overrides what its fields say.

    `kind` is what the role has: "text", "tasks", or None for either. Raises BadInput with the field at fault.
    """
    if not isinstance(record, dict):
        raise BadInput(f"a row must be an object {{…}}, not {type(record).__name__}")
    shape = shape or _recognise_shape(record, kind)
    if shape == "text":
        return shape, {"text": _text("text", record.get("text"))}
    messages = _PARSERS[shape](record)
    system = record.get("system") or record.get("system_prompt")
    if system and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": _text("system", system)})
    if record.get("tools"):
        messages = _with_tools(messages, record["tools"])
    return shape, {"messages": _check_turns(messages)}


def _recognise_shape(record: dict, kind: str | None) -> str:
    for shape, fields in SHAPES.items():
        if kind != ("tasks" if shape == "text" else "text") and any(field in record for field in fields):
            return shape
    wanted = " or ".join(WANTED.values()) if kind is None else WANTED[kind]
    raise BadInput(f"no field {wanted}; it has {', '.join(map(repr, list(record)[:12])) or 'none'}")


def _text(name: str, value, empty: bool = False) -> str:
    """The value if it is text; half a surrogate pair is not, as UTF-8 and so Arrow cannot store it."""
    if not isinstance(value, str) or not (empty or value.strip()):
        raise BadInput(f"field {name!r} must be text that is not empty, not {value!r:.40}", field=name)
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise BadInput(f"field {name!r} has half a surrogate pair at character {error.start}",
                       field=name) from None
    return value


def _conversation(record: dict) -> list[dict]:
    """OpenAI's `role`/`content` or ShareGPT's `from`/`value`, as a list or as JSON text of one."""
    name = next((name for name in (*SHAPES["messages"], *SHAPES["sharegpt"]) if name in record), "messages")
    return _messages(name, record.get(name))


def _messages(field: str, value) -> list[dict]:
    messages = _list(field, value, "messages")
    return [_message(number, field, message) for number, message in enumerate(messages, 1)]


def _list(field: str, value, of: str) -> list:
    """The value if it is a list that is not empty, or JSON text of one."""
    value = _parse_text(field, value, f" list of {of}")
    if not isinstance(value, list) or not value:
        raise BadInput(f"field {field!r} must be a list with {of}, not {value!r:.40}", field=field)
    return value


def _parse_text(field: str, value, what: str = ""):
    """The value, or what it is as JSON if it is text."""
    try:
        return load_json(value) if isinstance(value, str) else value
    except json.JSONDecodeError:
        raise BadInput(f"field {field!r} is text that is no JSON{what}", field=field) from None


def _message(number: int, field: str, message) -> dict:
    is_object = isinstance(message, dict)
    speaker = (message.get("role") or message.get("from")) if is_object else message
    role = SPEAKERS.get(speaker) if is_object and isinstance(speaker, str) else None
    if role is None:
        raise BadInput(f"message {number} must have the role system, user or assistant, not {speaker!r:.40}",
                       field=f"{field}[{number}]")
    if message.get("weight") == 0:
        raise BadInput(f"message {number} has weight 0: every answer of a row is trained; cut the row before "
                       "it, or remove the weight", field=f"{field}[{number}].weight")
    name = f"{field}[{number}].{'value' if 'value' in message else 'content'}"
    content = message["value"] if "value" in message else message.get("content")
    if isinstance(content, list):
        content = _parts(name, content)
    if message.get("tool_calls"):
        calls = "\n".join(map(_call, _list("tool_calls", message["tool_calls"], "calls")))
        content = f"{content}\n{calls}" if content else calls
    return {"role": role, "content": _text(name, content)}


def _parts(name: str, parts: list) -> str:
    """Content given in parts: text only."""
    kinds = {str(part.get("type")) if isinstance(part, dict) else type(part).__name__ for part in parts}
    if kinds - {"text"}:
        raise BadInput(f"field {name!r} has parts of type {', '.join(sorted(kinds - {'text'}))}; "
                       "only text can be trained here", field=name)
    return "".join(_text(name, part.get("text"), empty=True) for part in parts)


def _call(call) -> str:
    """A tool call as a line of JSON: its name and arguments."""
    function = (call.get("function") or call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise BadInput(f"a tool call must be an object with a name, not {call!r:.40}", field="tool_calls")
    arguments = function.get("arguments")
    with contextlib.suppress(json.JSONDecodeError):  # text that is no JSON stays as written
        arguments = load_json(arguments) if isinstance(arguments, str) else arguments
    return json.dumps({"name": function["name"], "arguments": arguments}, ensure_ascii=False)


def _with_tools(messages: list[dict], tools) -> list[dict]:
    """The messages with the tools' definitions, a line of JSON each, at the end of the system message."""
    tools = _parse_text("tools", tools)
    tools = tools if isinstance(tools, list) else [tools]
    text = "\n".join(["Tools:", *(json.dumps(tool, ensure_ascii=False) for tool in tools)])
    if messages[0]["role"] != "system":
        return [{"role": "system", "content": text}, *messages]
    return [{"role": "system", "content": f"{messages[0]['content']}\n\n{text}"}, *messages[1:]]


def _alpaca(record: dict) -> list[dict]:
    """`instruction`, with `input` on a line of its own below it; `history` is a list of earlier pairs."""
    messages = []
    for pair in _list("history", record["history"], "pairs") if record.get("history") else ():
        if not isinstance(pair, list) or len(pair) != 2:
            raise BadInput(f"field 'history' must be a list of [question, answer], not of {pair!r:.40}",
                           field="history")
        messages += _pair("history", pair[0], "history", pair[1])
    question = _text("instruction", record.get("instruction"))
    more = record.get("input")
    if more not in (None, ""):
        question += "\n" + _text("input", more)
    return messages + _pair("instruction", question, "output", record.get("output"))


def _pair(question_field: str, question, answer_field: str, answer) -> list[dict]:
    """A question and its answer, each text or a list of messages."""
    return [message for name, role, value in ((question_field, "user", question),
                                              (answer_field, "assistant", answer))
            for message in (_messages(name, value) if isinstance(value, list)
                            else [{"role": role, "content": _text(name, value)}])]


_PARSERS = {
    "messages": _conversation, "sharegpt": _conversation, "alpaca": _alpaca,
    "prompt": lambda row: _pair("prompt", row.get("prompt"), "completion", row.get("completion")),
    "qa": lambda row: _pair("question", row.get("question"), "answer", row.get("answer")),
}


def _check_turns(messages: list[dict]) -> list[dict]:
    """The messages if they are [system] (user assistant)+; answers of tools in a row count as one user's."""
    turns = []
    for role, group in itertools.groupby(messages, itemgetter("role")):
        if role == "tool":
            group = [{"role": "user", "content": "\n".join(message["content"] for message in group)}]
        turns += group
    roles = [turn["role"] for turn in turns[turns[0]["role"] == "system":]]
    if not roles or roles != ["user", "assistant"] * (len(roles) // 2):
        raise BadInput("messages must be user and assistant in turn and end with assistant, "
                       f"not {', '.join(roles[:12]) or 'a system message alone'}", field="messages")
    return turns
