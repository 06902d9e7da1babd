"""The card of an exported model: what it is, how to use it, how it came about.

Text from outside (names of files, questions, answers) stands in code, where Markdown and HTML mean nothing.
"""

import html
import json
import re
from pathlib import Path

from ..data.chat_template import describe_template, prompt_options
from ..models.loading import load_tokenizer
from ..reports.ledger import format_result_ledger
from ..reports.plots import figure_png, loss_figure
from ..runs.events import read_events
from ..runs.folder import read_json, read_result


def write_model_card(place: Path, run: str, plan: dict, check: dict, examples: list[dict]) -> None:
    """Write README.md and loss.png into an exported folder, from the run's folder and what was checked."""
    result, stored = read_result(run), read_json(run, "recipe.json")
    drawn = Path(run) / "loss.png"
    (place / "loss.png").write_bytes(drawn.read_bytes() if drawn.exists() else
                                     figure_png(loss_figure(read_events(run))))
    entry, mode = plan["entry"], stored["mode"]
    chain = " → ".join(stage["name"] for stage in result["stages"][:plan["number"] + 1])
    lines = [*_head(plan), f"# {_title(run)}, stage {entry['name']}", "",
             f"Mode {_code(result['recipe']['mode'])}: {html.escape(mode['sentence'], quote=False)} "
             f"This is {_code(plan['start'])} after {chain}, trained by {entry['method']} "
             f"({entry['trainable_parameters']:,} of {entry['parameters']:,} parameters).", "",
             *_use(place, plan),
             f"Loaded by plain {'PEFT' if plan['form'] == 'adapter' else 'transformers'}, it gave "
             f"{check['equal']} of {check['asked']} answers as the run's own model did.", "",
             "## What was gained and what was lost", "", *_fenced(format_result_ledger(result)), "",
             "![Loss over all stages](loss.png)", "", "## Data", "", *_data(stored["data"], entry), "",
             *_examples(examples), "## Recipe", "",
             *_fenced(json.dumps(_short(result["recipe"]), indent=1, ensure_ascii=False), "json"), "",
             f"Made with {', '.join(map(' '.join, result['versions'].items()))}."]
    (place / "README.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _title(run: str) -> str:
    """The run's folder as a title: letters, digits and what joins them."""
    return re.sub(r"[^\w.-]+", "-", Path(run).resolve().name) or "run"


def _code(text: str) -> str:
    """Text from outside as inline code on one line; a folder's path is cut to its name."""
    return "`" + re.sub(r"[`\s]+", " ", _name(text)) + "`"


def _name(value: str) -> str:
    """A path without the folders before it, which tell of a machine, not of a model; other text as it is."""
    return Path(value).name if Path(value).is_absolute() or Path(value).exists() else value


def _fenced(text: str, language: str = "text") -> list[str]:
    """Text from outside as a block of code that nothing in it can close."""
    fence = "`" * max([3, *(len(ticks) + 1 for ticks in re.findall(r"`+", text))])
    return [fence + language, *text.split("\n"), fence]


def _head(plan: dict) -> list[str]:
    """The hub's metadata."""
    library = "peft" if plan["form"] == "adapter" else "transformers"
    base = [f"base_model: {plan['hub']}"] if plan["hub"] else []
    return ["---", f"library_name: {library}", *base, "pipeline_tag: text-generation", "tags:", "- sftbench",
            f"- {plan['entry']['method']}", "---", ""]


def _use(place: Path, plan: dict) -> list[str]:
    """How to load and ask it, as code, and what a server must know."""
    tokenizer = load_tokenizer(str(place))
    options = prompt_options(tokenizer)
    named = "".join(f", {name}={value}" for name, value in (options or {}).items())
    folder, adapter = "FOLDER", plan["form"] == "adapter"
    base = (f'"{folder}/base"' if plan["own_base"] else json.dumps(plan["hub"] or _name(plan["start"])))
    revision = f", revision={json.dumps(plan['revision'])}" if plan["hub"] and plan["revision"] else ""
    config = ", quantization_config=four_bit" if plan["quantised"] else ""
    loading = [f'model = AutoModelForCausalLM.from_pretrained({base}{revision}{config})',
               f'model = PeftModel.from_pretrained(model, "{folder}")'] if adapter else [
               f'model = AutoModelForCausalLM.from_pretrained("{folder}")']
    if plan["quantised"]:
        loading.insert(0, 'four_bit = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type='
                          f'"{plan["settings"].bnb_4bit_quant_type}", bnb_4bit_use_double_quant='
                          f'{plan["settings"].bnb_4bit_use_double_quant})')
    imports = ["from peft import PeftModel"] * adapter + [
        "from transformers import AutoModelForCausalLM, AutoTokenizer"
        + ", BitsAndBytesConfig" * plan["quantised"]]
    return ["## Use", "", *_fenced("\n".join([
        *imports, "", f'tokenizer = AutoTokenizer.from_pretrained("{folder}")', *loading,
        'messages = [{"role": "user", "content": "…"}]',
        "batch = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True,",
        f'                                      return_tensors="pt"{named})',
        "answer = model.generate(**batch, max_new_tokens=64, do_sample=False)",
        'print(tokenizer.decode(answer[0, batch["input_ids"].shape[1]:], skip_special_tokens=True))']),
        "python"), "", f"Chat template: {html.escape(describe_template(tokenizer), quote=False)}.", ""]


def _data(roles: dict, entry: dict) -> list[str]:
    """One line a role: where it came from, its rows, and what this one stage drew from it."""
    lines = ["| role | source | rows | held out | trained on in this stage |", "|---|---|---|---|---|"]
    for role, facts in roles.items():
        drawn = entry["data"].get(role)
        here = f"{drawn['tokens']:,} tokens, {drawn['share']:.0%}" if drawn else "–"
        source = _code(str(facts.get("source"))).replace("|", "\\|")
        rows, held_out = (facts.get(name, 0) for name in ("rows", "probe_rows"))
        lines.append(f"| {role} | {source} | {rows:,} | {held_out:,} | {here} |")
    return lines


def _examples(examples: list[dict]) -> list[str]:
    """Questions of the probe with the wanted and the given answer, where they were asked for."""
    if not examples:
        return []
    text = "\n\n".join(f"{one['prompt']}\n  wanted: {one['wanted']}\n  answer: {one['answer']}"
                       for one in examples)
    return ["## Examples", "", *_fenced(text), ""]


def _short(recipe: dict) -> dict:
    """The recipe without what is not set and without the folders of paths."""
    return {name: _name(value) if isinstance(value, str) else value for name, value in recipe.items()
            if value is not None}
