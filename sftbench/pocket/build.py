"""Make the pocket's tokenizer and its three models from nothing, through the bench's own training loop.

`python -m sftbench.pocket.build [FOLDER]` writes `base`, `chat`, `weak` and their hashes; `make pocket` calls
it, and `notebooks/build_pocket.ipynb` shows what happens in it. A second build gives no equal bits, as other
numbers of threads and other kernels round sums otherwise (it had 0.563 nats per token on held-out general
text, the shipped base 0.564).
"""

import json
import shutil
import sys
import tempfile
import time
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM, set_seed

from ..data.packing import count_steps, mix_rows, rows_to_dataset
from ..data.tokenization import encode_probe, encode_row
from ..models.loading import load_model, silence_libraries
from ..recipes.facts import Facts
from ..recipes.hyperparameters import resolve_recipe
from ..recipes.recipe import Recipe, override
from ..recipes.stages import stage_settings
from ..reports.progress import show_progress
from ..runs.events import append_event
from ..runs.stage_store import file_sha256
from ..training.trainer import StageContext, train_stage
from .world import ABILITIES, ASSISTANT, FACTS, SYSTEM, USER, items, pretraining_text, world_rows

LEARNING_RATE = 2e-3  # of the pre-training
TOKENS, WEAK_TOKENS = 6_000_000, 600_000
MAX_LENGTH = 128
BESIDE = Path(__file__).parent
PRETRAINING = override(
    Recipe(), cpt_learning_rate=LEARNING_RATE, cpt_warmup_ratio=0.015, cpt_num_train_epochs=1,
    cpt_per_device_train_batch_size=16, weight_decay=0.1, max_length=MAX_LENGTH)


def make_tokenizer():
    """Train a byte-level BPE tokenizer with single digits on general text; any text can be encoded."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    roles = [SYSTEM, USER, ASSISTANT]
    tokenizer.train_from_iterator(islice(pretraining_text(), 20_000), trainers.BpeTrainer(
        vocab_size=1088, special_tokens=["<pad>", "<eos>", *roles], show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet())))
    template = (BESIDE / "chat_template.jinja").read_text(encoding="utf-8").replace("\n", "")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", additional_special_tokens=roles,
        chat_template=template, model_max_length=512)


def make_model(tokenizer, hidden=128, layers=4, seed=0):
    """Return an untrained Qwen3 model in float32; `hidden` is a multiple of 64 for QLoRA's blocks."""
    set_seed(seed)
    return Qwen3ForCausalLM(Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=hidden, intermediate_size=3 * hidden, num_hidden_layers=layers,
        num_attention_heads=hidden // 32, num_key_value_heads=hidden // 64, head_dim=32,
        max_position_embeddings=512, tie_word_embeddings=True, bos_token_id=None,
        pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id))


def general_text(tokenizer, tokens, seed=0):
    """Return at least `tokens` tokens of the pre-training stream as encoded rows."""
    rows, count, stream = [], 0, pretraining_text(seed)
    while count < tokens:
        rows.append(encode_row(tokenizer, {"text": next(stream)})[-1])
        count += len(rows[-1].input_ids)
    return rows


def chat_rows(tokenizer, epochs):
    """Return the general tasks as encoded rows in training order, for this number of passes."""
    encoded, _ = encode_probe(tokenizer, world_rows("general_tasks"), MAX_LENGTH)
    lengths = {"general_tasks": np.array([len(row.input_ids) for row in encoded])}
    _, order, _ = mix_rows(lengths, {"general_tasks": 1.0}, epochs, seed=0)
    return [encoded[number] for number in order]


def chat_recipe():
    """Return the advised recipe of the chat model's SFT: nothing in it is chosen by hand but the length."""
    facts = Facts(rows={"domain_tasks": len(world_rows("general_tasks"))},
                  pretraining_learning_rate=LEARNING_RATE)
    return resolve_recipe(override(Recipe(), max_length=MAX_LENGTH), facts)[0]


