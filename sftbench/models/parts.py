"""Method freeze: which parts of a model train, and parts that are added as the identity (`PARTS`)."""

import copy
import tempfile

import torch
from torch import nn
from transformers import AutoConfig

from ..errors import BadInput
from ..recipes.stages import StageSettings
from .architecture import build_empty, find_decoder_layers

# The layers that write into the residual stream; zero weights there make a new block the identity.
OUTPUT_PROJECTIONS = ("o_proj", "out_proj", "c_proj", "dense", "dense_4h_to_h", "down_proj", "fc2",
                      "fc_out", "output_linear", "w2")
# In a configuration: lists of layers' indices, and how many layers at the beginning are of another kind.
INDEX_LISTS = ("moe_layers", "mlp_only_layers")
LEADING_LAYERS = ("first_k_dense_replace", "num_dense_layers")
PLAIN = (bool, int, float, str, tuple, list, type(None))


def freeze(model, tokenizer, settings: StageSettings, text: str):
    """Train chosen parts only (`trainable_parts`): layers, norm or head, or parts added as the identity.

    `last:N`, `layers:A-B` (counted from 0), `head`, `norm`, `new_blocks:N`, `new_head`; several with commas.
    """
    model.requires_grad_(False)
    for part in settings.trainable_parts.split(","):
        name, _, value = part.strip().partition(":")
        if name not in PARTS:
            raise _bad_parts(f"unknown part {part.strip()!r}; parts are {', '.join(PARTS)}")
        for module in PARTS[name](model, value):
            module.requires_grad_(True)
    return model


def _bad_parts(fault: str) -> BadInput:
    return BadInput(f"trainable_parts: {fault}", field="trainable_parts")


def _last_layers(model, value: str) -> list[nn.Module]:
    layers = list(find_decoder_layers(model)[2])
    return layers[-_parse_number("last", value, len(layers)):]


def _layer_range(model, value: str) -> list[nn.Module]:
    layers = list(find_decoder_layers(model)[2])
    first, _, last = value.partition("-")
    if not (first.isdigit() and last.isdigit() and int(first) <= int(last) < len(layers)):
        raise _bad_parts(f"layers:{value} is not a range within 0-{len(layers) - 1}")
    return layers[int(first):int(last) + 1]


def _head(model, value: str) -> list[nn.Module]:
    if _tied(model):
        raise _bad_parts("this model's output head is its input embedding, so training it changes both; "
                         "take new_head, which unties them first")
    return [model.get_output_embeddings()]


def _norm(model, value: str) -> list[nn.Module]:
    """The normalisation between the last layer and the output head."""
    parent, name, _ = find_decoder_layers(model)
    children = dict(parent.named_children())  # the first one behind the layers: BLOOM has one before too
    norms = [child for child in [*children, *children][list(children).index(name):]
             if "norm" in type(children[child]).__name__.lower()]
    if not norms:
        raise _bad_parts(f"norm: {type(model).__name__} has no final normalisation beside its layers; take "
                         "last:N or another part")
    return [children[norms[0]]]


def _new_head(model, value: str) -> list[nn.Module]:
    """An output head of its own, at first equal to the shared embedding; an earlier stage's goes on."""
    head = model.get_output_embeddings()
    if not _tied(model):
        return [head]
    head.weight = nn.Parameter(model.get_input_embeddings().weight.detach().clone())
    model.config.tie_word_embeddings = model.config.get_text_config().tie_word_embeddings = False
    # transformers lists tied weights per instance, and would save one tensor for both
    model.all_tied_weights_keys = {}
    return [head]


def _new_blocks(model, value: str) -> list[nn.Module]:
    """N copies of layers, spread over the depth, whose output projections are zero (arXiv:2401.02415).

    A few tokens check that they leave the function unchanged. Where an earlier stage added blocks (the
    configuration's `added_blocks`), those train on and no more are added.
    """
    parent, name, layers = find_decoder_layers(model)
    if getattr(model.config, "added_blocks", None):
        return [layers[index] for index in model.config.added_blocks]
    count = _parse_number("new_blocks", value, len(layers))
    probe = torch.arange(8, device=next(model.parameters()).device)[None]
    probe %= model.config.get_text_config().vocab_size
    before = _logits(model, probe)
    borders = {round((number + 1) * len(layers) / count) - 1 for number in range(count)}
    sources = sorted([*range(len(layers)), *borders])  # a copy comes after its layer
    indices = [index for index in range(1, len(sources)) if sources[index] == sources[index - 1]]
    blocks = [_silent_copy(layers[source]) if index in indices else layers[source]
              for index, source in enumerate(sources)]
    setattr(parent, name, nn.ModuleList(blocks))
    _renumber(model.config.get_text_config(), blocks, sources)
    model.config.added_blocks = indices
    if before is not None and not torch.equal(before, _logits(model, probe)):
        raise BadInput(f"new_blocks: a copied layer of {type(model).__name__} with zero output projections "
                       "still changes the function, so blocks cannot be added to this family",
                       field="trainable_parts")
    return [blocks[index] for index in indices]


