"""Whether the start model fits recipe and data: its embedding, its positions, and what only it can answer.

A family's name says little of what it can do, so the loaded model is asked, once for each of its revisions.
"""

import json
from importlib.metadata import version
from pathlib import Path

import pyarrow.compute as pc
import torch

from ..data.chat_template import end_of_turn_ids, training_pieces
from ..data.roles import Role
from ..data.rows import cache_folder
from ..data.tokenization import RoleTokens, encode_probe, encode_prompt
from ..errors import BadInput
from ..recipes.facts import Facts
from ..recipes.hyperparameters import LARGE_MODEL, YARDSTICK_LENGTH
from ..recipes.recipe import Recipe
from ..recipes.stages import StageSettings
from ..runs.folder import write_json
from ..runs.stage_store import hash_key
from . import loading, packing

MIN_LENGTH = 8  # tokens of the shortest block that a recipe may state
ALL_TOKENS = 10**9


def ask_start_model(recipe: Recipe, settings: StageSettings, facts: Facts, start: str,
                    revision: str) -> Facts:
    """The facts with what the start model answers: whether its rows may share a block, and take a prefix.

    Asked once for its pinned `revision` and the libraries' versions, in float32; a large model is asked as
    the stage loads it, since more might not fit. Raises BadInput for a model that is no causal one, and for
    what `recipe` sets or a stage of these settings needs that it cannot take.
    """
    answers = _ask_once(_answers_path(revision), recipe, settings, start, facts.parameters >= LARGE_MODEL)
    if settings.method in ("lora", "qlora") and (fault := answers[f"lora {settings.lora_target_modules}"]):
        raise BadInput(f"lora_target_modules: {fault}; name the modules, such as q_proj,v_proj, or take "
                       "method freeze", field="lora_target_modules")
    if settings.method == "qlora" and answers["quantised"]:
        raise BadInput(f"qlora: {answers['quantised']}; take another method, such as lora", field="method")
    if settings.method == "ptuning_v2" and answers["prefix"]:
        raise BadInput(f"ptuning_v2: {answers['prefix']}; take another method, such as lora", field="method")
    if settings.packing and recipe.packing and answers["packing"]:
        raise BadInput(f"packing: {answers['packing']}; leave it out, or set it to false", field="packing")
    return facts.add("measured", packing_fault=answers["packing"], untrained_tokens=answers["untrained"])


def _ask_once(path: Path, recipe: Recipe, settings: StageSettings, start: str, large: bool) -> dict:
    """The model's answers, of which those that `path` does not hold yet are asked for and stored there."""
    from . import methods  # here, since it loads PEFT, which takes a second
    answers = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    revision = recipe.model_revision
    tokenizer = loading.load_tokenizer(start, revision)
    questions = {"packing": packing.ask_packing, "untrained": lambda model: find_untrained_tokens(
        tokenizer, model.get_input_embeddings().weight)}
    # each of these changes the model
    prefix = {"prefix": methods.ask_prefix} if settings.method == "ptuning_v2" else {}
    adapter = {f"lora {settings.lora_target_modules}": lambda model: methods.ask_lora(model, settings)}
    asked = [(questions, large), (prefix, large), (adapter if "lora" in settings.method else {}, large),
             ({"quantised": lambda model: methods.ask_quantised(model, settings)}
              if settings.method == "qlora" else {}, True)]
    for those, as_trained in asked:
        if not those.keys() <= answers.keys():
            model = (loading.load_for_training(start, revision, settings) if as_trained else
                     loading.load_model(start, revision))
            answers |= {name: ask(model) for name, ask in those.items() if name not in answers}
            del model
            loading.release_memory()
            cache_folder().mkdir(parents=True, exist_ok=True)
            write_json(path, answers)
    return answers


