"""Record the pictures of the server's page in docs/images: on a desktop, and on a telephone.

python tools/record_page.py

It starts `qwen3-ranker serve` with the demonstration model. It needs a Chromium: this machine's, or playwright's own.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
from playwright.sync_api import ViewportSize, sync_playwright

IMAGES = Path(__file__).parents[1] / "docs" / "images"
INSTALLED = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
SIZES: dict[str, ViewportSize] = {
    "server-page.png": {"width": 1280, "height": 900},
    "server-page-phone.png": {"width": 390, "height": 844},
}
#: A CPU with other work ranks the 50 passages of the example in seconds.
PATIENCE_MS = 120_000


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/ready").is_success
    except httpx.TransportError:  # it does not listen yet
        return False


def wait_for(server: subprocess.Popen[bytes], url: str) -> None:
    while not ready(url):
        if server.poll() is not None:
            sys.exit(f"the server ended with exit code {server.returncode}")
        time.sleep(0.5)


def main() -> None:
    port = free_port()
    command = [sys.executable, "-m", "qwen3_ranker_plugins.cli", "serve", "--port", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        wait_for(server, url := f"http://127.0.0.1:{port}")
        with sync_playwright() as playwright:
            installed = next((found for name in INSTALLED if (found := shutil.which(name))), None)
            browser = playwright.chromium.launch(executable_path=installed, args=["--no-sandbox"])
            for name, size in SIZES.items():
                page = browser.new_page(viewport=size, color_scheme="light")
                page.goto(url)
                page.locator("li.first").wait_for(timeout=PATIENCE_MS)
                page.wait_for_timeout(1000)  # the cards move to their places
                page.screenshot(path=IMAGES / name)
                page.close()
                print(IMAGES / name)
            browser.close()
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    main()
