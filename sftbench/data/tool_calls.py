"""Tools and their calls, in the ways in which data have them, as OpenAI writes them."""

import json

from ..errors import BadInput
from ..sources.readers import load_json


def parse_list(field: str, value, of: str) -> list:
    """The value if it is a list that is not empty, or JSON text of one; raises BadInput with the field."""
    value = _parse_json(field, value, f" list of {of}")
    if not isinstance(value, list) or not value:
        raise BadInput(f"field {field!r} must be a list with {of}, not {value!r:.40}", field=field)
    return value


def _parse_json(field: str, value, what: str = ""):
    """The value, or what it is as JSON if it is text."""
    try:
        return load_json(value) if isinstance(value, str) else value
    except json.JSONDecodeError:
        raise BadInput(f"field {field!r} is text that is no JSON{what}", field=field) from None


def parse_calls(field: str, value) -> list[dict]:
    """Calls from a list, one call, or JSON text of either; raises BadInput for one without a name."""
    value = _parse_json(field, value)
    return [_call(field, call)
            for call in parse_list(field, [value] if isinstance(value, dict) else value, "calls")]


def _call(field: str, call) -> dict:
    """One call: its name, and its arguments as an object; text that does not look like one stays as it is."""
    function = (call.get("function") or call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise BadInput(f"a tool call must be an object with a name, not {call!r:.40}", field=field)
    arguments = next((function[key] for key in ("arguments", "parameters", "input")
                      if function.get(key) not in (None, "")), {})
    try:
        arguments = load_json(arguments) if isinstance(arguments, str) else arguments
    except json.JSONDecodeError as error:
        if arguments.lstrip()[:1] in ("{", "["):
            raise BadInput(f"the arguments of a call of {function['name']!r} are no JSON: {error.msg} at "
                           f"character {error.pos}", field=field) from None
    more = {"id": call["id"]} if isinstance(call.get("id"), str) else {}
    return {"type": "function", "function": {"name": function["name"], "arguments": arguments}} | more


def parse_definitions(field: str, tools) -> list[dict]:
    """Definitions of tools from a list, one definition, or JSON text of either; raises BadInput as above."""
    tools = _parse_json(field, tools)
    tools = tools if isinstance(tools, list) else [tools]
    for tool in tools:
        function = tool.get("function", tool) if isinstance(tool, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise BadInput(f"a tool's definition must be an object with a name, not {tool!r:.40}",
                           field=field)
    return [tool if "function" in tool else {"type": "function", "function": tool} for tool in tools]
