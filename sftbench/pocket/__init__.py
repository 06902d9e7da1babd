"""The pocket lab: an embedded world with its data and three small models, so that a bench run takes a minute.

`world` generates the data, `build` trained the weights; here are the folders of the weights.
"""

from pathlib import Path

FOLDERS = {
    "pocket": Path(__file__).parent / "base",
    "pocket-chat": Path(__file__).parent / "chat",
    "pocket-weak": Path(__file__).parent / "weak",
}
