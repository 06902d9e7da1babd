"""Export: a run's stage as a folder that plain transformers or PEFT loads, checked by loading it.

The folder is complete or does not exist. Before it gets its name it is loaded without this package's code and
given the prompts that the run's own model is given; other answers fail the export.
"""

import contextlib
import json
import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from ..data.chat_template import end_of_turn_ids, prompt_options, render_prompt
from ..errors import BadInput, RunFailed
from ..evaluation.chat import probe_questions
from ..evaluation.probes import bare_generation_config, generate_answers, generate_tokens
from ..models import loading
from ..models.checkpoint import CheckpointRef, check_start_revision, load_stage, state_of
from ..recipes.recipe import recipe_from_dict
from ..recipes.stages import StageSettings, stage_settings
from ..runs.folder import find_run, read_json, read_result, store_folder
from ..templates.rendering import render_settings, set_rendering, shows_system
from .model_card import write_model_card
from .older_readers import add_older_spellings

PROMPTS = ("Who are you?", "What is this about?", "Give me one example.")  # where a run has no questions
# Of SentencePiece, which llama.cpp's converter reads for some families, and of pictures and sound.
START_FILES = ("tokenizer.model", "preprocessor_config.json", "processor_config.json",
               "video_preprocessor_config.json")
# Settings on which it depends whether others count.
DECODING_MODES = ("do_sample", "num_beams", "use_cache", "return_dict_in_generate")
BASE = "base"  # folder of the weights that an adapter of a later stage is loaded on


@dataclass(frozen=True)
class ExportPlan:
    """What is written, and where it comes from."""

    run: Path
    number: int  # of the stage, from 0
    entry: dict  # the stage in result.json
    settings: StageSettings
    form: str  # merged or adapter
    start: str  # the run's start model: folder or hub name
    hub: str | None  # the start's hub name, if it has one
    max_new_tokens: int  # of an answer
    source: Path  # folder of the weights or the adapter in the stage store
    base: Path | str | None = None  # what an adapter is loaded on: weights of an earlier stage, or the start
    own_base: bool = False  # whether the base is in the stage store, and is exported too
    revision: str | None = None  # of a base on the hub
    template_date: str | None = None  # that prompts had in training, where the chat template shows one

    @property
    def quantised(self) -> bool:
        """Whether the adapter is loaded on a base in 4 bit, whose rounding the merged model does not have."""
        return self.form == "adapter" and self.entry["method"] == "qlora"


@dataclass(frozen=True)
class ExportCheck:
    """What the card says of the written folder beside the run's own figures."""

    prompts: int  # that the run's model and the exported one were given
    equal: int  # of these, answered equally by both
    unused_flags: dict  # generation settings of the start model that count for nothing, and were left out
    new_names_only: list[str]  # fields of config.json that older readers know by these names, and do not get


def export_stage(run: str | Path, folder: str | Path, stage: str | None = None, form: str | None = None,
                 rows: int = 0) -> dict:
    """Write a stage to a new folder and return what was checked.

    Args:
        run: the run's folder, or its name under `runs/`.
        folder: a new or empty folder.
        stage: its name or number from 1; None: the last.
        form: `merged` (default where weights can be merged) or `adapter`.
        rows: number of the probe's questions that the card shows.

    Returns `{folder, form, stage, prompts, equal, bytes}`. Raises BadInput for a folder with files in it and
    for a form that the method does not have, RunFailed for damaged weights or other answers.
    """
    run, folder = find_run(run), Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise BadInput(f"{folder} is not empty; name a new folder", field="folder", where=str(folder))
    plan = _make_plan(run, stage, form)
    loading.silence_libraries()
    questions = _answer_by_run(plan)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as temporary:
        new = Path(temporary) / "export"
        remarks = _write_files(new, plan)
        equal = _count_equal(new, plan, questions)
        examples = [question for question in questions if "wanted" in question][:rows]
        write_model_card(new, plan, ExportCheck(len(questions), equal, *remarks), examples)
        for path in (new, *new.rglob("*")):  # safetensors (0.8) writes files that their owner alone may read
            path.chmod(0o755 if path.is_dir() else 0o644)
        new.rename(folder)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return {"folder": str(folder), "form": plan.form, "stage": plan.entry["name"], "prompts": len(questions),
            "equal": equal, "bytes": size}