def save(model, tokenizer, folder, tokens, more):
    """Write weights (float16), tokenizer and model card into `folder`; an old one is replaced in one move."""
    model.config.sftbench = {"pretraining_learning_rate": LEARNING_RATE, "pretraining_tokens": tokens}
    model.config.use_cache = True
    model.generation_config = GenerationConfig(
        do_sample=False, pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        new = Path(temporary) / folder.name
        model.to(torch.float16).save_pretrained(new)
        tokenizer.save_pretrained(new)
        card = (BESIDE / "model_card.md").read_text(encoding="utf-8").format(
            name=f"pocket {folder.name}", parameters=model.num_parameters(), tokens=tokens, more=more,
            recipe=PRETRAINING)
        (new / "README.md").write_text(card, encoding="utf-8")
        for path in new.iterdir():
            path.chmod(0o644)
        shutil.rmtree(folder, ignore_errors=True)
        new.rename(folder)


def build(folder, tokens=TOKENS, weak_tokens=WEAK_TOKENS, seed=0, callbacks=(), **size):
    """Make `base`, `chat` and `weak` in `folder` from nothing, and `sha256.json` over their files.

    `size` goes to `make_model`. Every callback is called with each event, as those of a run are: first the
    `plan`, the steps of the three trainings `cpt_base`, `cpt_weak` and `sft_chat`, then every step of them.
    """
    silence_libraries()
    folder, tokenizer = Path(folder), make_tokenizer()
    cpt = stage_settings(resolve_recipe(PRETRAINING, Facts())[0], "cpt")
    sft = stage_settings(chat_recipe(), "sft")
    chains = {"cpt_base": (general_text(tokenizer, tokens, seed), cpt),
              "cpt_weak": (general_text(tokenizer, weak_tokens, seed), cpt),
              "sft_chat": (chat_rows(tokenizer, sft.num_train_epochs), sft)}
    datasets = {name: rows_to_dataset(rows, MAX_LENGTH) for name, (rows, _) in chains.items()}

    def emit(event):
        event = {"time": time.time(), **event}
        for callback in callbacks:
            callback(event)

    def fit(model, stage):
        train_stage(model, StageContext(stage, chains[stage][1], tokenizer, datasets[stage], emit))
        return model

    emit({"stage": "start", "step": 0,
          "plan": {name: count_steps(datasets[name], chains[name][1]) for name in chains}})
    for name, count in (("base", tokens), ("weak", weak_tokens)):
        model = fit(make_model(tokenizer, seed=seed, **size), f"cpt_{name}")
        save(model, tokenizer, folder / name, count, "Nothing else was done to it.")
    chat = fit(load_model(str(folder / "base")), "sft_chat")
    save(chat, tokenizer, folder / "chat", tokens, "Then SFT on the general tasks at a tenth of that rate.")
    files = sorted(path for name in ("base", "chat", "weak") for path in (folder / name).iterdir())
    hashes = {path.relative_to(folder).as_posix(): file_sha256(path) for path in files}
    (folder / "sha256.json").write_text(json.dumps(hashes, indent=1) + "\n", encoding="utf-8")
    emit({"stage": "sft_chat", "step": 0, "state": "done"})


def facts_known(model, tokenizer):
    """Return the share of held-out facts, 0 to 1, that a base answers after one worked example."""
    right = []
    for fact in FACTS:
        question, shown = ABILITIES[fact]["questions"][0], items(fact, "train")[0]
        example = f"Question: {question.format(**shown)} Answer: {shown['answer']}."
        for item in items(fact, "probe"):
            prompt = tokenizer(f"{example} Question: {question.format(**item)} Answer:", return_tensors="pt")
            new = model.generate(**prompt, max_new_tokens=4)[0, prompt["input_ids"].shape[1]:]
            right.append(tokenizer.decode(new).split(".")[0].strip() == item["answer"])
    return sum(right) / len(right)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as run, show_progress(Path(run)):
        build(*sys.argv[1:2] or [BESIDE], callbacks=[partial(append_event, run)])
