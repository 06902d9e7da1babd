"""Talk: the same prompts to several checkpoints, answers side by side.

A checkpoint is text: a run's folder (its last stage), `RUN:start`, `RUN:STAGE` (the stage's name, or its
number from 1), or a model's folder or name.
"""

import textwrap

from ..data.roles import load_roles
from ..errors import BadInput
from ..models.checkpoint import CheckpointRef
from ..models.loading import release_memory, silence_libraries
from ..recipes.recipe import ROLES, recipe_from_dict
from ..runs.folder import read_json, read_result
from .probes import generate_answers

TEXT_WIDTH = 100
QUESTIONS_PER_ROLE = 3  # of each task probe, where no prompt is given
DEFAULT_NEW_TOKENS = 64  # where no run says how long its answers are


def talk(checkpoints: list[str], prompts: list[str] | None = None, system: str | None = None,
         max_new_tokens: int | None = None) -> list[dict]:
    """Greedy answers of each checkpoint to each prompt, as `{checkpoint, prompt, answer}`, prompt by prompt.

    Without prompts the first questions of the first run's probes are asked, and `wanted` holds their answers.
    One checkpoint is in memory at a time. Raises BadInput for a checkpoint that is not there, before any is
    loaded.
    """
    found = {str(name): CheckpointRef.parse(str(name)) for name in checkpoints}
    asked = [{"prompt": text, "messages": [{"role": "user", "content": text}]} for text in prompts or []]
    run = next((ref.run for ref in found.values() if ref.run), None)
    if not prompts:
        asked = probe_questions(run)
    if system:
        for question in asked:
            question["messages"] = [{"role": "system", "content": system}, *(
                message for message in question["messages"] if message["role"] != "system")]
    longest = max_new_tokens or (
        read_result(run)["recipe"]["max_new_tokens"] if run else None) or DEFAULT_NEW_TOKENS
    silence_libraries()
    said = {name: _answer_all(ref, [question["messages"] for question in asked], longest)
            for name, ref in found.items()}
    return [{"checkpoint": name, "prompt": question["prompt"], "answer": said[name][number]}
            | ({"wanted": question["wanted"]} if "wanted" in question else {})
            for number, question in enumerate(asked) for name in said]


def _answer_all(ref: CheckpointRef, conversations: list, longest: int) -> list[str]:
    model, tokenizer = ref.load()
    try:
        return generate_answers(model, tokenizer, conversations, longest)
    finally:
        del model
        release_memory()


def probe_questions(run: str | None) -> list[dict]:
    """The first questions of a run's task probes, each with the answer that is wanted."""
    if run is None:
        raise BadInput("nothing to ask: give a prompt, or a run, whose probe questions are then asked")
    roles = load_roles(recipe_from_dict(read_json(run, "recipe.json")["recipe"]))
    rows = [row for name in ROLES if name.endswith("_tasks") and name in roles
            for row in roles[name].probe[:QUESTIONS_PER_ROLE]]
    if not rows:
        raise BadInput(f"{run}: it has no probe with questions; give a prompt")
    return [{"prompt": " / ".join(message["content"] for message in row["messages"][:-1]),
             "wanted": row["messages"][-1]["content"], "messages": row["messages"][:-1]} for row in rows]


def format_answers(answers: list[dict]) -> str:
    """The answers as text: each prompt, and under it one line a checkpoint, with what is wanted if known."""
    names = dict.fromkeys(entry["checkpoint"] for entry in answers)
    width = min(max(len(name) for name in [*names, "wanted"]), TEXT_WIDTH // 2)
    lines = []
    for number in range(0, len(answers), len(names)):
        entries = answers[number:number + len(names)]
        lines += ["", *_wrapped("", printable_text(entries[0]["prompt"]))]
        if "wanted" in entries[0]:
            lines += _wrapped(f"  {'wanted':<{width}}  ", printable_text(entries[0]["wanted"]))
        for entry in entries:
            name = entry["checkpoint"]
            name = name if len(name) <= width else "…" + name[1 - width:]
            lines += _wrapped(f"  {name:<{width}}  ", printable_text(entry["answer"]) or "(nothing)")
    return "\n".join(lines[1:])


def _wrapped(head: str, text: str) -> list[str]:
    """Text under its heading, its own line breaks kept."""
    lines = [
        line for part in text.splitlines() for line in textwrap.wrap(part, TEXT_WIDTH - len(head)) or [""]
    ]
    return [(" " * len(head) if number else head) + line for number, line in enumerate(lines)]


def printable_text(text: str) -> str:
    """Text without what would steer a terminal: control characters are shown as escapes, line breaks stay."""
    return "".join(letter if letter.isprintable() or letter == "\n"
                   else letter.encode("unicode_escape").decode() for letter in text)