def find_untrained_tokens(tokenizer, embedding: torch.Tensor) -> list[str]:
    """The added tokens around an answer that pre-training never saw, by the rows of the `embedding`.

    Such a row is zero, or equal to another: nothing has told the two apart.
    """
    pieces = training_pieces(tokenizer, {"messages": [
        {"role": role, "content": role} for role in ("user", "assistant")]})
    ids = tokenizer("".join(text for text, _ in pieces[-1]), add_special_tokens=False)["input_ids"]
    added, untrained = tokenizer.get_added_vocab(), []
    for name, number in added.items():
        if number in ids and number < len(embedding):
            row = embedding[number]
            if not row.any() or (embedding == row).all(dim=1).sum() > 1:
                untrained.append(name)
    return untrained


def _answers_path(pinned: str) -> Path:
    """Where the answers of a revision are stored, by these libraries to these questions."""
    code = "".join(Path(__file__).with_name(f"{module}.py").read_text(encoding="utf-8")
                   for module in ("loading", "logits", "methods", "packing"))
    key = hash_key(revision=pinned, code=code, versions=[
        version(name) for name in ("torch", "transformers", "peft")])
    return cache_folder() / f"model-{key}.json"


def check_vocabulary(tokenizer, roles: dict[str, Role], tokens: dict[str, RoleTokens], rows: int) -> None:
    """Refuse tokens in use (of the data, the probes, padding and ends) beyond the embedding's `rows`."""
    if max(tokenizer.get_vocab().values()) < rows:
        return
    used = {"its pad token": tokenizer.pad_token_id,
            "an end of its answers": max(end_of_turn_ids(tokenizer), default=0)}
    for name, role in roles.items():
        columns = tokens[name].rows.data.column("input_ids") if tokens[name].rows else []
        used[name] = max((pc.max(chunk.flatten()).as_py() or 0 for chunk in getattr(columns, "chunks", [])),
                         default=0)
        used[f"the probe of {name}"] = max((max(row.input_ids) for row in encode_probe(
            tokenizer, role.probe, ALL_TOKENS)[0]), default=0)
    where, largest = max(used.items(), key=lambda item: item[1])
    if largest >= rows:
        raise BadInput(
            f"token {largest}, {tokenizer.convert_ids_to_tokens(largest)!r} ({where}), is beyond the {rows} "
            f"rows of the model's embedding; enlarge it (model.resize_token_embeddings({len(tokenizer)}), "
            "then save_pretrained), or, if it is the pad token alone, name a pad_token that the model has in "
            "tokenizer_config.json", field="model")


def check_positions(stages: list[StageSettings], recipe: Recipe, facts: Facts) -> None:
    """Refuse what is longer than the model's table of positions: blocks, questions with answers, a prefix."""
    prefix = max((stage.num_virtual_tokens for stage in stages if stage.method == "ptuning_v2"), default=0)
    room, question = facts.positions - prefix, facts.prompt_tokens or 0
    also = f", of which the prefix takes {prefix}" * bool(prefix)
    has = f"the model has a table of {facts.positions} positions{also}, and none beyond"
    if room < MIN_LENGTH:
        raise BadInput(f"num_virtual_tokens: {has}; take at most {facts.positions - MIN_LENGTH}",
                       field="num_virtual_tokens")
    if recipe.max_length > room:
        raise BadInput(f"max_length {recipe.max_length}: {has}; take at most {room}", field="max_length")
    if question >= room:
        raise BadInput(f"the longest question of a probe has {question} tokens; {has}. Take out such rows, "
                       "or give a probe of shorter ones", field="probe_rows")
    if question + recipe.max_new_tokens > room:
        raise BadInput(f"max_new_tokens {recipe.max_new_tokens}: the longest question of a probe has "
                       f"{question} tokens, {has}; take at most {room - question}", field="max_new_tokens")
    if recipe.yardstick and room < YARDSTICK_LENGTH:
        raise BadInput(f"yardstick: its texts need {YARDSTICK_LENGTH} positions; {has}; set it to false",
                       field="yardstick")


def longest_prompt(tokenizer, roles: dict[str, Role]) -> int | None:
    """The tokens of the longest question of all task probes; None without any."""
    return max((len(encode_prompt(tokenizer, row)) for role in roles.values()
                for row in role.probe if "messages" in row), default=None)
