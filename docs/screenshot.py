"""Photograph a report with headless Chromium: `python docs/screenshot.py REPORT.html OUT.png`."""

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("html", type=Path)
    parser.add_argument("png", type=Path)
    parser.add_argument("--size", default="1200,1500", metavar="WIDTH,HEIGHT", help="in CSS pixels")
    parser.add_argument("--dark", action="store_true")
    options = parser.parse_args()
    if not options.html.is_file():
        sys.exit(f"{options.html}: no such file: make it with `synthclip report`")
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        sys.exit("no Chromium found: install the package chromium")
    with tempfile.TemporaryDirectory() as profile:
        command = [
            browser,
            "--headless",
            "--no-sandbox",  # it will not start as root otherwise, as in containers
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--hide-scrollbars",
            f"--user-data-dir={profile}",
            f"--window-size={options.size}",
            f"--screenshot={options.png.resolve()}",
            *(["--force-dark-mode"] if options.dark else []),
            options.html.resolve().as_uri(),
        ]
        subprocess.run(command, check=True, capture_output=True, timeout=120)
    Image.open(options.png).convert("RGB").quantize(256).save(options.png, optimize=True)


if __name__ == "__main__":
    main()
