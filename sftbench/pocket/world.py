"""A small invented world: general knowledge, and a company whose handbook pre-training did not see.

Everything is drawn by a seed from the words and sentences of `world.toml`. One rule holds for all of it:
*statements* cover every item, *questions* only two thirds of the items; about the other third only the probes
ask. So a probe measures knowledge that must come from text, never an answer that was trained.
"""

import json
import random
import tomllib
from functools import lru_cache, partial
from itertools import pairwise, permutations, product
from pathlib import Path

from ..errors import BadInput
from ..recipes.recipe import ROLES

SPLITS = ("train", "probe")
SYSTEM, USER, ASSISTANT = "<|system|>", "<|user|>", "<|assistant|>"
PEOPLE, PRODUCTS = 72, 32
FACTS = ("city", "food", "job", "animal")  # the abilities that are about people

_TABLES = tomllib.loads(Path(__file__).with_name("world.toml").read_text(encoding="utf-8"))
VALUES, SKILLS, ABILITIES, HANDBOOK, CARD, DESK = (
    _TABLES[name] for name in ("values", "skills", "abilities", "handbook", "card", "desk"))


def _distinct(make, count, taken=()):
    """Return `count` different texts of `make()`, none of them in `taken`."""
    texts = {}
    while len(texts) < count:
        if (text := make()) not in taken:
            texts[text] = None
    return list(texts)


def _invent(rng, count, syllables, values, taken=()):
    """Invent names with one of these numbers of syllables, and give each a value of every attribute.

    All values are given about equally often, so that guessing gains little.
    """
    known = [consonant + vowel for consonant in "bdfgklmnprstvz" for vowel in "aeiou"]
    names = _distinct(lambda: "".join(rng.choices(known, k=rng.choice(syllables))).capitalize(), count, taken)
    facts = {name: {} for name in names}
    for attribute, pool in values.items():
        spread = (pool * count)[:count]
        rng.shuffle(spread)
        for name, value in zip(names, spread, strict=True):
            facts[name][attribute] = value
    return facts


@lru_cache
def people():
    """Return the people as {name: {"city", "food", "job", "animal"}}; the last third is held out."""
    return _invent(random.Random("people"), PEOPLE, (2, 3), {fact: VALUES[fact] for fact in FACTS})


@lru_cache
def products(seed=0):
    """Return a company's products as {name: {"maker", "site", "code"}}; the last third is held out."""
    values = {attribute: [value for kind in entry["values"] for value in VALUES[kind]]
              for attribute, entry in HANDBOOK.items()}
    return _invent(random.Random(f"products {seed}"), PRODUCTS, (2,), values, taken=people())


def _part(every, split):
    border = len(every) * 2 // 3
    return every[:border] if split == "train" else every[border:]


def _pairs(ability):
    """Return everything that an ability covers, as pairs of what is asked about and its answer."""
    match ability:
        case "sum":
            return [(f"{a} plus {b}", str(a + b)) for a, b in product(range(10), repeat=2)]
        case "kind":
            return [(word, kind) for kind, words in VALUES.items() for word in words]
        case "next":
            return [pair for order in _TABLES["orders"] for pair in pairwise(order)]
        case "opposite":
            return [pair for a, b in _TABLES["opposites"] for pair in ((a, b), (b, a))]
        case "first" | "last" | "copy":
            lists = [words for count in (2, 3)
                     for words in permutations(VALUES["colour"] + VALUES["food"], count)]
            part = {"first": slice(1), "last": slice(-1, None), "copy": slice(None)}[ability]
            return [(" ".join(words), " ".join(words[part])) for words in lists]
    return [(name, facts[ability]) for name, facts in people().items()]


@lru_cache
def items(ability, split=None):
    """Return what can be asked of an ability, as dicts with "x" and "answer": all, or one split of it."""
    every = [{"x": x, "answer": answer} for x, answer in _pairs(ability)]
    if split and ability not in FACTS:  # people keep their order: the same are held out for every fact
        random.Random(f"items {ability}").shuffle(every)
    return _part(every, split) if split else every


def _statement(entry, item, rng):
    return rng.choice(entry["statements"]).format(**item)


def _portrait(name, facts, table, rng):
    """Return all facts about a person or product in one paragraph, each by a sentence of `table`."""
    sentences = [_statement(table[fact], {"x": name, "answer": value}, rng) for fact, value in facts.items()]
    rng.shuffle(sentences)
    return " ".join(sentences)


def _general_paragraph(rng):
    """Return one paragraph of general text: a person's facts (two of three), or four other statements."""
    if rng.random() < 0.67:
        name = rng.choice(list(people()))
        return _portrait(name, people()[name], ABILITIES, rng)
    skills = rng.choices(list(SKILLS), SKILLS.values(), k=4)
    return " ".join(_statement(ABILITIES[skill], rng.choice(items(skill)), rng) for skill in skills)


def _general_texts(split):
    rng = random.Random(f"general {split}")
    count, taken = (150, ()) if split == "probe" else (900, set(_general_texts("probe")))
    return _distinct(lambda: _general_paragraph(rng), count, taken)


def _domain_texts(split, seed):
    rng, texts = random.Random(f"handbook {split} {seed}"), []
    count, taken = (24, ()) if split == "train" else (4, set(_domain_texts("train", seed)))
    for name, facts in products(seed).items():
        texts += _distinct(partial(_portrait, name, facts, HANDBOOK, rng), count, taken)
    rng.shuffle(texts)
    return texts


