"""Messages through a model's own chat template: contents in the form that it expects, the day pinned.

What a recipe says of rendering travels with the tokenizer (`set_rendering`, `render_settings`), so that
training, probes, chat and export render the same.
"""

import dataclasses
import datetime
import re
from dataclasses import dataclass
from functools import lru_cache

from transformers import PreTrainedTokenizerBase as Tokenizer

from ..errors import BadInput

# For base models that have no template of their own: plain words, so that every tokenizer has the tokens, and
# the end-of-sequence token, which is the one token of a base model that already means an end.
DEFAULT_CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '### ' + message['role'] | capitalize + ':\n' + message['content'] }}"
    "{{ eos_token if message['role'] == 'assistant' else '' }}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '### Assistant:\n' }}{% endif %}"
)
# Before a template, and under the name of the function by which it asks for the day. Jinja drops the first
# line break after a block, so the template begins on a line of its own.
PINNED_DAY = "{% macro strftime_now(format) %}{{ pinned_day[format] }}{% endmacro %}\n"
STAND_IN = {role: f"\u2042{role}\u2042" for role in ("system", "user", "assistant")}


def default_template(tokenizer: Tokenizer) -> str:
    """The default template, with the beginning-of-sequence token where the tokenizer adds one to text."""
    return "{{ bos_token }}" * adds_bos(tokenizer) + DEFAULT_CHAT_TEMPLATE


def adds_bos(tokenizer: Tokenizer) -> bool:
    """Whether the tokenizer adds a beginning-of-sequence token to text; templates bring their own."""
    bos = tokenizer.bos_token_id
    return bos is not None and tokenizer("")["input_ids"][:1] == [bos]


def stand_ins(*roles: str) -> list[dict]:
    """Messages whose contents stand for any: rendered once, they show what a template does."""
    return [{"role": role, "content": STAND_IN[role]} for role in roles]


@dataclass(frozen=True)
class RenderSettings:
    """What a recipe says of rendering: the day that the template shows, and whether thoughts are trained."""

    date: str | None = None  # ISO; None: the template shows none
    train_thoughts: bool = True

    def changed(self) -> dict:
        """The settings that are not the default."""
        return {field.name: value for field in dataclasses.fields(self)
                if (value := getattr(self, field.name)) != field.default}


DEFAULT_SETTINGS = RenderSettings()


def set_rendering(tokenizer: Tokenizer, date: str | None = None, train_thoughts: bool = True) -> Tokenizer:
    """The tokenizer, which renders and masks from now on as stated; without a date a template shows today's.

    Raises BadInput for a date that is none, or that the template would not show.
    """
    try:
        given = date and datetime.date.fromisoformat(date).isoformat()
    except ValueError:
        raise BadInput(f"template_date must be a day as 2026-11-27, not {date!r}",
                       field="template_date") from None
    shown = shows_date(tokenizer)
    if given and not shown:
        raise BadInput("template_date: the model's chat template shows no date; leave it out",
                       field="template_date")
    given = given or (datetime.date.today().isoformat() if shown else None)
    tokenizer.render_settings = RenderSettings(given, train_thoughts)
    return tokenizer


def render_settings(tokenizer: Tokenizer) -> RenderSettings:
    """What `set_rendering` stated for the tokenizer."""
    return tokenizer.__dict__.get("render_settings", DEFAULT_SETTINGS)


def shows_date(tokenizer: Tokenizer) -> bool:
    """Whether the template shows the day on which it is rendered."""
    return _shows_date(tokenizer, template_of(tokenizer))


@lru_cache(maxsize=16)
def _shows_date(tokenizer: Tokenizer, template: str) -> bool:
    def texts(date: str) -> list[str]:
        return [_render(tokenizer, messages, parts, date) for messages in (
            stand_ins("user"), stand_ins("system", "user")) if messages[0]["role"] == "user" or system]

    if "strftime_now" not in template:  # the only clock that transformers (5.23) gives to templates
        return False
    parts, system = _wants_parts(tokenizer, template), shows_system(tokenizer)
    return texts("2001-02-03") != texts("2024-10-15")


