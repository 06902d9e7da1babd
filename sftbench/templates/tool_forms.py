"""Tools and thoughts in the form in which a chat template shows them, and as text where it shows none.

What a template knows is asked by rendering stand-ins once: definitions, calls, results, thoughts. As text,
definitions join the system message, a call is a line of JSON in the assistant's words, a result is the user's
turn, and thoughts are `<think>…</think>` before the answer.
"""

import itertools
import json
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import lru_cache

from transformers import PreTrainedTokenizerBase as Tokenizer

from ..errors import BadInput
from .rendering import STAND_IN, template_of, try_rendering

DEFINITION = {"type": "function", "function": {
    "name": "zqtool", "description": "zqdescription", "parameters": {
        "type": "object", "properties": {"zqplace": {"type": "string", "description": "zqwhere"}},
        "required": ["zqplace"]}}}
EMPTY = {"description": "", "parameters": {"type": "object", "properties": {}}}  # of a bare definition
RESULT_ROLES = ("tool", "ipython", "observation", "function")
# Forms of a call's id: as the data has it; nine letters (Mistral's templates raise for any other); with the
# function's name, which Kimi's templates show in no other place.
ID_FORMS: dict[str, Callable[[dict, int], str]] = {
    "own": lambda call, number: call.get("id") or f"call{number:05d}",
    "short": lambda call, number: f"call{number:05d}",
    "named": lambda call, number: f"functions.{call['function']['name']}:{number}",
}


@dataclass(frozen=True)
class ToolForms:
    """In which forms a template shows tools and thoughts; what it does not show becomes text."""

    definitions: bool  # it shows the definitions of tools
    bare: bool = True  # those without description and parameters too; gpt-oss raises for them
    arguments: type | None = None  # calls with arguments as a dict, or as JSON text; None: it shows no calls
    ids: str = "own"  # which of ID_FORMS
    results: str | None = None  # the role under which it shows a tool's result; None: only as the user's
    between: str | None = None  # what stands between two calls of a turn; None: it shows one call a turn
    words: bool = False  # it shows what an answer says beside its calls
    words_first: bool = False  # before them
    thoughts: bool = False  # it shows the thoughts of an answer
    call_thoughts: bool = False  # and those of a turn with calls
    both: bool = False  # beside what such a turn says; gpt-oss raises for both


def tool_forms(tokenizer: Tokenizer) -> ToolForms:
    """In which forms the tokenizer's template shows tools and thoughts."""
    return _find_forms(tokenizer, template_of(tokenizer))


@lru_cache(maxsize=16)
def _find_forms(tokenizer: Tokenizer, template: str) -> ToolForms:
    def shows(messages: list[dict], *words: str) -> bool:
        text = try_rendering(tokenizer, [_user(), *messages], [DEFINITION])
        return all(word in text for word in words)

    thoughts = {"thoughts": shows([_answer(reasoning_content="zqthought")], "zqthought", "zqanswer")}
    definitions = shows([_answer()], "zqtool", "zqdescription", "zqplace")
    bare = "zqtool" in try_rendering(tokenizer, [_user()], [
        {"type": "function", "function": {"name": "zqtool"}}])
    for arguments, ids, role in itertools.product((dict, str), ID_FORMS, RESULT_ROLES):
        def turn(count: int, arguments=arguments, ids=ids, role=role, **more) -> list[dict]:
            return _link([_answer(content="", tool_calls=[_call(number) for number in range(count)]) | more,
                          *({"role": role, "content": f"zqresult{number}"} for number in range(count))],
                         arguments, ids)

        if shows([*turn(1), _answer()], "zqcall0", "zqargument", "zqvalue0", "zqresult0", "zqanswer"):
            between = None
            if shows([*turn(2), _answer()], "zqvalue0", "zqvalue1", "zqresult0", "zqresult1"):
                text = try_rendering(tokenizer, [_user(), *turn(2)[:1]], [DEFINITION])
                between = text.partition("zqvalue0")[2].partition("zqcall1")[0]
            spoken = try_rendering(tokenizer, [_user(), *turn(1, content="zqwords")], [DEFINITION])
            return ToolForms(
                definitions, bare, arguments, ids, role, between, **thoughts,
                words="zqwords" in spoken, words_first="zqwords" in spoken.partition("zqvalue0")[0],
                call_thoughts=shows(turn(1, reasoning_content="zqthought")[:1], "zqthought", "zqvalue0"),
                both=shows(turn(1, reasoning_content="zqthought", content="zqwords")[:1], "zqthought"))
    # A template that prints any role by its name knows no tools; one that shows definitions means its `tool`.
    role = next((role for role in RESULT_ROLES * definitions
                 if shows([_answer(), {"role": role, "content": "zqresult0"}], "zqresult0")), None)
    return ToolForms(definitions, bare, results=role, **thoughts)


