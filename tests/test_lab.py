"""A mode's notebook in a real JupyterLab and browser: run all cells, see the live plot and the ledger."""

import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
         "--disable-background-networking", "--disable-component-update"]


@pytest.fixture
def lab(tmp_path):
    """A running JupyterLab on a folder with a short copy of mode 6's notebook; its address and token."""
    source = next((ROOT / "notebooks").glob("mode_6_*.ipynb")).read_text()
    assert "max_steps: int = None" in source
    (tmp_path / "short.ipynb").write_text(source.replace("max_steps: int = None", "max_steps: int = 30"))
    settings = tmp_path / "settings" / "@jupyterlab" / "notebook-extension"
    settings.mkdir(parents=True)  # every cell in the page, also those out of sight
    (settings / "tracker.jupyterlab-settings").write_text('{"windowingMode": "none"}')
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token = secrets.token_hex(16)
    server = subprocess.Popen(
        [sys.executable, "-m", "jupyterlab", "--ip=127.0.0.1", f"--port={port}", "--no-browser",
         "--allow-root", f"--IdentityProvider.token={token}", f"--notebook-dir={tmp_path}"],
        env={**os.environ, "SFTBENCH_RUNS": str(tmp_path / "runs"),
             "JUPYTERLAB_SETTINGS_DIR": str(tmp_path / "settings")},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(120):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/api/status?token={token}", timeout=2)
                break
            except (urllib.error.URLError, OSError):
                time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/lab/tree/short.ipynb?token={token}&reset"
    finally:
        server.terminate()
        server.wait(20)


@pytest.mark.browser
@pytest.mark.timeout(300)
def test_a_notebook_runs_in_jupyterlab(lab, tmp_path):
    from playwright.sync_api import sync_playwright
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        page.goto(lab)
        page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=60_000)
        page.get_by_text("Python 3 (ipykernel) | Idle").wait_for(timeout=60_000)
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_text("Run All Cells", exact=True).click()
        page.wait_for_function("() => document.querySelector('.jp-OutputArea img')", timeout=180_000)
        cells = page.locator(".jp-Notebook")
        page.wait_for_function(
            "() => [...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')].every("
            "prompt => /\\[\\d+\\]/.test(prompt.textContent))", timeout=180_000)
        text = cells.inner_text()
        picture = os.environ.get("SFTBENCH_SCREENSHOT")
        if picture:
            page.locator("[id=train], .jp-OutputArea img").first.scroll_into_view_if_needed()
            page.screenshot(path=picture)
        browser.close()
    assert "Traceback" not in text and re.search(r"done after \d+ s", text)
    assert "start (chat)" in text and "domain_sft" in text
    runs = list((tmp_path / "runs").glob("mode_6-full-*"))
    assert len(runs) == 1 and (runs[0] / "result.json").exists() and (runs[0] / "loss.png").exists()
