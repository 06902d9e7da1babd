"""A real JupyterLab on a folder, and a browser on one of its notebooks, for the tests marked `browser`."""

import contextlib
import os
import secrets
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from tests.browser import find_browser

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
         "--disable-background-networking", "--disable-component-update"]


@contextlib.contextmanager
def server(folder: Path, **environment: str):
    """A running JupyterLab on `folder`, runs under `folder/runs`; gives a notebook's address by its name."""
    settings = folder / "settings" / "@jupyterlab"
    for name, text in {"notebook-extension/tracker": '{"windowingMode": "none"}',  # every cell in the page
                       "apputils-extension/notification": '{"fetchNews": "false", "checkForUpdates": false}'
                       }.items():
        path = settings / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token = secrets.token_hex(16)
    process = subprocess.Popen(
        [sys.executable, "-m", "jupyterlab", "--ip=127.0.0.1", f"--port={port}", "--no-browser",
         "--allow-root", f"--IdentityProvider.token={token}", f"--notebook-dir={folder}"],
        env={**os.environ, "SFTBENCH_RUNS": str(folder / "runs"),
             "JUPYTERLAB_SETTINGS_DIR": str(folder / "settings"), **environment},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(120):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/api/status?token={token}", timeout=2)
                break
            except (urllib.error.URLError, OSError):
                time.sleep(0.5)
        yield lambda name: f"http://127.0.0.1:{port}/lab/tree/{name}?token={token}&reset"
    finally:
        process.terminate()
        process.wait(20)


@contextlib.contextmanager
def page(width: int = 1280, height: int = 800):
    """An empty page of a headless Chromium."""
    from playwright.sync_api import sync_playwright
    chromium = find_browser()  # before playwright runs: it looks for its own by another one
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        try:
            yield browser.new_page(viewport={"width": width, "height": height})
        finally:
            browser.close()


def run_all(page, address: str) -> None:
    """Open a notebook, wait for its kernel, and run all its cells."""
    page.goto(address)
    page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=60_000)
    page.get_by_text("Python 3 (ipykernel) | Idle").wait_for(timeout=60_000)
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_text("Run All Cells", exact=True).click()
