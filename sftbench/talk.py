"""Talk: the same prompts to several checkpoints, answers side by side.

A checkpoint is text: a run's folder (its last stage), `RUN:start`, `RUN:STAGE` (the stage's name, or its
number from 1), or a model's folder or name.
"""

import textwrap
from pathlib import Path

from . import data, evaluate, models, runs, states
from .errors import BadInput
from .recipe import ROLES, from_dict

WIDTH = 100
QUESTIONS = 3  # of each task probe, where no prompt is given
NEW_TOKENS = 64  # where no run says how long its answers are


def talk(checkpoints: list[str], prompts: list[str] | None = None, system: str | None = None,
         max_new_tokens: int | None = None) -> list[dict]:
    """Greedy answers of each checkpoint to each prompt, as `{checkpoint, prompt, answer}`, prompt by prompt.

    Without prompts the first questions of the first run's probes are asked, and `wanted` holds their answers.
    One checkpoint is in memory at a time. Raises BadInput for a checkpoint that is not there, before any is
    loaded.
    """
    found = {str(name): find(str(name)) for name in checkpoints}
    asked = [{"prompt": text, "messages": [{"role": "user", "content": text}]} for text in prompts or []]
    run = next((run for run, _ in found.values() if run), None)
    if not prompts:
        asked = questions(run)
    if system:
        for question in asked:
            question["messages"] = [{"role": "system", "content": system}, *(
                message for message in question["messages"] if message["role"] != "system")]
    longest = max_new_tokens or (
        runs.read_result(run)["recipe"]["max_new_tokens"] if run else None) or NEW_TOKENS
    models.quiet_libraries()
    said = {name: _answers(run, stage, [question["messages"] for question in asked], longest)
            for name, (run, stage) in found.items()}
    return [{"checkpoint": name, "prompt": question["prompt"], "answer": said[name][number]}
            | ({"wanted": question["wanted"]} if "wanted" in question else {})
            for number, question in enumerate(asked) for name in said]


def find(checkpoint: str) -> tuple[str | None, int | str | None]:
    """A checkpoint's run and stage: its number, None for the start; or None and a model's name.

    Raises BadInput, naming the run's stages or what is missing.
    """
    run, _, stage = checkpoint.rpartition(":")
    if _is_run(whole := str(runs.find(checkpoint))):
        run, stage = whole, ""
    elif not run or not _is_run(run := str(runs.find(run))):
        try:
            return None, str(models.locate(checkpoint))
        except BadInput as error:
            if Path(checkpoint).exists():
                raise
            raise BadInput(f"{checkpoint}: there is no run of that name, neither as a folder nor under "
                           f"{runs.root()}/, and no model: {error}") from None
    names = [entry["name"] for entry in runs.read_result(run)["stages"]]
    if stage.isdigit() and 1 <= int(stage) <= len(names):
        return run, int(stage) - 1
    if stage not in ("", "start", *names):
        raise BadInput(f"{run}: no stage {stage!r}; it has start, {', '.join(names)}")
    return run, None if stage == "start" else names.index(stage) if stage else len(names) - 1


def _is_run(folder: str) -> bool:
    return (Path(folder) / "recipe.json").exists() or (Path(folder) / "result.json").exists()


def load(run: str | None, stage: int | str | None):
    """The model and tokenizer of what `find` returns."""
    if run and stage is not None:
        return states.load(run, stage)
    if run:
        result = runs.read_result(run)
        states.check_start(run)
        name, revision = result["start"]["model"], result["recipe"]["model_revision"]
    else:
        name, revision = stage, None
    return models.load_model(name, revision), models.load_tokenizer(name, revision)


def _answers(run: str | None, stage: int | str | None, conversations: list, longest: int) -> list[str]:
    model, tokenizer = load(run, stage)
    try:
        return evaluate.answers(model, tokenizer, conversations, longest)
    finally:
        del model
        models.release_memory()


def questions(run: str | None) -> list[dict]:
    """The first questions of a run's task probes, each with the answer that is wanted."""
    if run is None:
        raise BadInput("nothing to ask: give a prompt, or a run, whose probe questions are then asked")
    roles = data.load_roles(from_dict(runs.read_json(run, "recipe.json")["recipe"]))
    rows = [row for name in ROLES if name.endswith("_tasks") and name in roles
            for row in roles[name].probe[:QUESTIONS]]
    if not rows:
        raise BadInput(f"{run}: it has no probe with questions; give a prompt")
    return [{"prompt": " / ".join(message["content"] for message in row["messages"][:-1]),
             "wanted": row["messages"][-1]["content"], "messages": row["messages"][:-1]} for row in rows]


def table(answers: list[dict]) -> str:
    """The answers as text: each prompt, and under it one line a checkpoint, with what is wanted if known."""
    names = dict.fromkeys(entry["checkpoint"] for entry in answers)
    width = min(max(len(name) for name in [*names, "wanted"]), WIDTH // 2)
    lines = []
    for number in range(0, len(answers), len(names)):
        entries = answers[number:number + len(names)]
        lines += ["", *_wrapped("", plain(entries[0]["prompt"]))]
        if "wanted" in entries[0]:
            lines += _wrapped(f"  {'wanted':<{width}}  ", plain(entries[0]["wanted"]))
        for entry in entries:
            name = entry["checkpoint"]
            name = name if len(name) <= width else "…" + name[1 - width:]
            lines += _wrapped(f"  {name:<{width}}  ", plain(entry["answer"]) or "(nothing)")
    return "\n".join(lines[1:])


def _wrapped(head: str, text: str) -> list[str]:
    """Text under its heading, its own line breaks kept."""
    lines = [line for part in text.splitlines() for line in textwrap.wrap(part, WIDTH - len(head)) or [""]]
    return [(" " * len(head) if number else head) + line for number, line in enumerate(lines)]


def plain(text: str) -> str:
    """Text without what would steer a terminal: control characters are shown as escapes, line breaks stay."""
    return "".join(letter if letter.isprintable() or letter == "\n"
                   else letter.encode("unicode_escape").decode() for letter in text)
