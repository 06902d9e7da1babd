"""Export: a run's stage as a folder that plain transformers or PEFT loads, checked by loading it.

The folder is complete or not there. After writing, it is loaded without this package's code and given the
prompts that the run's own model is given; other answers fail the export.
"""

import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from ..data.chat_template import answer_frame, end_of_turn_ids, prompt_options, render_prompt
from ..errors import BadInput, RunFailed
from ..evaluation.chat import probe_questions
from ..evaluation.probes import generate_answers
from ..models.checkpoint import CheckpointRef, check_start_revision, load_stage, state_of
from ..models.loading import (
    load_tokenizer,
    locate_model,
    make_bnb_config,
    release_memory,
    select_device,
    silence_libraries,
)
from ..recipes.recipe import recipe_from_dict
from ..recipes.stages import StageSettings, stage_settings
from ..runs.folder import find_run, read_result, store_folder
from ..runs.stage_store import find_stage
from .model_card import write_model_card

PROMPTS = ("Who are you?", "What is this about?", "Give me one example.")  # where a run has no questions
BASE = "base"  # folder of the weights that an adapter of a later stage sits on


@dataclass(frozen=True)
class ExportPlan:
    """What is written, and where it comes from."""

    run: Path
    number: int  # of the stage, from 0
    entry: dict  # the stage in result.json
    settings: StageSettings
    form: str  # merged or adapter
    start: str  # the run's start model: folder or hub name
    source: Path  # folder of the weights or the adapter in the stage store
    base: Path | str | None = None  # what an adapter goes on: weights of an earlier stage, or the start
    own_base: bool = False  # whether the base lies in the stage store, and is exported too
    revision: str | None = None  # of the start model, where the adapter goes on it

    @property
    def hub(self) -> str | None:
        """The start model's hub name, if it has one."""
        return None if Path(locate_model(self.start)).is_dir() else self.start

    @property
    def quantised(self) -> bool:
        """Whether the adapter goes on a base in 4 bit, whose rounding the merged model does not have."""
        return self.form == "adapter" and self.entry["method"] == "qlora"


def export_stage(run: str | Path, folder: str | Path, stage: str | None = None, form: str | None = None,
                 rows: int = 0) -> dict:
    """Write a stage to a new folder and return what was checked.

    Args:
        run: the run's folder, or its name under `runs/`.
        folder: a new or empty folder.
        stage: its name or number from 1; None: the last.
        form: `merged` (default where weights can be merged) or `adapter`.
        rows: so many questions of the probe are shown on the card.

    Returns `{folder, form, stage, asked, equal, bytes}`. Raises BadInput for a folder with files in it and a
    form that the method has not, RunFailed for damaged weights or other answers.
    """
    run, folder = find_run(run), Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise BadInput(f"{folder} is not empty; name a new folder", field="folder", where=str(folder))
    result = read_result(run)
    number = CheckpointRef.parse(f"{run}:{stage}" if stage else str(run)).stage
    if number is None:
        raise BadInput(f"{run}: the start is no stage of this run; it lies where it came from", field="stage")
    silence_libraries()
    plan = _make_plan(run, result, number, form)
    questions, limit = _questions(run), result["recipe"]["max_new_tokens"]
    answers = _answers_of_run(plan, questions, limit)
    folder.parent.mkdir(parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        _write_files(new, plan)
        equal = sum(map(str.__eq__, answers, _answers_of_export(new, plan, questions, limit)))
        if equal < len(questions) and not plan.quantised:
            raise RunFailed(f"the written {plan.form} of {plan.entry['name']} answers "
                            f"{len(questions) - equal} of {len(questions)} prompts otherwise than the run, "
                            "so nothing is exported")
        shown = [{**question, "answer": answer} for question, answer in zip(questions, answers, strict=True)
                 if "wanted" in question][:rows]
        write_model_card(new, plan, {"asked": len(questions), "equal": equal}, shown)
        for path in (new, *new.rglob("*")):  # temporary folders and safetensors are for their owner alone
            path.chmod(0o755 if path.is_dir() else 0o644)
        new.rename(folder)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return {"folder": str(folder), "form": plan.form, "stage": plan.entry["name"], "asked": len(questions),
            "equal": equal, "bytes": size}


def _make_plan(run: Path, result: dict, number: int, form: str | None) -> ExportPlan:
    """Where everything to be written lies, each checked: stages against their manifests, the start's hash."""
    entry, store, start = result["stages"][number], store_folder(run), result["start"]["model"]
    form = _choose_form(entry["method"], form)
    settings = stage_settings(recipe_from_dict(result["recipe"]), entry["kind"])
    if find_stage(store, entry["key"]) is None:
        raise BadInput(f"{store / entry['key']}: this stage's weights are gone; run the recipe again",
                       where=str(store / entry["key"]))
    source = store / entry["key"] / ("model" if form == "merged" else "adapter")
    if form == "merged":
        return ExportPlan(run, number, entry, settings, form, start, source)
    weights = state_of(run, number - 1 if number else None).weights
    if weights:
        return ExportPlan(run, number, entry, settings, form, start, source, store / weights / "model", True)
    return ExportPlan(run, number, entry, settings, form, start, source, locate_model(start),
                      revision=check_start_revision(run))


def _choose_form(method: str, form: str | None) -> str:
    """The form to write; raises BadInput where the method has none of the kind."""
    if method == "ptuning_v2" and form == "merged":
        raise BadInput("a prefix (ptuning_v2) cannot be merged into the weights; export it as --adapter",
                       field="form")
    if method in ("full", "freeze") and form == "adapter":
        raise BadInput(f"{method} trains the weights themselves, there is no adapter; export it as --merged",
                       field="form")
    return form or ("adapter" if method == "ptuning_v2" else "merged")


def _write_files(folder: Path, plan: ExportPlan) -> None:
    """Weights, tokenizer and generation settings; for an adapter of a later stage also what it sits on."""
    shutil.copytree(plan.source, folder, dirs_exist_ok=True)
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty card
    tokenizer = load_tokenizer(str(plan.source.parent / (
        "adapter" if plan.entry["method"] == "ptuning_v2" else "model")))
    tokenizer.save_pretrained(folder)
    weights = Path(plan.base or folder)
    if plan.own_base:
        weights = shutil.copytree(plan.base, folder / BASE)
    if plan.form == "adapter":
        config = json.loads((folder / "adapter_config.json").read_text())
        config["base_model_name_or_path"] = BASE if plan.own_base else plan.hub or plan.base
        config["revision"] = plan.revision if plan.hub and not plan.own_base else None
        (folder / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True))
    _generation_config(weights, plan, tokenizer).save_pretrained(folder)


