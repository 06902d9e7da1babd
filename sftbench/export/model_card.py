"""The card of an exported model: what it is, how to use it, how it was trained.

Text from outside (names of files, a mode's sentence, questions, answers) is in code, where Markdown and
HTML mean nothing. The card's own words are in `model_card.md.jinja`.
"""

import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from huggingface_hub import ModelCard, ModelCardData

from ..data.chat_template import describe_template, prompt_options
from ..models.loading import load_tokenizer
from ..reports.ledger import format_result_ledger
from ..reports.plots import figure_png, loss_figure
from ..runs.events import read_events
from ..runs.folder import read_json, read_result
from ..templates.rendering import set_rendering

if TYPE_CHECKING:
    from .export import ExportCheck, ExportPlan


def write_model_card(folder: Path, plan: "ExportPlan", check: "ExportCheck", examples: list[dict]) -> None:
    """Write README.md and loss.png into an exported folder, from the run's folder and the comparison.

    Args:
        folder: the exported folder, with its tokenizer.
        plan: what was exported.
        check: the comparison with the run's model, and what was left out of the files.
        examples: questions to show, as `{prompt, wanted, answer}`.
    """
    result, stored = read_result(plan.run), read_json(plan.run, "recipe.json")
    tokenizer = set_rendering(load_tokenizer(str(folder)), plan.template_date)
    stages = result["stages"][:plan.number + 1]  # later ones gave another model
    drawn = plan.run / "loss.png"
    (folder / "loss.png").write_bytes(drawn.read_bytes() if drawn.exists() else
                                      figure_png(loss_figure(read_events(plan.run))))
    data = ModelCardData(
        library_name="peft" if plan.form == "adapter" else "transformers", base_model=plan.hub,
        pipeline_tag="text-generation", tags=["sftbench", plan.entry["method"]])
    recipe = {name: _hide_folders(value) if isinstance(value, str) else value
              for name, value in result["recipe"].items() if value is not None}
    ModelCard.from_template(
        data, str(Path(__file__).with_name("model_card.md.jinja")), code=_code, block=_block,
        plan=plan, result=result, stored=stored, check=check,
        title=re.sub(r"[^\w.-]+", "-", plan.run.resolve().name) or "run",
        chain=" → ".join(stage["name"] for stage in stages),
        base="FOLDER/base" if plan.own_base else plan.hub or "BASE",
        options=prompt_options(tokenizer) or {}, template=describe_template(tokenizer),
        ledger=format_result_ledger(result | {"stages": stages}),
        recipe=json.dumps(recipe, indent=1, ensure_ascii=False),
        unused_flags=", ".join(f"{name} {value}" for name, value in check.unused_flags.items()),
        unused_data={role: text for role, facts in stored["data"].items() if (text := _unused_data(facts))},
        examples="\n\n".join(f"{one['prompt']}\n  wanted: {one['wanted']}\n  answer: {one['answer']}"
                             for one in examples),
        versions=", ".join(map(" ".join, result["versions"].items()))).save(folder / "README.md")


def _unused_data(facts: dict) -> str:
    """What of a role's data was not trained on, in numbers; empty where all was."""
    fields = [f"{_code(name)} in {count:,} rows" for name, count in facts.get("unused", {}).items()]
    parts = ["fields that nothing reads: " + ", ".join(fields)] if fields else []
    for words, counts in (("rows that could not be used", facts.get("bad_reasons", {}).values()),
                          ("files passed over", [1 for _ in facts.get("passed_over", {})])):
        if counts:
            parts.append(f"{words}: {sum(counts):,}")
    return "; ".join(parts)


def _code(text: str) -> str:
    """Text from outside as inline code on one line, without folders."""
    return "`" + (re.sub(r"[`\s]+", " ", _hide_folders(text)) or " ") + "`"


def _block(text: str, language: str = "text") -> str:
    """Text from outside as a block of code that nothing in it can close."""
    fence = "`" * max([3, *(len(ticks) + 1 for ticks in re.findall(r"`+", text))])
    return f"{fence}{language}\n{text}\n{fence}"


def _hide_folders(text: str) -> str:
    """Text with each path in it (a source may list several) cut to its name; folders describe a machine."""
    # os.path: Path.exists raises OSError for a text longer than a file's name may be (Python 3.11)
    if os.path.exists(text):
        return Path(text).name or text
    return re.sub(r'[^,="\s][^,="]*', lambda part: Path(part[0]).name or part[0] if os.path.isabs(part[0])
                  or os.path.exists(part[0]) else part[0], text)