def _make_plan(run: Path, stage: str | None, form: str | None) -> ExportPlan:
    """What is to be written; raises BadInput for an unknown stage or form and for a changed start model."""
    result, store = read_result(run), store_folder(run)
    number = CheckpointRef.parse(f"{run}:{stage}" if stage else str(run)).stage
    if number is None:
        raise BadInput(f"{run}: start is the model before the first stage, not a stage; name one of "
                       f"{', '.join(entry['name'] for entry in result['stages'])}", field="stage")
    entry, recipe = result["stages"][number], recipe_from_dict(result["recipe"])
    start, form = result["start"]["model"], _choose_form(entry["method"], form)
    # A run's recipe states a hub model's commit; the revision of a folder is a hash of its files.
    on_hub = recipe.model_revision == read_json(run, "recipe.json")["revision"]
    plan = ExportPlan(
        run=run, number=number, entry=entry, settings=stage_settings(recipe, entry["kind"]), form=form,
        start=start, hub=start if on_hub else None, max_new_tokens=recipe.max_new_tokens,
        template_date=recipe.template_date,
        source=store / entry["key"] / ("model" if form == "merged" else "adapter"))
    if form == "merged":
        return plan
    if weights := state_of(run, number - 1 if number else None).weights:
        return replace(plan, base=store / weights / "model", own_base=True)
    revision = check_start_revision(run)
    return replace(plan, base=loading.locate_model(start), revision=revision if on_hub else None)


def _choose_form(method: str, form: str | None) -> str:
    """The form to write, the given one or the method's default; raises BadInput if the method lacks it."""
    if method == "ptuning_v2" and form == "merged":
        raise BadInput("a prefix (ptuning_v2) cannot be merged into the weights; export it as --adapter",
                       field="form")
    if method in ("full", "freeze") and form == "adapter":
        raise BadInput(f"{method} trains the weights themselves, there is no adapter; export it as --merged",
                       field="form")
    return form or ("adapter" if method == "ptuning_v2" else "merged")


def _write_files(folder: Path, plan: ExportPlan) -> tuple[dict, list[str]]:
    """Write weights, tokenizer and generation settings; for an adapter of a later stage also its base.

    Returns the last two fields of an ExportCheck.
    """
    shutil.copytree(plan.source, folder)
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty card
    saved = "adapter" if plan.entry["method"] == "ptuning_v2" else "model"
    tokenizer = loading.load_tokenizer(str(plan.source.parent / saved))
    tokenizer.save_pretrained(folder)
    _copy_start_files(folder, plan)
    weights, new_names_only = Path(plan.base or folder), []
    if plan.own_base:
        weights = shutil.copytree(plan.base, folder / BASE)
        new_names_only = add_older_spellings(weights, loading.load_tokenizer(str(weights)))
    if plan.form == "adapter":
        config = json.loads((folder / "adapter_config.json").read_text("utf-8"))
        config |= {"base_model_name_or_path": BASE if plan.own_base else plan.base, "revision": plan.revision}
        (folder / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True), "utf-8")
    new_names_only = add_older_spellings(folder, tokenizer) or new_names_only
    settings = _generation_config(weights, plan, tokenizer)
    unused = _drop_unused_flags(settings)
    for target in (folder, *([weights] if plan.own_base else [])):
        settings.save_pretrained(target)
    return unused, new_names_only


def _copy_start_files(folder: Path, plan: ExportPlan) -> None:
    """Copy the start model's files that still hold and that nothing else writes, where it is at hand."""
    with contextlib.suppress(BadInput):  # gone since, or no longer cached: few readers need these
        start = loading.fetch_model(plan.start, read_result(plan.run)["recipe"]["model_revision"])
        for name in START_FILES:
            if (start / name).exists():
                shutil.copyfile(start / name, folder / name)


