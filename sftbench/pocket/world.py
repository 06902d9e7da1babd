"""A small invented world: general knowledge, and a company whose handbook pre-training did not see.

Everything is made from a seed with the standard library. One rule holds for all of it: *statements* cover
every item, *questions* only two thirds of the items; the other third is asked about in the probes alone. So a
probe measures knowledge that must come from text, never an answer that was trained.
"""

import json
import random
from functools import lru_cache, partial
from itertools import permutations, product
from pathlib import Path

from ..errors import BadInput

ROLES = ("domain_text", "domain_tasks", "general_text", "general_tasks")
SPLITS = ("train", "probe")
SYSTEM, USER, ASSISTANT = "<|system|>", "<|user|>", "<|assistant|>"

SYLLABLES = [consonant + vowel for consonant in "bdfgklmnprstvz" for vowel in "aeiou"]
VALUES = {
    "colour": "red blue green black white yellow orange purple grey brown pink silver".split(),
    "city": "Lisbon Oslo Cairo Lima Tokyo Paris Delhi Quito Rome Seoul Miami Bern".split(),
    "food": "rice bread soup fish beans cake cheese apples noodles salad".split(),
    "job": "baker pilot teacher doctor farmer singer tailor painter driver clerk".split(),
    "animal": "cat dog horse rabbit parrot turtle goat fox".split(),
}
ORDERS = [line.split() for line in (
    "Monday Tuesday Wednesday Thursday Friday Saturday Sunday",
    "January February March April May June July August September October November December",
    "one two three four five six seven eight nine ten eleven twelve")]
OPPOSITES = ("hot cold big small fast slow old new up down open shut wet dry light dark full empty loud "
             "quiet high low soft hard early late rich poor left right strong weak").split()

PEOPLE, PRODUCTS = 72, 32
FACTS = ("city", "food", "job", "animal")
SKILLS = {"sum": 2, "next": 2, "opposite": 2, "kind": 1, "first": 1, "last": 1, "copy": 1}  # weight in text

# ability -> (statements, questions); {x} is what is asked about, {answer} the answer
ABILITIES = {
    "city": (["{x} lives in {answer}.", "The home of {x} is in {answer}.", "{x} has a house in {answer}.",
              "People know that {x} stays in {answer}.", "If you visit {answer}, you can meet {x}."],
             ["Where does {x} live?", "In which city is the home of {x}?", "What is the city of {x}?"]),
    "food": (["{x} likes to eat {answer}.", "The favourite food of {x} is {answer}.",
              "For lunch {x} always takes {answer}.", "{x} never says no to {answer}.",
              "Give {answer} to {x} and see a smile."],
             ["What does {x} like to eat?", "What is the favourite food of {x}?",
              "Which food does {x} take for lunch?"]),
    "job": (["{x} works as a {answer}.", "The job of {x} is {answer}.", "{x} earns money as a {answer}.",
             "Every day {x} goes to work as a {answer}.", "As a {answer}, {x} is well known."],
            ["What is the job of {x}?", "What does {x} work as?", "How does {x} earn money?"]),
    "animal": (["{x} keeps a {answer}.", "The animal of {x} is a {answer}.", "At home {x} has a {answer}.",
                "{x} feeds a {answer} each morning.", "A {answer} follows {x} everywhere."],
               ["What is the animal of {x}?", "Which animal does {x} keep?",
                "What animal does {x} have at home?"]),
    "sum": (["{x} is {answer}.", "If you count {x} you get {answer}."], ["What is {x}?", "Count {x}."]),
    "kind": (["{x} is a kind of {answer}.", "We call {x} a {answer}.", "A good {answer} is {x}."],
             ["What kind of thing is {x}?", "What do we call {x}?"]),
    "next": (["After {x} comes {answer}.", "The one after {x} is {answer}.", "First {x}, then {answer}."],
             ["What comes after {x}?", "Which is the one after {x}?"]),
    "opposite": (["The opposite of {x} is {answer}.", "What is not {x} is {answer}.",
                  "Some are {x}, others are {answer}."],
                 ["What is the opposite of {x}?", "What is it if it is not {x}?"]),
    "first": (["The first of {x} is {answer}.", "{x} starts with {answer}."],
              ["What is the first of {x}?", "What does {x} start with?"]),
    "last": (["The last of {x} is {answer}.", "{x} ends with {answer}."],
             ["What is the last of {x}?", "What does {x} end with?"]),
    "copy": (["Say {x} again: {answer}.", "Repeat {x} and you get {answer}."],
             ["Say {x} again.", "Repeat {x}."]),
}

