"""Draws what a command printed as it looks in a terminal. How the pictures here were made, from two members and
`examples/producer.py`; `cargo demo --keep` or `docker compose up` give the like:

    pip install rich==15.0.0
    tallyhouse status | python docs/images/terminal.py "tallyhouse status" docs/images/status.svg
"""

import io
import re
import sys

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

command, path = sys.argv[1:]
printed = sys.stdin.read().rstrip("\n")
lines = Text.assemble((f"$ {command}\n", "bold"), printed)
console = Console(record=True, width=max(map(len, printed.splitlines())) + 1, file=io.StringIO())
console.print(lines, no_wrap=True, highlight=False)
# The reader's own monospaced font, and nothing fetched from elsewhere.
template = re.sub(r"@font-face \{\{.*?\}\}\n", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
template = template.replace("Fira Code, monospace", "ui-monospace, Menlo, Consolas, DejaVu Sans Mono, monospace")
console.save_svg(path, title="", code_format=template, theme=MONOKAI)