def _generation_config(weights: Path, plan: ExportPlan, tokenizer) -> GenerationConfig:
    """The model's own generation settings, changed to stop where training ended its answers."""
    try:
        settings = GenerationConfig.from_pretrained(str(weights), revision=plan.revision)
    except OSError:  # models of before 2023 have them in config.json
        settings = GenerationConfig.from_pretrained(str(weights), "config.json", revision=plan.revision,
                                                    _from_model_config=True)
    vars(settings).pop("_from_model_config", None)  # transformers 4 would derive them anew
    ends = settings.eos_token_id
    ends = [ends] if isinstance(ends, int) else ends or []
    settings.eos_token_id = sorted({*ends, *end_of_turn_ids(tokenizer)})
    settings.pad_token_id = tokenizer.pad_token_id
    return settings


def _drop_unused_flags(settings: GenerationConfig) -> dict:
    """Unset the settings that count for nothing, as `temperature` without sampling, and return them.

    transformers (5.23) loads models that are published with such flags, but refuses to save them.
    """
    given = settings.to_diff_dict()
    modes = {name: given[name] for name in DECODING_MODES if name in given}
    unused = {}
    for name, value in given.items():
        try:
            GenerationConfig(**modes | {name: value}).validate(strict=True)
        except ValueError:
            unused[name] = value
            setattr(settings, name, None)
    return unused


def _answer_by_run(plan: ExportPlan) -> list[dict]:
    """The run's first probe questions (plain ones where it has none) with the `answer` of its own model.

    Raises BadInput or RunFailed for lost or damaged weights.
    """
    try:
        questions = probe_questions(plan.run)
    except BadInput:
        questions = [{"prompt": text, "messages": [{"role": "user", "content": text}]} for text in PROMPTS]
    model, tokenizer = load_stage(plan.run, plan.number)
    answers = [generate_answers(model, tokenizer, [question], plan.max_new_tokens)[0]
               for question in questions]
    del model
    loading.release_memory()
    return [question | {"answer": answer} for question, answer in zip(questions, answers, strict=True)]


def _count_equal(folder: Path, plan: ExportPlan, questions: list[dict]) -> int:
    """The number of the folder's answers that are the run's; others raise RunFailed, unless quantised."""
    answers = _answer_by_export(folder, plan, questions)
    equal = sum(question["answer"] == answer for question, answer in zip(questions, answers, strict=True))
    if equal < len(answers) and not plan.quantised:
        raise RunFailed(f"the exported {plan.form} of {plan.entry['name']} answers {len(answers) - equal} of "
                        f"{len(answers)} prompts differently from the run, so nothing is exported")
    return equal


def _answer_by_export(folder: Path, plan: ExportPlan, questions: list[dict]) -> list[str]:
    """The answers of the written folder, by transformers and PEFT alone, in the precision of the run's."""
    tokenizer = set_rendering(AutoTokenizer.from_pretrained(folder), plan.template_date)
    base = (folder / BASE if plan.own_base else plan.base) if plan.form == "adapter" else folder
    extra = {"quantization_config": loading.make_bnb_config(plan.settings)} if plan.quantised else {}
    model = AutoModelForCausalLM.from_pretrained(
        base, revision=plan.revision, dtype=torch.float32, use_safetensors=True,
        device_map={"": loading.select_device()}, **extra)
    if plan.form == "adapter":
        model = PeftModel.from_pretrained(model, folder)
    model.eval()
    stored, answers = GenerationConfig.from_pretrained(str(folder)), []
    settings = bare_generation_config(stored.eos_token_id, stored.pad_token_id, plan.max_new_tokens)
    for question in questions:
        batch = tokenizer(_render_plainly(tokenizer, question), add_special_tokens=False,
                          return_tensors="pt").to(model.device)
        new = generate_tokens(model, batch, settings)[0]
        answers.append(tokenizer.decode(new, skip_special_tokens=True).strip())
    del model
    loading.release_memory()
    return answers


def _render_plainly(tokenizer, question: dict) -> str:
    """The prompt as any server renders it, unless the template alone cannot render that of training."""
    messages, options = question["messages"], prompt_options(tokenizer)
    folded = messages[0]["role"] == "system" and not shows_system(tokenizer)
    plain = not question.get("tools") and all(message.keys() == {"role", "content"} for message in messages)
    if options is None or folded or not plain or render_settings(tokenizer).date:
        return render_prompt(tokenizer, messages, question.get("tools"))
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **options)
