"""Photograph a page with headless Chromium.

python docs/screenshot.py REPORT.html docs/report.png
synthclip view runs/demo &
python docs/screenshot.py http://localhost:8765/demo/ docs/explorer.png --size 1280,1010
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("page", help="an HTML file, or an address")
    parser.add_argument("png", type=Path)
    parser.add_argument("--size", default="1200,1500", metavar="WIDTH,HEIGHT", help="in CSS pixels")
    parser.add_argument("--dark", action="store_true")
    options = parser.parse_args()
    served = "://" in options.page
    if not served and not Path(options.page).is_file():
        sys.exit(f"{options.page}: no such file: make it with `synthclip report`")
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
            *(["--virtual-time-budget=3000"] if served else []),  # until what it loads has come
            options.page if served else Path(options.page).resolve().as_uri(),
        ]
        subprocess.run(command, check=True, capture_output=True, timeout=120)
    Image.open(options.png).convert("RGB").quantize(256).save(options.png, optimize=True)


if __name__ == "__main__":
    main()
