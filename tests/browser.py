"""The browser of the browser tests: found, or else installed. `python tests/browser.py` does both.

It takes what the variable CHROMIUM names, a Chromium or Chrome on the PATH, or playwright's own; else it
installs Debian's by apt, and where that cannot be, playwright's.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def find_browser() -> str | None:
    """The path of a browser, or None where there is none."""
    if named := os.environ.get("CHROMIUM"):
        return shutil.which(named)
    on_path = next(filter(None, map(shutil.which, NAMES)), None)
    return on_path or _find_playwrights_own()


def _find_playwrights_own() -> str | None:
    from playwright.sync_api import sync_playwright
    with sync_playwright() as playwright:
        path = playwright.chromium.executable_path
    return path if Path(path).exists() else None


def install_browser() -> str | None:
    """Install a browser in the first way that works, and return its path, or None where no way does."""
    as_root = [] if os.geteuid() == 0 else ["sudo", "-n"]  # -n: never wait for a password
    quiet = ["env", "DEBIAN_FRONTEND=noninteractive"]
    ways = [[[*as_root, "apt-get", "update", "-qq"],
             [*as_root, *quiet, "apt-get", "install", "-y", "-qq", "--no-install-recommends", "chromium",
              "fonts-liberation"]],
            [[sys.executable, "-m", "playwright", "install", "--with-deps", "chromium"]]]
    for commands in ways:
        if all(map(_succeeds, commands)) and (path := find_browser()):
            return path
    return None


def _succeeds(command: list[str]) -> bool:
    try:
        return subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0
    except FileNotFoundError:
        return False


def main() -> int:
    """Find a browser or install one; returns the exit code."""
    if find_browser():
        return 0
    if named := os.environ.get("CHROMIUM"):
        sys.stderr.write(f"CHROMIUM names {named}, which is not there; correct it, or unset it.\n")
        return 1
    sys.stdout.write("Installing Chromium for the browser tests: once.\n")
    sys.stdout.flush()
    if install_browser():
        return 0
    sys.stderr.write("No browser for the tests: apt and playwright could install none; install Chromium or "
                     "Chrome, or name one by CHROMIUM=/path/to/it.\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
