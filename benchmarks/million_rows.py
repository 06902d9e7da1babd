"""Memory and time to prepare a JSON Lines file of a million rows: read, split, encoded, mixed, packed.

    python benchmarks/million_rows.py [--rows 1000000] [--folder DIR]

It writes the file itself, prepares mode 1 on it with the pocket model and an empty cache, reads some blocks
of the stage as training would, and prints seconds and the peak of RssAnon and of all resident memory up to
each point. One thread. Exits with 1 if RssAnon exceeded 1 GB: pages of a mapped file (the rest of what is
resident) cost nothing that the kernel may not take back.
"""

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
import threading
import time
from pathlib import Path

LIMIT = 1_000_000_000  # bytes of anonymous memory
INTERVAL = 0.02  # seconds between samples: Linux keeps a peak of VmRSS (VmHWM), none of RssAnon
WORDS = "red blue grey lamp table stone river cat bird north east stands under beside behind above".split()


def write(path: Path, rows: int) -> None:
    """Questions about invented things, some 200 characters a row, hardly two alike."""
    order = random.Random(0)
    with open(path, "w", encoding="utf-8") as file:
        for number in range(rows):
            words = " ".join(order.choices(WORDS, k=order.randint(8, 40)))
            file.write(json.dumps({"question": f"Thing {number}: {words}. Where is it?",
                                   "answer": " ".join(order.choices(WORDS, k=order.randint(1, 6)))}) + "\n")


def read_bytes(name: str) -> int:
    """A size in this process's status, such as RssAnon or VmHWM (the peak of all resident memory)."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{name}:")[1].split()[0]) * 1024


def sample_peak(peak: list[int]) -> None:
    """Keep the highest RssAnon in `peak[0]`, for as long as the process lives."""
    while True:
        peak[0] = max(peak[0], read_bytes("RssAnon"))
        time.sleep(INTERVAL)


def main() -> int:
    """Write, prepare, report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, help="where file and cache lie (default: a temporary folder)")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="million-", dir=options.folder))
    os.environ |= {"HF_DATASETS_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1",
                   "TOKENIZERS_PARALLELISM": "false"}
    try:
        write(folder / "rows.jsonl", options.rows)
        began, peak = time.time(), [0]
        threading.Thread(target=sample_peak, args=[peak], daemon=True).start()

        def report(what: str) -> None:
            resident = read_bytes("VmHWM")
            sys.stdout.write(f"{time.time() - began:5.0f} s, {time.process_time():5.0f} s of CPU, RssAnon "
                             f"{peak[0] / 1e6:5.0f} MB, resident {resident / 1e6:5.0f} MB: {what}\n")
            sys.stdout.flush()

        report(f"wrote {options.rows:,} rows, {(folder / 'rows.jsonl').stat().st_size / 1e6:.0f} MB")
        from sftbench.recipes.recipe import Recipe, override
        from sftbench.training.prepare import prepare_recipe, stage_dataset
        report("loaded the libraries")
        recipe = override(Recipe(), mode="1", domain_tasks=str(folder / "rows.jsonl"), num_train_epochs=2.0)
        for what in ("read and encoded them", "the same from the cache"):
            ready = None  # what the first has read is given back before the second
            ready = prepare_recipe(recipe)
            report(f"{what}: {ready.facts.rows['domain_tasks']:,} to train on, "
                 f"{ready.facts.tokens['domain_tasks']:,} tokens")
        dataset, drawn = stage_dataset(ready, ready.stages[0])
        report(f"mixed and packed two passes: {drawn['domain_tasks']['rows']:,} rows, "
               f"{len(dataset):,} blocks")
        for start in range(0, len(dataset), max(1, len(dataset) // 100)):
            dataset[start:start + 8]
        report("read 100 batches of blocks")
        return int(peak[0] > LIMIT)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    sys.exit(main())
