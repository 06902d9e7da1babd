"""Export: a run's stage as a folder that plain transformers or PEFT loads, checked by loading it.

The folder is whole or not there. After writing, it is loaded without this package's code and asked what the
run's own model is asked; different answers fail.
"""

import json
import os
import shutil
import tempfile
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from ..data.chat_template import answer_frame, end_of_turn_ids, prompt_options, render_prompt
from ..errors import BadInput, RunFailed
from ..evaluation.chat import probe_questions
from ..evaluation.probes import generate_answers
from ..models.checkpoint import CheckpointRef, check_start_revision, load_stage
from ..models.loading import (
    load_tokenizer,
    locate_model,
    make_bnb_config,
    release_memory,
    select_device,
    silence_libraries,
)
from ..recipes.recipe import recipe_from_dict
from ..recipes.stages import stage_settings
from ..runs.folder import find_run, read_result, store_folder
from ..runs.stage_store import find_stage
from .model_card import write_model_card

FORMS = ("merged", "adapter")
PROMPTS = ("Who are you?", "What is this about?", "Give me one example.")  # where a run has no questions
BASE = "base"  # folder of the weights that an adapter of a later stage sits on


def export_stage(run: str | Path, folder: str | Path, stage: str | None = None, form: str | None = None,
           rows: int = 0) -> dict:
    """Write a stage (its name or number from 1; None: the last) to a new folder; returns what was checked.

    `form` is `merged` (default where weights can be merged) or `adapter`. The card shows `rows` of the
    probe's questions, none by default. Returns `{folder, form, stage, asked, equal, bytes}`. Raises BadInput
    for a folder with files in it and a form that the method has not, RunFailed for damaged weights or other
    answers.
    """
    run, folder = str(run), Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise BadInput(f"{folder} is not empty; name a new folder")
    read_result(find_run(run))  # else `find` would look for a model of that name
    number = CheckpointRef.parse(f"{run}:{stage}" if stage else run).stage
    if number is None:
        raise BadInput(f"{run}: the start is no stage of this run; it lies where it came from")
    silence_libraries()
    result = read_result(run)
    entry = result["stages"][number]
    plan = _plan(run, result, number, _form(entry["method"], form))
    asked, longest = _asked(run), result["recipe"]["max_new_tokens"]
    said = _answers_of_run(run, number, asked, longest)
    folder.parent.mkdir(parents=True, exist_ok=True)
    place = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        _write(place, plan)
        equal = sum(one == other for one, other in zip(said, _answers_again(place, plan, asked, longest),
                                                       strict=True))
        if equal < len(asked) and not plan["quantised"]:  # the run's model was dequantised, which rounds
            raise RunFailed(f"the written {plan['form']} of {entry['name']} answers {len(asked) - equal} of "
                            f"{len(asked)} prompts otherwise than the run, so nothing is exported")
        shown = [{**question, "answer": answer} for question, answer in zip(asked, said, strict=True)
                 if "wanted" in question][:rows]
        write_model_card(place, run, plan, {"asked": len(asked), "equal": equal}, shown)
        _make_readable(place)
        place.rename(folder)
    except BaseException:
        shutil.rmtree(place, ignore_errors=True)
        raise
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return {"folder": str(folder), "form": plan["form"], "stage": entry["name"], "asked": len(asked),
            "equal": equal, "bytes": size}


def _make_readable(place: Path) -> None:
    """Files and folders as a plain copy would leave them; temporary folders and safetensors are for one."""
    for path in (place, *place.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)


def _form(method: str, form: str | None) -> str:
    """The form to write; raises BadInput where the method has none of the kind."""
    if method == "ptuning_v2" and form == "merged":
        raise BadInput("a prefix (ptuning_v2) cannot be merged into the weights; export it as --adapter")
    if method in ("full", "freeze") and form == "adapter":
        raise BadInput(f"{method} trains the weights themselves, there is no adapter; export it as --merged")
    return form or ("adapter" if method == "ptuning_v2" else "merged")


def _plan(run: str, result: dict, number: int, form: str) -> dict:
    """Where everything to be written lies, each checked: stages against their manifests, the start's hash."""
    entry, shelf = result["stages"][number], store_folder(Path(run))
    before = [stage["key"] for stage in result["stages"][:number] if stage["method"] != "ptuning_v2"]
    needed = [entry["key"], *before[-1:]] if form == "adapter" else [entry["key"]]
    for key in needed:
        if find_stage(shelf, key) is None:
            raise BadInput(f"{shelf / key}: this stage's weights are gone; run the recipe again")
    source = shelf / entry["key"] / ("model" if form == "merged" else "adapter")
    recipe, start, prefixed = result["recipe"], result["start"]["model"], entry["method"] == "ptuning_v2"
    base = revision = None
    if form == "adapter":
        revision = check_start_revision(run) if not before else None
        base = str(shelf / before[-1] / "model") if before else locate_model(start)
    settings = stage_settings(recipe_from_dict(recipe), entry["kind"])
    return {"form": form, "source": source, "entry": entry, "number": number, "base": base,
            "own_base": bool(before) and form == "adapter", "revision": revision, "start": start,
            "hub": None if Path(locate_model(start)).is_dir() else start, "settings": settings,
            "quantised": form == "adapter" and entry["method"] == "qlora",
            "tokenizer": str(shelf / entry["key"] / ("adapter" if prefixed else "model"))}