def _generation_config(weights: Path, plan: ExportPlan, tokenizer) -> GenerationConfig:
    """The model's own generation settings, made to stop where training ended its answers."""
    try:
        settings = GenerationConfig.from_pretrained(
            str(weights), revision=plan.revision if plan.hub else None)
    except OSError:
        settings = GenerationConfig()
    ends = settings.eos_token_id
    ends = {*(ends if isinstance(ends, list) else [ends] if ends is not None else [])}
    settings.eos_token_id = sorted(ends | set(end_of_turn_ids(tokenizer)))
    settings.pad_token_id = tokenizer.pad_token_id
    return settings


def _questions(run: Path) -> list[dict]:
    """The run's first probe questions, or plain ones where its data is gone or holds none."""
    try:
        return probe_questions(run)
    except BadInput:
        return [{"prompt": text, "messages": [{"role": "user", "content": text}]} for text in PROMPTS]


def _answers_of_run(plan: ExportPlan, questions: list[dict], limit: int) -> list[str]:
    model, tokenizer = load_stage(plan.run, plan.number)
    try:
        return generate_answers(model, tokenizer, [question["messages"] for question in questions], limit,
                                batch_size=1)
    finally:
        del model
        release_memory()


@torch.no_grad()
def _answers_of_export(folder: Path, plan: ExportPlan, questions: list[dict], limit: int) -> list[str]:
    """The answers of the written folder, by transformers and PEFT alone, in the precision of the run's."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    base = (folder / BASE if plan.own_base else plan.base) if plan.form == "adapter" else folder
    extra = {"quantization_config": make_bnb_config(plan.settings)} if plan.quantised else {}
    model = AutoModelForCausalLM.from_pretrained(
        base, revision=plan.revision if plan.hub else None, dtype=torch.float32, use_safetensors=True,
        device_map={"": select_device()}, **extra)
    if plan.form == "adapter":
        model = PeftModel.from_pretrained(model, folder)
    model.eval()
    settings, answers = GenerationConfig.from_pretrained(str(folder)), []
    for question in questions:
        batch = tokenizer(_prompt(tokenizer, question["messages"]), add_special_tokens=False,
                          return_tensors="pt").to(model.device)
        tokens = model.generate(**batch, generation_config=settings, do_sample=False, max_new_tokens=limit)
        new = tokens[0, batch["input_ids"].shape[1]:]
        answers.append(tokenizer.decode(new, skip_special_tokens=True).strip())
    del model
    release_memory()
    return answers


def _prompt(tokenizer, messages: list[dict]) -> str:
    """The prompt as any server makes it, unless the template alone cannot make that of training."""
    options, folds = prompt_options(tokenizer), answer_frame(tokenizer).fold
    if options is None or (folds and messages[0]["role"] == "system"):
        return render_prompt(tokenizer, messages)
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **options)
