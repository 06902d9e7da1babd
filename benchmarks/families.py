"""The families' table in docs/models.md: every decoder-only family that transformers knows, by every method.

    python benchmarks/families.py [--log runs/families.jsonl] [FAMILY …]

A tiny model of each family is trained for two steps by each method, handed over, exported and loaded again,
each family in a process of its own, with a limit of time. What is in the log is not tried again.
"""

import argparse
import gc
import importlib
import json
import multiprocessing
import re
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

from performance_page import write_between

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
from sftbench.recipes.recipe import METHODS  # noqa: E402
from tests.conftest import make_tokenizer  # noqa: E402
from tests.families import causal_families, other_kind, try_family  # noqa: E402

PAGE, MARKS = ROOT / "docs" / "models.md", ("<!-- families -->\n", "<!-- end of families -->")
IMPORTED = ("sftbench.export.export", "sftbench.training.chain", "bitsandbytes", "torch._dynamo")
LIMIT = 300  # seconds for a family
CLASS = re.compile(r"^\w+(ForCausalLM|Model|Decoder):? |^\w+LMHead\w+:? ")  # at the beginning of a refusal


def main(arguments: list[str]) -> None:
    """Try the families that are not in the log, and write the page's table if all were tried."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("families", nargs="*")
    parser.add_argument("--log", type=Path, default=ROOT / "runs" / "families.jsonl")
    options = parser.parse_args(arguments)
    options.log.parent.mkdir(parents=True, exist_ok=True)
    known = read_log(options.log)
    for name in IMPORTED:  # nothing is run before the fork: threads would be missing behind it
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # what the imports made is left out when a run looks for garbage: half of its time
    for family in options.families or causal_families():
        if family not in known:
            began, known[family] = time.monotonic(), in_a_process(family)
            with open(options.log, "a") as file:
                file.write(json.dumps({"family": family} | known[family]) + "\n")
            sys.stdout.write(f"{family} {time.monotonic() - began:.0f} s {outcome(known[family])}\n")
            sys.stdout.flush()
    if not options.families:
        write_between(PAGE, MARKS, table(known))


def read_log(path: Path) -> dict[str, dict]:
    """What was found by family."""
    lines = path.read_text().splitlines() if path.exists() else []
    return {entry.pop("family"): entry for entry in map(json.loads, lines)}


def in_a_process(family: str) -> dict:
    """What `try_family` finds, in a forked process: it begins with all libraries loaded."""
    if kind := other_kind(family):
        return {"other": kind}
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send_result, args=(sender, family))
    process.start()
    sender.close()
    try:
        return receiver.recv() if receiver.poll(LIMIT) else {"built": f"not within {LIMIT} s"}
    except EOFError:
        return {"built": "its process died"}
    finally:
        process.kill()
        process.join()


def _send_result(sender, family: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        sender.send(try_family(family, make_tokenizer(), Path(folder)))


def outcome(found: dict) -> str:
    """What of a family counts for its line: why it is not tried, or what each method does."""
    if "other" in found:
        return "no decoder-only model of text alone, not tried"
    if "built" in found:
        return "not built small from its configuration alone"
    cells = {method: _cell(found[method]) for method in METHODS}
    done = [method for method, cell in cells.items() if cell in ("packed", "unpacked")]
    if not done:
        return cells["full"]
    faults = {f"{cell} by {method}" for method, cell in cells.items() if cell.startswith("FAILS")}
    named = "every method" if len(done) == len(METHODS) else ", ".join(done)
    return "; ".join([named, *sorted(faults)])


def _cell(found: dict) -> str:
    if "failed" in found:
        return f"FAILS ({found['failed'].split(';')[0]})"
    if "refused" in found:
        return f"refused: {CLASS.sub('', found['sentence']).split(' (')[0].split(';')[0]}"
    return ("packed" if found["packs"] else "unpacked") + ", OTHER ANSWERS" * (not found["equal"])


def table(known: dict[str, dict]) -> str:
    """The families by what each method does with them, as a Markdown list; a star: rows are not packed."""
    groups = defaultdict(list)
    for family, found in sorted(known.items()):
        unpacked = found.get("full", {}).get("packs") is False
        groups[outcome(found)].append(family + " \\*" * unpacked)
    return "\n".join(f"- {key}: {', '.join(families)}" for key, families in groups.items()) + "\n"


if __name__ == "__main__":
    main(sys.argv[1:])
