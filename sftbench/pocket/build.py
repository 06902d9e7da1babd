"""Make the pocket's tokenizer and models from nothing."""

import random
import re
from itertools import islice

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from sftbench.pocket import world

PRETRAINING_LEARNING_RATE = 3e-3
VOCABULARY = 768
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'system' -%}{{ '<|system|> ' + message['content'] | trim }}"
    "{%- elif message['role'] == 'user' -%}{{ '<|user|> ' + message['content'] | trim }}"
    "{%- elif message['role'] == 'assistant' -%}{{ '<|assistant|>' }}"
    "{%- generation -%}{{ ' ' + message['content'] | trim + eos_token }}{%- endgeneration -%}"
    "{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|assistant|>' }}{%- endif -%}"
)


def _texts_of_strangers(count):
    """Yield general text with ever new names, so that a tokenizer learns syllables and no name as a whole."""
    rng = random.Random("strangers")
    names = re.compile("|".join(sorted(world.people(), key=len, reverse=True)))
    for text in islice(world.pretraining_text(), count):
        renamed = {}
        yield names.sub(lambda found: renamed.setdefault(found[0], world.invented_name(rng)), text)  # noqa: B023


def make_tokenizer(vocabulary=VOCABULARY):
    """Train a byte-level BPE tokenizer with single digits on the general world; any text can be encoded."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    roles = [world.SYSTEM, world.USER, world.ASSISTANT]
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<pad>", "<eos>", *roles],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts_of_strangers(20_000), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        additional_special_tokens=roles,
        chat_template=CHAT_TEMPLATE,
        model_max_length=512,
    )


def make_model(tokenizer, hidden=128, layers=4, heads=4, seed=0):
    """Return an untrained Qwen3 model in float32 that fits the tokenizer."""
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads // 2,
        head_dim=32,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=None,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return Qwen3ForCausalLM(config)


def save(model, tokenizer, folder, card):
    """Write model (float16), tokenizer and model card into `folder`; `card` becomes config.json's key `sftbench`."""
    model.config.sftbench = card
    model.config.use_cache = True
    model.generation_config = GenerationConfig(
        do_sample=False, pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id
    )
    model.to(torch.float16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    model.to(torch.float32)