def _user() -> dict:
    return {"role": "user", "content": STAND_IN["user"]}


def _answer(**more) -> dict:
    return {"role": "assistant", "content": "zqanswer"} | more


def _call(number: int) -> dict:
    return {"type": "function", "id": f"call_zq0123456789{number}", "function": {
        "name": f"zqcall{number}", "arguments": {"zqargument": f"zqvalue{number}"}}}


def describe_forms(tokenizer: Tokenizer, uses: Collection[str]) -> list[str]:
    """In which forms the template shows `tools` and `thoughts`, where the data uses these."""
    forms, notes = tool_forms(tokenizer), []
    if "tools" in uses:
        known = {"definitions of tools": forms.definitions, "their calls": forms.arguments is not None,
                 "their results": forms.results is not None}
        for verb, is_shown in (("it shows", True), ("as text:", False)):
            if names := [name for name, shown in known.items() if shown is is_shown]:
                notes.append(f"{verb} {', '.join(names)}")
        if forms.arguments and forms.between is None:
            notes.append("it shows one call a turn, so several become turns of their own")
        if forms.arguments and not forms.words:
            notes.append("it does not show what an answer says beside a call")
    if "thoughts" in uses:
        notes.append("it shows thoughts" if forms.thoughts else "thoughts as text: <think>…</think>")
        if forms.arguments and "tools" in uses and not (forms.call_thoughts or forms.words_first):
            notes.append("it does not show thoughts before a call")
    return notes


def stand_in_call(forms: ToolForms) -> list[dict]:
    """A conversation that ends with a call; empty where the template shows no calls."""
    return [_user(), _answer(content="", tool_calls=[_call(0)])] if forms.arguments else []


def adapt_messages(tokenizer: Tokenizer, messages: list[dict],
                   tools: list[dict] | None = None) -> tuple[list[dict], list[dict] | None]:
    """Messages and definitions of tools in the forms that the template shows.

    Raises BadInput for several calls in a turn, not all with a result, where the template shows one a turn.
    """
    if not tools and not any(map(_has_more, messages)):
        return messages, None
    forms = tool_forms(tokenizer)
    messages = [_with_thoughts(message, forms) for message in messages]
    if forms.arguments:
        if forms.between is None:
            messages = list(_one_call_a_turn(messages))
        messages = _link(messages, forms.arguments, forms.ids)
    else:
        messages = [_calls_as_text(message) for message in messages]
    if forms.results:
        messages = [message | {"role": forms.results} if message["role"] == "tool" else message
                    for message in messages]
    else:
        messages = list(_results_as_text(messages))
    if tools and not forms.definitions:
        return _definitions_as_text(messages, tools), None
    if tools and not forms.bare:
        tools = [tool | {"function": EMPTY | tool["function"]} for tool in tools]
    return messages, tools or None


def _has_more(message: dict) -> bool:
    """Whether a message is more than a role and its words."""
    return bool(message["role"] == "tool" or message.get("tool_calls") or message.get("reasoning_content")
                or "</think>" in message["content"] and message["role"] == "assistant")


def split_thoughts(content: str) -> tuple[str, str]:
    """What an answer thinks before it speaks, as reasoning models write it, and the rest."""
    before, closed, after = content.partition("</think>")
    return (before.rpartition("<think>")[2].strip(), after.lstrip()) if closed else ("", content)


def thoughts_as_text(message: dict) -> dict:
    """The message with its thoughts in `<think>…</think>` before its words."""
    thoughts = message.get("reasoning_content")
    message = {name: value for name, value in message.items() if name != "reasoning_content"}
    if thoughts:
        message["content"] = f"<think>\n{thoughts.strip()}\n</think>\n\n{message['content']}".rstrip()
    return message


