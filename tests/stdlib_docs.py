"""Data that nobody wrote for this project: the docstrings of Python's standard library, as two files.

    python tests/stdlib_docs.py docs_data
    sftbench run 2 -p domain_text docs_data/domain_text.jsonl -p domain_tasks docs_data/domain_tasks.jsonl

`domain_text.jsonl` holds one documented function or class a line, as text; `domain_tasks.jsonl` asks which
module it belongs to. Text and tasks are about the same things, so CPT can teach what the tasks ask.
"""

import importlib
import inspect
import json
import sys
from pathlib import Path

MODULES = """argparse ast asyncio base64 bisect calendar cmath codecs collections colorsys concurrent.futures
configparser contextlib copy csv datetime decimal difflib dis email enum fileinput fnmatch fractions functools
gettext glob gzip hashlib heapq hmac html http imaplib inspect io ipaddress itertools json keyword linecache
locale logging lzma mailbox math mimetypes numbers operator os pathlib pickletools pkgutil platform plistlib
pprint queue quopri random re reprlib sched secrets selectors shelve shlex shutil signal smtplib socket
statistics string struct subprocess symtable sysconfig tarfile tempfile textwrap threading timeit tokenize
trace traceback types unicodedata unittest urllib.parse uuid warnings wave weakref zipfile zoneinfo""".split()
LONGEST = 600  # characters kept of a docstring


def documented(module_name: str) -> list[tuple[str, str, str]]:
    """The public functions and classes that a module itself defines: name, signature, docstring."""
    module = importlib.import_module(module_name)
    found = []
    for name, value in sorted(vars(module).items()):
        home = getattr(value, "__module__", None) or ""
        if name.startswith("_") or not callable(value) or home.split(".")[0] != module_name.split(".")[0]:
            continue
        doc = inspect.getdoc(value)
        try:
            signature = str(inspect.signature(value))
        except (ValueError, TypeError):
            signature = "(...)"
        if doc and len(signature) < 80:
            found.append((name, signature, doc[:LONGEST]))
    return found


def write(folder: Path) -> dict[str, int]:
    """Write both files into `folder` and return how many rows each holds."""
    folder.mkdir(parents=True, exist_ok=True)
    texts, tasks = [], []
    for module in MODULES:
        for name, signature, doc in documented(module):
            texts.append({"text": f"{module}.{name}{signature}\n{doc}"})
            tasks.append({"prompt": f"Which module has {name}{signature}?", "completion": module})
    for role, rows in (("domain_text", texts), ("domain_tasks", tasks)):
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / f"{role}.jsonl").write_text(lines, encoding="utf-8")
    return {"domain_text": len(texts), "domain_tasks": len(tasks)}


if __name__ == "__main__":
    sys.stdout.write(f"{write(Path(sys.argv[1] if len(sys.argv) > 1 else 'docs_data'))}\n")
