"""A picture of a report's first screen, as the README shows it; needs Chromium or Chrome on the PATH.

merge-models eval MERGED --report report.html
python -m examples.report_picture report.html docs/report.png

The README's is of the demo's three experts (merge/demo/data), added up by task arithmetic with lambda 1.5.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
WIDTH = 1120


def picture(page: Path, file: Path, height: int) -> None:
    """Writes a PNG of the page's upper ``height`` pixels in the light theme."""
    program = next((path for name in PROGRAMS if (path := shutil.which(name))), None)
    if program is None:
        raise SystemExit("no Chromium or Chrome on the PATH")
    with tempfile.TemporaryDirectory(prefix="merge-models-picture-", ignore_cleanup_errors=True) as profile:
        flags = (
            "--headless",
            "--no-sandbox",
            "--hide-scrollbars",
            "--virtual-time-budget=5000",
            f"--user-data-dir={profile}",
            f"--window-size={WIDTH},{height}",
            f"--screenshot={file.resolve()}",
        )
        subprocess.run(
            [program, *flags, page.resolve().as_uri()], check=True, capture_output=True, timeout=120
        )


def main() -> None:
    if len(sys.argv) not in (3, 4):
        raise SystemExit("python -m examples.report_picture REPORT.html PICTURE.png [HEIGHT]")
    page, file = Path(sys.argv[1]), Path(sys.argv[2])
    picture(page, file, int(sys.argv[3]) if len(sys.argv) == 4 else 900)
    print(f"{file}: {file.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