def _write(place: Path, plan: dict) -> None:
    """Weights, tokenizer and generation settings; for an adapter of a later stage also what it sits on."""
    shutil.copytree(plan["source"], place, dirs_exist_ok=True)
    (place / "README.md").unlink(missing_ok=True)  # PEFT's empty card
    tokenizer = load_tokenizer(plan["tokenizer"])
    tokenizer.save_pretrained(place)
    weights = Path(plan["base"] or place)
    if plan["own_base"]:
        shutil.copytree(weights, place / BASE)
        weights = place / BASE
    if plan["form"] == "adapter":
        config = json.loads((place / "adapter_config.json").read_text())
        config["base_model_name_or_path"] = BASE if plan["own_base"] else plan["hub"] or plan["base"]
        config["revision"] = plan["revision"] if plan["hub"] and not plan["own_base"] else None
        (place / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True))
    _generation(weights, plan, tokenizer).save_pretrained(place)


def _generation(weights: Path, plan: dict, tokenizer) -> GenerationConfig:
    """The model's own generation settings, made to stop where training ended its answers."""
    try:
        settings = GenerationConfig.from_pretrained(
            str(weights), revision=plan["revision"] if plan["hub"] else None)
    except OSError:
        settings = GenerationConfig()
    ends = settings.eos_token_id
    ends = {*(ends if isinstance(ends, list) else [ends] if ends is not None else [])}
    settings.eos_token_id = sorted(ends | set(end_of_turn_ids(tokenizer)))
    settings.pad_token_id = tokenizer.pad_token_id
    return settings


def _asked(run: str) -> list[dict]:
    """The run's first probe questions, or plain ones where its data is gone or holds none."""
    try:
        return probe_questions(run)
    except BadInput:
        return [{"prompt": text, "messages": [{"role": "user", "content": text}]} for text in PROMPTS]


def _answers_of_run(run: str, number: int, asked: list[dict], longest: int) -> list[str]:
    model, tokenizer = load_stage(run, number)
    try:
        return generate_answers(model, tokenizer, [question["messages"] for question in asked], longest,
                                batch_size=1)
    finally:
        del model
        release_memory()


@torch.no_grad()
def _answers_again(place: Path, plan: dict, asked: list[dict], longest: int) -> list[str]:
    """The answers of the written folder, by transformers and PEFT alone, in the precision of the run's."""
    tokenizer = AutoTokenizer.from_pretrained(place)
    base = (place / BASE if plan["own_base"] else plan["base"]) if plan["form"] == "adapter" else place
    extra = {"quantization_config": make_bnb_config(plan["settings"])} if plan["quantised"] else {}
    model = AutoModelForCausalLM.from_pretrained(
        base, revision=plan["revision"] if plan["hub"] else None, dtype=torch.float32, use_safetensors=True,
        device_map={"": select_device()}, **extra)
    if plan["form"] == "adapter":
        model = PeftModel.from_pretrained(model, place)
    model.eval()
    settings, said = GenerationConfig.from_pretrained(str(place)), []
    for question in asked:
        batch = tokenizer(_prompt(tokenizer, question["messages"]), add_special_tokens=False,
                          return_tensors="pt").to(model.device)
        tokens = model.generate(**batch, generation_config=settings, do_sample=False, max_new_tokens=longest)
        new = tokens[0, batch["input_ids"].shape[1]:]
        said.append(tokenizer.decode(new, skip_special_tokens=True).strip())
    del model
    release_memory()
    return said


def _prompt(tokenizer, messages: list[dict]) -> str:
    """The prompt as any server makes it, unless the template alone cannot make that of training."""
    options, folds = prompt_options(tokenizer), answer_frame(tokenizer).fold
    if options is None or (folds and messages[0]["role"] == "system"):
        return render_prompt(tokenizer, messages)
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **options)


def push_folder(folder: str | Path, repository: str, public: bool = False) -> str:
    """Upload an exported folder to a hub repository, private unless `public`; returns its address.

    The token is read from the environment (HF_TOKEN) and stored nowhere. Raises BadInput
    without one, RunFailed where the hub refuses.
    """
    from huggingface_hub import HfApi
    token = os.environ.get("HF_TOKEN")
    if not token:
        raise BadInput("no HF_TOKEN in the environment; a token with write access is needed to push")
    config = Path(folder) / "adapter_config.json"
    if config.exists():
        base = json.loads(config.read_text())["base_model_name_or_path"]
        if base != BASE and Path(base).is_dir():
            raise BadInput(f"{folder}: its base is the local folder {base}, which nobody else has; "
                           "push a merged export")
    hub = HfApi(token=token)
    try:
        hub.create_repo(repository, private=not public, exist_ok=True)
        return str(hub.upload_folder(repo_id=repository, folder_path=str(folder),
                                     commit_message="Export from sftbench"))
    except Exception as error:
        raise RunFailed(f"the hub did not take {repository}: {str(error).replace(token, '***')}") from None
