"""The pocket lab: an embedded world with its data and three small models, so that a bench run takes a minute.

`world` makes the data, `build` made the weights; this module only says where they lie.
"""

from pathlib import Path

FOLDERS = {
    "pocket": Path(__file__).parent / "base",
    "pocket-chat": Path(__file__).parent / "chat",
    "pocket-weak": Path(__file__).parent / "weak",
}
