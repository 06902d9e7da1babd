"""One training for a few steps by sftbench, a raw loop, TRL alone or LLaMA-Factory, timed step by step.

    python benchmarks/trainers.py WHO MODEL DATA METHOD STEPS

WHO is `sftbench`, `loop`, `trl`, `trl-packed` or `llama-factory` (of `pocket` alone); MODEL is
`pocket` (its own text, CPT), or a model's folder or `0.6B` or `8B` (Qwen3's shapes with random weights), to
which DATA's questions and answers are taught. Prints one line of JSON, by step: `seconds`, `tokens` (of rows,
without padding), `computed` tokens (with it), `losses`; and `peak_bytes` of memory.
`performance.py` compares.
"""

import contextlib
import itertools
import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
from datasets import Dataset
from llama_factory import PYTHON
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, Qwen3Config, TrainerCallback, set_seed

from sftbench.data.tokenization import IGNORE_INDEX
from sftbench.models.loading import load_for_training, load_tokenizer, locate_model, select_device
from sftbench.models.logits import select_logits
from sftbench.models.methods import METHOD_FUNCTIONS
from sftbench.models.packing import holds_scores, make_collator
from sftbench.recipes.recipe import Recipe, override
from sftbench.training import trainer
from sftbench.training.memory import read_peak_memory
from sftbench.training.prepare import PreparedRun, prepare_recipe

# Qwen3's published sizes: width, width of the MLP, layers, heads, whether the head is the embedding
QWEN3 = {"0.6B": (1024, 3072, 28, 16, True), "8B": (4096, 12288, 36, 32, False)}


def prepare(model: str, data: str, method: str, steps: int) -> PreparedRun:
    """The run whose first stage is timed, at a constant rate and without dropout, which draws by place."""
    model = make_qwen3(model) if model in QWEN3 else model
    own = ({"mode": "2", "cpt_per_device_train_batch_size": 4} if model == "pocket" else
           {"mode": "6", "chat_model": model, "domain_tasks": data})
    ready = prepare_recipe(override(Recipe(), max_steps=steps, method=method, lora_dropout=0.0,
                                    prefix_init="random", yardstick=False, **own))
    stage = ready.stages[0]
    constant = replace(stage.settings, lr_scheduler_type="constant_with_warmup")
    return replace(ready, stages=(replace(stage, settings=constant),))


def make_qwen3(size: str) -> str:
    """The folder of a model of this size, with random weights in bfloat16 and the 135M model's tokenizer."""
    folder = Path("runs") / f"qwen3-{size}"
    if not (folder / "config.json").exists():
        hidden, inner, layers, heads, tied = QWEN3[size]
        config = Qwen3Config(hidden_size=hidden, intermediate_size=inner, num_hidden_layers=layers,
                             num_attention_heads=heads, num_key_value_heads=8, head_dim=128,
                             tie_word_embeddings=tied, max_position_embeddings=40960, dtype="bfloat16")
        load_tokenizer("smollm2-instruct").save_pretrained(folder)
        with torch.device(select_device()):
            model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        model.save_pretrained(folder)
    return str(folder)


def load(ready: PreparedRun):
    """The model as the stage trains it."""
    settings = ready.stages[0].settings
    set_seed(settings.seed)
    model = load_for_training(ready.start, ready.recipe.model_revision, settings)
    return METHOD_FUNCTIONS[settings.method](model, ready.tokenizer, settings, "")


class Clock(TrainerCallback):
    """When steps ended, with which losses, and the tokens of rows and of batches that a collator saw."""

    def __init__(self):
        self.times, self.losses, self.tokens, self.computed = [time.perf_counter()], [], [], []

    def on_log(self, args, state, control, logs, **_):
        if "loss" in logs:
            self.tick(logs["loss"])

    def tick(self, loss: float) -> None:
        """A step has ended."""
        self.times.append(time.perf_counter())
        self.losses.append(loss)

    def count(self, collate):
        """The collator, with its examples' tokens and those of its batches counted."""
        def counted(examples):
            batch = collate(examples)
            self.tokens.append(sum(len(example["input_ids"]) for example in examples))
            self.computed.append(batch["input_ids"].numel())
            return batch
        return counted

    def report(self) -> dict:
        """What was counted, by step: a trainer reads a batch ahead, which is none."""
        steps = len(self.losses)
        return {"seconds": [after - before for before, after in itertools.pairwise(self.times)],
                "tokens": self.tokens[:steps], "computed": self.computed[:steps], "losses": self.losses,
                "peak_bytes": read_peak_memory()}


def train_sftbench(ready: PreparedRun) -> dict:
    """sftbench's own loop."""
    stage, clock, model = ready.stages[0], Clock(), load(ready)
    trainer.train_stage(model, trainer.StageContext(
        stage.name, stage.settings, ready.tokenizer, ready.datasets[stage.name][0],
        lambda event: clock.tick(event["loss"]) if "loss" in event else None))
    for _ in batches(ready, model, clock):
        pass
    return clock.report()