# attribute of a product -> (values, statements of the handbook). Values are of kinds that the base looked up
# by name in its general world: with another kind, held-out questions stayed at 0.4 although the text was
# known by heart.
HANDBOOK = {
    "maker": (VALUES["job"], [
        "{x} is made by a {answer}.", "{x} is the work of a {answer}.", "{x} is built by a {answer}.",
        "For {x} ask a {answer}.", "{x} comes from a {answer}.", "To repair {x} call a {answer}."]),
    "site": (VALUES["city"], [
        "{x} ships from {answer}.", "{x} is stored in {answer}.", "{x} stays in {answer}.",
        "You find {x} in {answer}.", "{x} leaves from {answer}.", "Pick up {x} in {answer}."]),
    "code": (VALUES["animal"] + VALUES["food"], [
        "{x} has the code name {answer}.", "The code name of {x} is {answer}.", "We call {x} the {answer}.",
        "{x} is listed as {answer}.", "{x} is known as the {answer}.", "{x} stands for {answer}."]),
}

# A card: the user only names something; what is wanted about it is told by the system prompt alone.
CARD_SYSTEMS = ["Name the {wanted}.", "Which {wanted}?"]
CARD_USERS = ["What about {x}?", "This is about {x}.", "Please look up {x}."]
# The unrelated domain asks for the same knowledge in a form that no general task has.
DESK_SYSTEMS = {"maker": ["desk 1", "route"], "site": ["desk 2", "fetch"], "code": ["desk 3", "label"]}
DESK_USERS = ["ticket / {x} / down", "{x} : fault", "log > {x} > stop"]
DESK_ANSWERS = {"maker": "by {answer}!", "site": "from {answer}!", "code": "as {answer}!"}


def _names(count, rng, syllables, taken=()):
    """Return `count` invented names with one of these numbers of syllables, none of them in `taken`."""
    return _distinct(
        lambda: "".join(rng.choices(SYLLABLES, k=rng.choice(syllables))).capitalize(), count, taken)


def _facts(names, values, rng):
    """Give each name a value of every attribute, all values about equally often: guessing gains little."""
    facts = {name: {} for name in names}
    for attribute, pool in values.items():
        spread = (pool * len(names))[:len(names)]
        rng.shuffle(spread)
        for name, value in zip(names, spread, strict=True):
            facts[name][attribute] = value
    return facts


@lru_cache
def people():
    """Return the people as {name: {"city", "food", "job", "animal"}}; the last third is held out."""
    rng = random.Random("people")
    return _facts(_names(PEOPLE, rng, (2, 3)), {fact: VALUES[fact] for fact in FACTS}, rng)


@lru_cache
def products(seed=0):
    """Return a company's products as {name: {"maker", "site", "code"}}; the last third is held out."""
    rng = random.Random(f"products {seed}")
    values = {attribute: pool for attribute, (pool, _) in HANDBOOK.items()}
    return _facts(_names(PRODUCTS, rng, (2,), taken=people()), values, rng)


def _part(every, split):
    border = len(every) * 2 // 3
    return every[:border] if split == "train" else every[border:]


def _all_items(ability):
    if ability in FACTS:
        return [{"x": name, "answer": facts[ability]} for name, facts in people().items()]
    if ability == "sum":
        return [{"x": f"{a} plus {b}", "answer": str(a + b)} for a in range(10) for b in range(10)]
    if ability == "kind":
        return [{"x": word, "answer": kind} for kind, words in VALUES.items() for word in words]
    if ability == "next":
        return [{"x": a, "answer": b} for order in ORDERS for a, b in zip(order, order[1:], strict=False)]
    if ability == "opposite":
        return [{"x": word, "answer": OPPOSITES[place ^ 1]} for place, word in enumerate(OPPOSITES)]
    lists = [words for count in (2, 3) for words in permutations(VALUES["colour"] + VALUES["food"], count)]
    answer = {"first": lambda words: words[0], "last": lambda words: words[-1], "copy": " ".join}[ability]
    return [{"x": " ".join(words), "answer": answer(words)} for words in lists]


@lru_cache
def items(ability, split=None):
    """Return what can be asked of an ability, as dicts with "x" and "answer": all, or one split of it."""
    every = _all_items(ability)
    if split and ability not in FACTS:  # people keep their order: the same are held out for every fact
        random.Random(f"items {ability}").shuffle(every)
    return _part(every, split) if split else every


def _statement(ability, item, rng):
    return rng.choice(ABILITIES[ability][0]).format(**item)


def _portrait(name, rng):
    facts = [_statement(fact, {"x": name, "answer": value}, rng) for fact, value in people()[name].items()]
    rng.shuffle(facts)
    return " ".join(facts)


def _general_paragraph(rng):
    """Return one paragraph of general text: a person's facts (two of three), or four other statements."""
    if rng.random() < 0.67:
        return _portrait(rng.choice(list(people())), rng)
    skills = rng.choices(list(SKILLS), SKILLS.values(), k=4)
    return " ".join(_statement(ability, rng.choice(items(ability)), rng) for ability in skills)