def _with_thoughts(message: dict, forms: ToolForms) -> dict:
    """The message with its thoughts where the template shows them; else as text, if that comes first."""
    calls = message.get("tool_calls")
    if message["role"] != "assistant":
        return message
    if not (forms.call_thoughts if calls else forms.thoughts):
        message = thoughts_as_text(message)
        if calls and forms.arguments and not forms.words_first:
            return message | {"content": split_thoughts(message["content"])[1]}
        return message
    thoughts, words = message.get("reasoning_content"), message["content"]
    if not thoughts:
        thoughts, words = split_thoughts(words)
    if thoughts and words and calls and not forms.both:
        thoughts, words = f"{thoughts}\n\n{words}", ""
    return message | {"reasoning_content": thoughts, "content": words} if thoughts else message


def _one_call_a_turn(messages: list[dict]) -> Iterator[dict]:
    """The messages with each of a turn's calls as a turn of its own, followed by its result."""
    rest = list(messages)
    while rest:
        message = rest.pop(0)
        calls, results = message.get("tool_calls") or [], []
        while len(calls) > 1 and rest and rest[0]["role"] == "tool":
            results.append(rest.pop(0))
        if len(calls) < 2:
            yield message
            continue
        if len(results) != len(calls):
            raise BadInput("the model's chat template shows one call a turn; this turn has "
                           f"{len(calls)} with {len(results)} results; cut it into turns with one call and "
                           "its result", field="messages[].tool_calls")
        ids = [call.get("id") for call in calls]
        if all(ids) and sorted(ids) == sorted(str(result.get("tool_call_id")) for result in results):
            results.sort(key=lambda result, ids=ids: ids.index(result["tool_call_id"]))
        for number, (call, result) in enumerate(zip(calls, results, strict=True)):
            yield (message if number == 0 else {name: value for name, value in message.items()
                                                if name != "reasoning_content"} | {"content": ""}
                   ) | {"tool_calls": [call]}
            yield result


def _link(messages: list[dict], arguments: type, ids: str) -> list[dict]:
    """The messages with calls in the template's form, and each result with the name and id of its call."""
    made, waiting, number = [], [], 0
    for message in messages:
        if calls := message.get("tool_calls"):
            waiting, made_calls = [], []
            for call in calls:
                new, function = ID_FORMS[ids](call, number), call["function"]
                made_calls.append({"type": "function", "id": new, "function": {
                    "name": function["name"], "arguments": _as(arguments, function["arguments"])}})
                waiting.append((call.get("id"), new, function["name"]))
                number += 1
            message = message | {"tool_calls": made_calls}
        elif message["role"] in RESULT_ROLES and waiting:
            asked = message.get("tool_call_id")
            found = next((entry for entry in waiting if asked and entry[0] == asked), waiting[0])
            waiting.remove(found)
            message = {"name": found[2]} | message | {"tool_call_id": found[1]}
        made.append(message)
    return made


def _as(kind: type, arguments):
    """A call's arguments as a template takes them; text that is no JSON stays as it is."""
    return json.dumps(arguments, ensure_ascii=False) if kind is str and arguments is not None \
        and not isinstance(arguments, str) else arguments


def _calls_as_text(message: dict) -> dict:
    """A message with its calls as lines of JSON after its words."""
    calls = message.get("tool_calls")
    if not calls:
        return message
    lines = [json.dumps({"name": call["function"]["name"], "arguments": call["function"]["arguments"]},
                        ensure_ascii=False) for call in calls]
    return {name: value for name, value in message.items() if name != "tool_calls"} | {
        "content": "\n".join([message["content"], *lines] if message["content"] else lines)}


def _results_as_text(messages: list[dict]) -> Iterator[dict]:
    """The messages with the results after a turn as one turn of the user."""
    for role, group in itertools.groupby(messages, lambda message: message["role"]):
        if role == "tool":
            yield {"role": "user", "content": "\n".join(message["content"] for message in group)}
        else:
            yield from group


def _definitions_as_text(messages: list[dict], tools: list[dict]) -> list[dict]:
    """The messages with the tools' definitions, a line of JSON each, at the end of the system message."""
    text = "\n".join(["Tools:", *(json.dumps(tool, ensure_ascii=False) for tool in tools)])
    if messages[0]["role"] != "system":
        return [{"role": "system", "content": text}, *messages]
    return [messages[0] | {"content": f"{messages[0]['content']}\n\n{text}"}, *messages[1:]]
