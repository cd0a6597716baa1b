"""Make the pictures of a page by running its own lines: python docs/figures.py [figures.md story.md]"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

FOLDER = Path(__file__).parent
PAGES = ("figures.md", "story.md")


def main() -> None:
    pages = {name: (FOLDER / name).read_text("utf-8") for name in sys.argv[1:] or PAGES}
    os.chdir(FOLDER / "images")
    for name, text in pages.items():
        namespace: dict = {}
        for block in re.findall(r"^```python\n(.*?)^```", text, re.M | re.S):
            exec(compile(block, name, "exec"), namespace)


if __name__ == "__main__":
    main()