def _product_paragraph(name, seed, rng):
    sentences = [rng.choice(HANDBOOK[attribute][1]).format(x=name, answer=value)
                 for attribute, value in products(seed)[name].items()]
    rng.shuffle(sentences)
    return " ".join(sentences)


def _distinct(make, count, taken=()):
    """Return `count` different texts of `make()`, none of them in `taken`."""
    texts = {}
    while len(texts) < count:
        text = make()
        if text not in taken:
            texts[text] = None
    return list(texts)


def _general_texts(split):
    rng = random.Random(f"general {split}")
    count, taken = (150, ()) if split == "probe" else (900, set(_general_texts("probe")))
    return _distinct(lambda: _general_paragraph(rng), count, taken)


def _domain_texts(split, seed):
    rng, texts = random.Random(f"handbook {split} {seed}"), []
    taken = set() if split == "train" else set(_domain_texts("train", seed))
    for name in products(seed):
        make = partial(_product_paragraph, name, seed, rng)
        texts += _distinct(make, 24 if split == "train" else 4, taken)
    rng.shuffle(texts)
    return texts


def _task(user, answer, system=None):
    turns = (("system", system), ("user", user), ("assistant", answer))
    return {"messages": [{"role": role, "content": content} for role, content in turns if content]}


def _cards(wanted, asked):
    systems = [system.format(wanted=wanted) for system in CARD_SYSTEMS]
    return [_task(user.format(**item), item["answer"], system)
            for item, user, system in product(asked, CARD_USERS, systems)]


def _desk_tasks(wanted, asked):
    return [_task(user.format(**item), DESK_ANSWERS[wanted].format(**item), system)
            for item, user, system in product(asked, DESK_USERS, DESK_SYSTEMS[wanted])]


def _general_tasks(split):
    rng, tasks = random.Random(f"general tasks {split}"), []
    per_ability = 50 if split == "train" else 14
    for ability, (_, questions) in ABILITIES.items():
        asked = items(ability, split)[:100]
        direct = [_task(text.format(**item), item["answer"]) for item, text in product(asked, questions)]
        tasks += rng.sample(direct, min(per_ability, len(direct)))
        if ability in FACTS:
            tasks += rng.sample(_cards(ability, asked), per_ability)
    rng.shuffle(tasks)
    return tasks


def _domain_tasks(split, seed, related):
    rng, tasks = random.Random(f"domain tasks {split} {seed}"), []
    facts = _part(list(products(seed).items()), split)
    for attribute in HANDBOOK:
        asked = [{"x": name, "answer": values[attribute]} for name, values in facts]
        every = _cards(attribute, asked) if related else _desk_tasks(attribute, asked)
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
    """Return a paragraph of three questions with answers, in plain words, about the asked part only."""
    abilities, pairs = (FACTS if rng.random() < 0.6 else list(ABILITIES)), []
    for _ in range(rng.choice((2, 3, 4))):
        ability = rng.choice(abilities)
        item = rng.choice(items(ability, "train"))
        question = rng.choice(ABILITIES[ability][1]).format(**item)
        pairs.append(f"Question: {question} Answer: {item['answer']}.")
    return " ".join(pairs)


def _chat_text(rng):
    """Return a conversation in the template's tokens about the asked part; most answers are sentences."""
    ability = rng.choice(FACTS) if rng.random() < 0.6 else rng.choice(list(ABILITIES))
    item = rng.choice(items(ability, "train"))
    question = rng.choice(ABILITIES[ability][1]).format(**item)
    sentence, style = _statement(ability, item, rng), rng.random()
    if ability in FACTS and style < 0.2:
        return f"{USER} Tell me about {item['x']}.{ASSISTANT} {_portrait(item['x'], rng)}"
    if ability in FACTS and style < 0.4:
        system = rng.choice(CARD_SYSTEMS).format(wanted=ability)
        return f"{SYSTEM} {system}{USER} {rng.choice(CARD_USERS).format(**item)}{ASSISTANT} {sentence}"
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

    Raises BadInput, before anything is overwritten, for a file of other rows in its place.
    """
    files = {Path(folder) / f"{role}{'' if split == 'train' else '_probe'}.jsonl": "".join(
        json.dumps(row) + "\n" for row in world_rows(role, split, seed, related))
        for role, split in product(ROLES, SPLITS)}
    for path, lines in files.items():
        if path.exists() and path.read_bytes() != lines.encode():
            raise BadInput(f"{path}: there already, with other rows; name another folder")
    for path, lines in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(lines, encoding="utf-8", newline="\n")
    return list(files)
