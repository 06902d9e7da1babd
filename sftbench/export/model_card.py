"""The card of an exported model: what it is, how to use it, how it came about.

Text from outside (names of files, questions, answers) stands in code, where Markdown and HTML mean nothing.
"""

import html
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

from huggingface_hub import ModelCardData
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ..data.chat_template import describe_template, prompt_options
from ..models.loading import load_tokenizer
from ..reports.ledger import format_result_ledger
from ..reports.plots import figure_png, loss_figure
from ..runs.events import read_events
from ..runs.folder import read_json, read_result

if TYPE_CHECKING:
    from .export import ExportPlan


def write_model_card(folder: Path, plan: "ExportPlan", check: dict, examples: list[dict]) -> None:
    """Write README.md and loss.png into an exported folder, from the run's folder and what was checked."""
    result, stored = read_result(plan.run), read_json(plan.run, "recipe.json")
    drawn = plan.run / "loss.png"
    (folder / "loss.png").write_bytes(drawn.read_bytes() if drawn.exists() else
                                      figure_png(loss_figure(read_events(plan.run))))
    library, tokenizer = "peft" if plan.form == "adapter" else "transformers", load_tokenizer(str(folder))
    # not ModelCard.from_template, whose templates have no filters (huggingface_hub 2.4)
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), undefined=StrictUndefined,
                              trim_blocks=True, keep_trailing_newline=True)
    environment.filters |= {"code": _code, "block": _block, "text": lambda one: html.escape(one, quote=False)}
    text = environment.get_template("model_card.md.jinja").render(
        card_data=ModelCardData(library_name=library, base_model=plan.hub, pipeline_tag="text-generation",
                                tags=["sftbench", plan.entry["method"]]),
        title=re.sub(r"[^\w.-]+", "-", plan.run.resolve().name) or "run", stage=plan.entry["name"],
        recipe=result["recipe"], sentence=stored["mode"]["sentence"], start=plan.start, entry=plan.entry,
        chain=" → ".join(stage["name"] for stage in result["stages"][:plan.number + 1]),
        use=_use(plan, prompt_options(tokenizer) or {}), template=describe_template(tokenizer),
        local_base=plan.form == "adapter" and not plan.own_base and not plan.hub,
        library="PEFT" if library == "peft" else library, check=check,
        ledger=format_result_ledger(result), roles=stored["data"],
        examples="\n\n".join(f"{one['prompt']}\n  wanted: {one['wanted']}\n  answer: {one['answer']}"
                             for one in examples),
        shown_recipe=json.dumps(_shown_recipe(result["recipe"]), indent=1, ensure_ascii=False),
        versions=", ".join(map(" ".join, result["versions"].items())))
    (folder / "README.md").write_text(text, encoding="utf-8")


def _code(text: str) -> str:
    """Text from outside as inline code on one line; a folder's path is cut to its name."""
    return "`" + re.sub(r"[`\s]+", " ", _name(text)) + "`"


def _block(text: str, language: str = "text") -> str:
    """Text from outside as a block of code that nothing in it can close."""
    fence = "`" * max([3, *(len(ticks) + 1 for ticks in re.findall(r"`+", text))])
    return f"{fence}{language}\n{text}\n{fence}"


def _name(value: str) -> str:
    """A path without the folders before it, which tell of a machine, not of a model; other text unchanged."""
    return Path(value).name if Path(value).is_absolute() or Path(value).exists() else value


def _shown_recipe(recipe: dict) -> dict:
    """The recipe without what is not set and without the folders of paths."""
    return {name: _name(value) if isinstance(value, str) else value for name, value in recipe.items()
            if value is not None}


def _use(plan: "ExportPlan", options: dict) -> str:
    """How to load and prompt it, as code."""
    imports = "from transformers import AutoModelForCausalLM, AutoTokenizer"
    loading = ['model = AutoModelForCausalLM.from_pretrained("FOLDER")']
    if plan.form == "adapter":
        imports = f"from peft import PeftModel\n{imports}" + ", BitsAndBytesConfig" * plan.quantised
        base = '"FOLDER/base"' if plan.own_base else json.dumps(plan.hub or _name(plan.start))
        revision = f", revision={json.dumps(plan.revision)}" if plan.hub and plan.revision else ""
        config = ", quantization_config=four_bit" if plan.quantised else ""
        loading = [f"model = AutoModelForCausalLM.from_pretrained({base}{revision}{config})",
                   'model = PeftModel.from_pretrained(model, "FOLDER")']
    if plan.quantised:
        loading.insert(0, "four_bit = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="
                          f'"{plan.settings.bnb_4bit_quant_type}", bnb_4bit_use_double_quant='
                          f"{plan.settings.bnb_4bit_use_double_quant})")
    named = "".join(f", {name}={value}" for name, value in options.items())
    return "\n".join([
        imports, "", 'tokenizer = AutoTokenizer.from_pretrained("FOLDER")', *loading,
        'messages = [{"role": "user", "content": "…"}]',
        "batch = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True,",
        f'                                      return_tensors="pt"{named})',
        "answer = model.generate(**batch, max_new_tokens=64, do_sample=False)",
        'print(tokenizer.decode(answer[0, batch["input_ids"].shape[1]:], skip_special_tokens=True))'])
