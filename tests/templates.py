"""The chat templates that TRL ships, and a tokenizer for each that knows all their special tokens."""

import copy
import re
from importlib.resources import files

SHIPPED = {path.name.removesuffix(".jinja"): path.read_text(encoding="utf-8")
           for path in files("trl").joinpath("chat_templates").iterdir() if path.name.endswith(".jinja")}
# By the start of a template's name, read off the templates by eye: what ends an answer.
ENDS = {
    "cohere": "<|END_OF_TURN_TOKEN|>", "cohere2": "<|END_RESPONSE|><|END_OF_TURN_TOKEN|>",
    "deepseek": "<｜end▁of▁sentence｜>", "diffusion_gemma": "<turn|>", "gemma": "<end_of_turn>",
    "gemma4": "<turn|>", "glm4moe": "<eos>",
    "glm4moe_training": "<|user|>", "gptoss": "<|return|>", "idefics3": "<end_of_utterance>",
    "lfm2": "<|im_end|>", "llama3": "<|eot_id|>", "llava_next": "</s>", "muse_glimmer": "<|eot|>",
    "nemotron": "<|im_end|>", "phi3": "<|end|>", "qwen": "<|im_end|>", "smolvlm": "<end_of_utterance>",
}


def longest(name: str, table: dict):
    """The entry whose key is the longest start of the name."""
    return table[max((start for start in table if name.startswith(start)), key=len)]


def template_maker(tokenizer):
    """A function from a shipped template's name to a tokenizer with it."""
    base, marks = copy.deepcopy(tokenizer), set(ENDS.values()) - {ENDS["cohere2"]}
    for text in SHIPPED.values():
        marks |= set(re.findall(r"<\|[\w/]+\|>|<\|\w+>|<\w+\|>|<\w+_of_\w+>|<｜[^｜]+｜>|</?think>", text))
    base.add_special_tokens({"additional_special_tokens": sorted(marks)})

    def make(name: str):
        made, end = copy.deepcopy(base), longest(name, ENDS)
        made.chat_template, made.bos_token = SHIPPED[name], "<bos>"
        made.eos_token = end if name.startswith("deepseek") else "<eos>"
        return made
    return make
