"""Talk: the same prompts to several checkpoints, answers side by side.

A checkpoint is text: a run's folder (its last stage), `RUN:start`, `RUN:STAGE` (the stage's name, or its
number from 1), or a model's folder or name.
"""

import json

from ..data.roles import load_roles
from ..errors import BadInput
from ..models.checkpoint import CheckpointRef
from ..models.loading import release_memory, silence_libraries
from ..recipes.recipe import ROLES, recipe_from_dict
from ..runs.folder import read_json, read_result
from .probes import Answer, complete_answers

QUESTIONS_PER_ROLE = 3  # of each task probe, where no prompt is given
DEFAULT_NEW_TOKENS = 64  # where no run states how long its answers are


def talk(checkpoints: list[str], prompts: list[str] | None = None, system: str | None = None,
         max_new_tokens: int | None = None) -> list[dict]:
    """Greedy answers of each checkpoint to each prompt, as `{checkpoint, prompt, answer, cut}`.

    They come prompt by prompt; `cut` says that an answer reached `max_new_tokens` before its end. Without
    prompts the first questions of the first run's probes are used, `wanted` holds their answers. One
    checkpoint is in memory at a time. Raises BadInput for a checkpoint that does not exist, before any is
    loaded.
    """
    located = {str(name): CheckpointRef.parse(str(name)) for name in checkpoints}
    run = next((checkpoint.run for checkpoint in located.values() if checkpoint.run), None)
    questions = [{"prompt": text, "messages": [{"role": "user", "content": text}]}
                 for text in prompts or []] or probe_questions(run)
    if system:
        for question in questions:
            question["messages"] = [{"role": "system", "content": system}, *(
                message for message in question["messages"] if message["role"] != "system")]
    if not max_new_tokens:
        max_new_tokens = read_result(run)["recipe"]["max_new_tokens"] if run else DEFAULT_NEW_TOKENS
    silence_libraries()
    rows = [{"messages": question.pop("messages") + question.pop("end", []),
             "tools": question.pop("tools", None)} for question in questions]
    answers = {name: _answer_all(checkpoint, rows, max_new_tokens)
               for name, checkpoint in located.items()}
    return [{"checkpoint": name, **question, "answer": answers[name][number].text,
             "cut": answers[name][number].cut}
            for number, question in enumerate(questions) for name in answers]


def _answer_all(checkpoint: CheckpointRef, rows: list[dict], max_new_tokens: int) -> list[Answer]:
    model, tokenizer = checkpoint.load()
    try:
        return complete_answers(model, tokenizer, rows, max_new_tokens)
    finally:
        del model
        release_memory()


def probe_questions(run: str | None) -> list[dict]:
    """The first questions of a run's task probes as `{prompt, wanted, messages, tools, end}`.

    `end` is the wanted message in a list: a prompt opens thoughts where that has some.
    """
    if run is None:
        raise BadInput("no prompt; give one, or a run, whose probe questions are then put", field="prompts")
    roles = load_roles(recipe_from_dict(read_json(run, "recipe.json")["recipe"]))
    rows = [row for name in ROLES if name.endswith("_tasks") and name in roles
            for row in _different_questions(roles[name].probe)]
    if not rows:
        raise BadInput(f"{run}: it has no probe with questions; give a prompt", where=str(run))
    return [{"prompt": " / ".join(map(show_message, row["messages"][:-1])),
             "wanted": show_message(row["messages"][-1]), "messages": row["messages"][:-1],
             "tools": row.get("tools"), "end": row["messages"][-1:]} for row in rows]


def _different_questions(rows: list[dict]) -> list[dict]:
    """The first rows of different questions, since a question may stand with several answers."""
    first = {}
    for row in rows:
        first.setdefault(json.dumps(row["messages"][:-1]), row)
    return list(first.values())[:QUESTIONS_PER_ROLE]


def show_message(message: dict) -> str:
    """A message as a person reads it: its text, and its calls of tools as JSON."""
    calls = [json.dumps(call["function"], ensure_ascii=False) for call in message.get("tool_calls", ())]
    return "\n".join(filter(None, (message["content"], *calls)))