def batches(ready: PreparedRun, model, clock: Clock):
    """The batches of the stage, as sftbench trains them, with their tokens counted."""
    stage = ready.stages[0]
    dataset, size = ready.datasets[stage.name][0], stage.settings.per_device_train_batch_size
    collate = clock.count(make_collator(model, ready.tokenizer.pad_token_id, stage.settings.packing))
    for step in range(ready.plan[stage.name]):
        blocks = range(step * size, min((step + 1) * size, len(dataset)))
        yield collate([dataset[block] for block in blocks])


def train_loop(ready: PreparedRun) -> dict:
    """A loop written out, on the same batches, with all that makes it fast and nothing else."""
    stage, clock, model = ready.stages[0], Clock(), load(ready).train()
    settings, weights = stage.settings, [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=settings.learning_rate, weight_decay=settings.weight_decay,
                                  fused=True)
    warmup = trainer.count_warmup_steps(settings, ready.plan[stage.name])
    for step, batch in enumerate(batches(ready, model, clock)):
        batch = {name: values.to(model.device) for name, values in batch.items()}
        labels = batch.pop("labels").roll(-1, dims=1)
        trained = labels != IGNORE_INDEX
        plain = holds_scores(labels.shape[1], settings.bf16)
        with sdpa_kernel(SDPBackend.MATH) if plain else contextlib.nullcontext():
            with torch.autocast(labels.device.type, torch.bfloat16, enabled=settings.bf16):
                logits = select_logits(model, trained, **batch)
            loss = cross_entropy(logits.float(), labels[trained])
            loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, settings.max_grad_norm)
        optimizer.param_groups[0]["lr"] = settings.learning_rate * min(1, step / max(warmup, 1) or not warmup)
        optimizer.step()
        optimizer.zero_grad()
        clock.tick(loss.item())
    return clock.report()


def train_trl(ready: PreparedRun, packing: bool) -> dict:
    """TRL alone, on the same rows with the same settings."""
    from trl import SFTConfig, SFTTrainer
    stage, clock = ready.stages[0], Clock()
    settings, (role, *_) = stage.settings, stage.shares
    rows = [ready.roles[role].train[number] for number in range(min(2000, len(ready.roles[role].train)))]
    data = [{"text": row["text"]} if "text" in row else
            {"prompt": row["messages"][:-1], "completion": row["messages"][-1:]} for row in rows]
    config = trainer.make_sft_config(settings, "runs/.trl", ready.plan[stage.name])
    config = SFTConfig(**{name: getattr(config, name) for name in (
        "per_device_train_batch_size", "learning_rate", "max_steps", "warmup_steps", "weight_decay",
        "max_grad_norm", "seed", "bf16", "activation_checkpointing", "use_cpu", "logging_steps",
        "lr_scheduler_type")}, output_dir="runs/.trl", max_length=settings.max_length, packing=packing,
        report_to="none", save_strategy="no", disable_tqdm=True, dataloader_pin_memory=False)
    one = SFTTrainer(model=load(ready), args=config, train_dataset=Dataset.from_list(data),
                     processing_class=ready.tokenizer, callbacks=[clock])
    one.data_collator = clock.count(one.data_collator)
    clock.times = [time.perf_counter()]
    one.train()
    return clock.report()


def train_llama_factory(ready: PreparedRun) -> dict:
    """LLaMA-Factory in its own environment, on the same texts with the same settings."""
    stage, folder = ready.stages[0], Path("runs/.llamafactory").absolute()
    settings, (role, *_) = stage.settings, stage.shares
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "texts.jsonl").write_text("".join(
        json.dumps({"text": row["text"]}) + "\n" for row in ready.roles[role].train), encoding="utf-8")
    (folder / "dataset_info.json").write_text(json.dumps(
        {"texts": {"file_name": "texts.jsonl", "columns": {"prompt": "text"}}}))
    steps = ready.plan[stage.name]
    (folder / "arguments.json").write_text(json.dumps({name: getattr(settings, name) for name in (
        "per_device_train_batch_size", "gradient_accumulation_steps", "learning_rate", "lr_scheduler_type",
        "weight_decay", "max_grad_norm", "seed", "bf16")} | {
            "model_name_or_path": locate_model(ready.start), "stage": "pt", "do_train": True,
            "finetuning_type": "full", "dataset": "texts", "dataset_dir": str(folder), "template": "empty",
            "packing": True, "cutoff_len": settings.max_length, "max_steps": steps,
            "use_cpu": True, "logging_steps": 1,
            "warmup_steps": trainer.count_warmup_steps(settings, steps), "save_strategy": "no",
            "disable_gradient_checkpointing": not settings.gradient_checkpointing, "report_to": "none",
            "output_dir": str(folder / "out"), "overwrite_output_dir": True, "overwrite_cache": True}))
    ran = subprocess.run([str(PYTHON), "benchmarks/llama_factory.py", str(folder / "arguments.json")],
                         check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(ran.stdout.splitlines()[-1])


def main(who: str, model: str, data: str, method: str, steps: str) -> None:
    """Train, and print what was counted."""
    train = {"sftbench": train_sftbench, "loop": train_loop, "trl": lambda one: train_trl(one, False),
             "trl-packed": lambda one: train_trl(one, True), "llama-factory": train_llama_factory}[who]
    sys.stdout.write(json.dumps(train(prepare(model, data, method, int(steps)))) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
