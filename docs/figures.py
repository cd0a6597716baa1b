"""Make the pictures of docs/figures.md by running its own lines: python docs/figures.py"""

from __future__ import annotations

import os
import re
from pathlib import Path

FOLDER = Path(__file__).parent


def main() -> None:
    blocks = re.findall(
        r"^```python\n(.*?)^```", (FOLDER / "figures.md").read_text("utf-8"), re.M | re.S
    )
    os.chdir(FOLDER / "images")
    namespace: dict = {}
    for block in blocks:
        exec(compile(block, "figures.md", "exec"), namespace)


if __name__ == "__main__":
    main()