def _tasks(about, users, systems=(None,), answer="{answer}"):
    """Return a row for every combination of item, user message and system message."""
    rows = []
    for item, user, system in product(about, users, systems):
        turns = ("system", system), ("user", user.format(**item)), ("assistant", answer.format(**item))
        rows.append({"messages": [{"role": role, "content": content} for role, content in turns if content]})
    return rows


def _cards(wanted, about):
    return _tasks(about, CARD["users"], [system.format(wanted=wanted) for system in CARD["systems"]])


def _general_tasks(split):
    rng, tasks = random.Random(f"general tasks {split}"), []
    per_ability = 50 if split == "train" else 14
    for ability, entry in ABILITIES.items():
        about = items(ability, split)[:100]
        direct = _tasks(about, entry["questions"])
        tasks += rng.sample(direct, min(per_ability, len(direct)))
        if ability in FACTS:
            tasks += rng.sample(_cards(ability, about), per_ability)
    rng.shuffle(tasks)
    return tasks


def _domain_tasks(split, seed, related):
    rng, tasks = random.Random(f"domain tasks {split} {seed}"), []
    facts = _part(list(products(seed).items()), split)
    for wanted in HANDBOOK:
        about = [{"x": name, "answer": values[wanted]} for name, values in facts]
        every = _cards(wanted, about) if related else _tasks(
            about, DESK["users"], DESK["systems"][wanted], DESK["answers"][wanted])
        tasks += every if split == "train" else rng.sample(every, 48)
    rng.shuffle(tasks)
    return tasks


def world_rows(role, split="train", seed=0, related=True):
    """Return the rows of a role: {"text"} for text, {"messages"} for tasks; equal arguments, equal rows.

    `seed` chooses the company (products, handbook, domain tasks), never the general world. With `related` the
    domain's tasks have the form of the general cards, without it a form of their own. Raises KeyError for an
    unknown role or split.
    """
    if role not in ROLES or split not in SPLITS:
        raise KeyError(f"no rows for role {role!r}, split {split!r}: roles are {ROLES}, splits {SPLITS}")
    if role.endswith("_tasks"):
        return _general_tasks(split) if role == "general_tasks" else _domain_tasks(split, seed, related)
    texts = _general_texts(split) if role == "general_text" else _domain_texts(split, seed)
    return [{"text": text} for text in texts]


def _question_text(rng):
    """Return a paragraph of two to four questions with answers, in plain words, of the training part only."""
    abilities, pairs = (FACTS if rng.random() < 0.6 else list(ABILITIES)), []
    for _ in range(rng.choice((2, 3, 4))):
        ability = rng.choice(abilities)
        item = rng.choice(items(ability, "train"))
        question = rng.choice(ABILITIES[ability]["questions"]).format(**item)
        pairs.append(f"Question: {question} Answer: {item['answer']}.")
    return " ".join(pairs)


def _chat_text(rng):
    """Return a conversation in the template's tokens, of the training part; most answers are sentences."""
    ability = rng.choice(FACTS if rng.random() < 0.6 else list(ABILITIES))
    item = rng.choice(items(ability, "train"))
    question = rng.choice(ABILITIES[ability]["questions"]).format(**item)
    sentence, style = _statement(ABILITIES[ability], item, rng), rng.random()
    if ability in FACTS and style < 0.2:
        portrait = _portrait(item["x"], people()[item["x"]], ABILITIES, rng)
        return f"{USER} Tell me about {item['x']}.{ASSISTANT} {portrait}"
    if ability in FACTS and style < 0.4:
        system = rng.choice(CARD["systems"]).format(wanted=ability)
        return f"{SYSTEM} {system}{USER} {rng.choice(CARD['users']).format(**item)}{ASSISTANT} {sentence}"
    if style < 0.6:
        return f"{SYSTEM} Be brief.{USER} {question}{ASSISTANT} {item['answer']}"
    return f"{USER} {question}{ASSISTANT} {sentence}"


def pretraining_text(seed=0):
    """Yield without end the documents of pre-training; no probe row and no probe question is among them."""
    rng = random.Random(f"pre-training {seed}")
    probe = set(_general_texts("probe"))
    while True:
        share = rng.random()
        text = (_general_paragraph if share < 0.65 else _question_text if share < 0.83 else _chat_text)(rng)
        if text not in probe:
            yield text


def write_files(folder, seed=0, related=True):
    """Write the four roles with both splits as JSON Lines files into `folder` and return their paths.

    Raises BadInput, before anything is overwritten, for an existing file of other rows.
    """
    files = {Path(folder) / f"{role}{'' if split == 'train' else '_probe'}.jsonl": "".join(
        json.dumps(row) + "\n" for row in world_rows(role, split, seed, related))
        for role, split in product(ROLES, SPLITS)}
    if Path(folder).is_file():
        raise BadInput(f"{folder}: a file is there; name a folder", field="folder", where=str(folder))
    for path, lines in files.items():
        if path.exists() and path.read_bytes() != lines.encode():
            raise BadInput(f"{path}: there already, with other rows; name another folder", field="folder",
                           where=str(path))
    for path, lines in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(lines, encoding="utf-8", newline="\n")
    return list(files)