def template_of(tokenizer: Tokenizer) -> str:
    """The template's text, or that of all its named ones; what is found out of it is cached under this."""
    return str(tokenizer.chat_template)


def render_messages(tokenizer: Tokenizer, messages: list[dict], tools: list[dict] | None = None,
                    **options) -> str:
    """The template's text for these messages; it may raise whatever its expressions raise.

    `options` are `add_generation_prompt` (opens the assistant's turn) and the template's own, such as
    `enable_thinking`. Raises BadInput for a template that cannot show a question and its answer.
    """
    return _render(tokenizer, messages, _wants_parts(tokenizer, template_of(tokenizer)),
                   render_settings(tokenizer).date, tools=tools, **options)


def try_rendering(tokenizer: Tokenizer, messages: list[dict], tools: list[dict] | None = None) -> str:
    """The template's text for these messages; empty where it cannot show them."""
    try:
        return render_messages(tokenizer, messages, tools)
    except BadInput:
        raise
    except Exception:
        return ""


def render_chat(tokenizer: Tokenizer, messages: list[dict], tools: list[dict] | None = None,
                **options) -> str:
    """Messages through the model's own chat template.

    A system message goes before the first user message's text where the template knows none. `options` are
    `add_generation_prompt` (opens the assistant's turn) and the template's own, such as `enable_thinking`.
    Messages and tools are taken as they are; see `tools.adapt_messages`.
    """
    if messages[0]["role"] == "system" and not shows_system(tokenizer):
        system, user, *rest = messages
        messages = [{**user, "content": f"{system['content']}\n\n{user['content']}"}, *rest]
    try:
        return render_messages(tokenizer, messages, tools, **options)
    except BadInput:
        raise
    except Exception as error:
        raise BadInput(f"the model's chat template refuses this conversation: {error}",
                       field="messages") from error


def shows_system(tokenizer: Tokenizer) -> bool:
    """Whether the template shows a system message."""
    return _shows_system(tokenizer, template_of(tokenizer))


@lru_cache(maxsize=16)
def _shows_system(tokenizer: Tokenizer, template: str) -> bool:
    return STAND_IN["system"] in try_rendering(tokenizer, stand_ins("system", "user", "assistant"))


@lru_cache(maxsize=16)
def _wants_parts(tokenizer: Tokenizer, template: str) -> bool:
    """Whether contents are lists of parts, as templates of models for pictures expect them."""
    for parts in (False, True):
        fault = ""
        try:
            text = _render(tokenizer, stand_ins("user", "assistant"), parts)
            if all(STAND_IN[role] in text for role in ("user", "assistant")):
                return parts
        except Exception as error:
            fault = f": {error}"
    raise BadInput(f"the model's chat template cannot show a question and its answer{fault}; take a model "
                   "with a template for text", field="model")


def _render(tokenizer: Tokenizer, messages: list[dict], parts: bool, date: str | None = None,
            **options) -> str:
    if parts:
        messages = [message | {"content": [{"type": "text", "text": message["content"]}]}
                    for message in messages]
    if date:
        template = tokenizer.get_chat_template(tools=options.get("tools"))
        options |= {"chat_template": PINNED_DAY + template, "pinned_day": _day_texts(template, date)}
    return tokenizer.apply_chat_template(messages, tokenize=False, **options)


@lru_cache(maxsize=16)
def _day_texts(template: str, date: str) -> dict[str, str]:
    """The day in every format that the template names: each of its texts in quotes with a `%`."""
    day = datetime.datetime.fromisoformat(date)
    return {text: day.strftime(text) for _, text in re.findall(r"""(['"])((?:(?!\1).)*%(?:(?!\1).)*)\1""",
                                                               template)}