PARTS = {"last": _last_layers, "layers": _layer_range, "head": _head, "norm": _norm,
         "new_blocks": _new_blocks, "new_head": _new_head}


def _parse_number(name: str, value: str, limit: int) -> int:
    if not (value.isdigit() and 1 <= int(value) <= limit):
        raise _bad_parts(f"{name}:{value or '?'} needs a number from 1 to {limit}")
    return int(value)


def _tied(model) -> bool:
    return model.get_output_embeddings().weight is model.get_input_embeddings().weight


@torch.no_grad()
def _logits(model, tokens: torch.Tensor) -> torch.Tensor | None:
    """The logits, or None on the meta device, where a model has no values."""
    if tokens.is_meta:
        return None
    model.eval()
    return model(input_ids=tokens, use_cache=False).logits


def _silent_copy(layer: nn.Module) -> nn.Module:
    """A copy of a decoder layer whose output projections, weights and biases, are zero."""
    block = copy.deepcopy(layer)
    for name, parameter in block.named_parameters():
        if any(word in OUTPUT_PROJECTIONS for word in name.split(".")):
            nn.init.zeros_(parameter)
    return block


def _renumber(config, blocks: list[nn.Module], sources: list[int]) -> None:
    """Give every layer its index (the cache needs it), and the configuration an entry by layer for each."""
    for index, block in enumerate(blocks):
        for module in block.modules():
            if isinstance(getattr(module, "layer_idx", None), int):
                module.layer_idx = index
    values, count = config.to_dict(), config.num_hidden_layers
    config.num_hidden_layers = len(blocks)
    for name, value in values.items():
        if isinstance(value, list) and "token_id" not in name:
            setattr(config, name, stretch_list(name, value, sources, count))
    for name in LEADING_LAYERS:
        if name in values:
            setattr(config, name, sum(source < values[name] for source in sources))


def stretch_list(name: str, value: list, sources: list[int], count: int) -> list:
    """A list that has an entry for each layer, or the indices of some layers, for the layers with the copies.

    Indices rise, flags are 0 and 1; [0, 1] of a model of two layers could be both, and the name decides.
    """
    rising = all(type(entry) is int and entry < count for entry in value) and value == sorted(set(value))
    flags = len(value) == count and all(entry in (0, 1) for entry in value)
    named = any(word in name for word in ("layer", "idx", "indices"))
    if rising and (name in INDEX_LISTS or named and not flags):
        return [index for index, source in enumerate(sources) if source in value]
    return [value[source] for source in sources] if len(value) == count else value


def check_rebuild(model) -> None:
    """Raise BadInput where the model that the configuration builds, as it will be loaded, is another one.

    It is built without weights; parameters and their shapes are compared, and each layer's modules by class
    and by their own plain values, such as whether it turns positions or how far it sees.
    """
    try:
        with tempfile.TemporaryDirectory() as folder:
            model.config.save_pretrained(folder)
            again = build_empty(AutoConfig.from_pretrained(folder))
        wanted, found = _describe(model), _describe(again)
    except Exception as error:  # whatever a family's code raises for lists of other lengths
        raise _bad_parts(f"a {type(model).__name__} with new parts cannot be built from its configuration "
                         f"({type(error).__name__}: {error}); take last:N, or another method") from error
    for name in sorted(wanted.keys() | found.keys()):
        if (mine := wanted.get(name)) != (other := found.get(name)):
            raise _bad_parts(f"a {type(model).__name__} with new parts would be loaded as another model, in "
                             f"{name} ({mine} as trained, {other} as loaded); take last:N, or another method")


def _describe(model) -> dict[str, object]:
    """By name: the shape of each parameter, and the class and the plain values of each module of a layer."""
    described = {name: tuple(weight.shape) for name, weight in model.named_parameters()}
    for number, layer in enumerate(find_decoder_layers(model)[2]):
        for name, module in layer.named_modules(prefix=f"layer {number}"):
            described[name] = type(module).__name__
            described |= {f"{name}.{key}": value for key, value in vars(module).items()
                          if not key.startswith("_") and isinstance(value, PLAIN)}
    return described
