"""The peak rate of a model's pre-training: as its card states it, as published for its shape, or guessed."""

import math
import tomllib
from importlib.resources import files

from .facts import Facts

PUBLISHED = tomllib.loads(files(__package__).joinpath("pretraining_rates.toml").read_text("utf-8"))["models"]
# LoRA's best rate by the model's width, as tinker-cookbook fitted it to sweeps (`get_lr` in hyperparam_utils;
# the exponent is Llama's, or Qwen's, where the width hardly counts). It is also about the pre-training rate:
# 0.8 to 1.3 times that of PUBLISHED's Llama and OLMo models, 0.3 to 3 times that of all.
LORA_RATE, LORA_WIDTH = 5e-5 * 10, 2000
EXPONENTS, OTHERS = {"qwen": 0.0775}, 0.781
GUESS_SOURCE = "tinker-cookbook's rule for LoRA"
SIMILAR_VOCABULARY = 0.02  # of it: tuning adds tokens, and tables are padded


def card_rate(card) -> float | None:
    """The peak pre-training rate under the key `sftbench` of a model's configuration; None for nonsense.

    Nothing else is read from there: a stranger's file must not take the place of what is measured.
    """
    rate = card.get("pretraining_learning_rate") if isinstance(card, dict) else None
    return rate if isinstance(rate, float) and math.isfinite(rate) and rate > 0 else None


def model_shape(config: dict) -> dict:
    """What of a config.json a model is known by: model_type, hidden_size, num_hidden_layers, vocab_size."""
    text = config.get("text_config")
    values = text if isinstance(text, dict) else config
    older = {"hidden_size": "n_embd", "num_hidden_layers": "n_layer"}  # GPT-2's names
    shape = {name: values.get(name, values.get(older.get(name, "")))
             for name in ("hidden_size", "num_hidden_layers", "vocab_size")}
    numbers = {name: value for name, value in shape.items() if isinstance(value, int) and value > 0}
    family = values.get("model_type")
    return numbers | ({"model_type": family} if isinstance(family, str) else {})


def published_rate(shape: dict) -> dict | None:
    """The entry of the table that has a model's shape, or None."""
    for entry in PUBLISHED:
        more_tokens = abs(shape.get("vocab_size", 0) - entry["vocab_size"])
        if (shape.get("model_type") in entry["model_type"]
                and all(shape.get(name) == entry[name] for name in ("hidden_size", "num_hidden_layers"))
                and more_tokens <= SIMILAR_VOCABULARY * entry["vocab_size"]):
            return entry
    return None


def guess_rate(hidden_size: int, model_type: str | None) -> float:
    """A pre-training rate by the model's width and family, at most the highest that is published."""
    power = next((power for name, power in EXPONENTS.items() if (model_type or "").startswith(name)), OTHERS)
    guess = LORA_RATE * (LORA_WIDTH / hidden_size) ** power
    return float(f"{min(guess, max(entry['learning_rate'] for entry in PUBLISHED)):.3g}")


def is_guess(rate: float | None, facts: Facts) -> bool:
    """Whether a recipe's pre-training rate is the one that is guessed for its model."""
    return bool(rate and facts.hidden_size and not facts.pretraining_learning_rate
                and rate == guess_rate(facts.hidden_size, facts.model_type))


def add_pretraining(facts: Facts, config: dict) -> Facts:
    """The facts with what a config.json (as a dict) states, and what is known, of the pre-training rate."""
    shape = model_shape(config)
    facts = facts.add("card", model_type=shape.get("model_type"), hidden_size=shape.get("hidden_size"),
                      pretraining_learning_rate=card_rate(config.get("sftbench")))
    if facts.pretraining_learning_rate is None and (entry := published_rate(shape)):
        facts = facts.add("published", pretraining_learning_rate=entry["learning_rate"],
                          pretrained_as=f"{entry['name']} ({entry['source']})")
    return facts
