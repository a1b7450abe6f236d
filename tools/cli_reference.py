"""Write docs/cli.md with the output of `qwen3-ranker COMMAND --help` for every command; with --check, only compare.

python tools/cli_reference.py [--check]
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import typer
from typer.testing import CliRunner

from qwen3_ranker_plugins.cli.app import app

PAGE = Path(__file__).parents[1] / "docs" / "cli.md"
TITLE = """# Command line

What `qwen3-ranker COMMAND --help` prints. `tools/cli_reference.py` writes this page, and a test checks that it is
current.

Exit code 0: done; 1: it cannot be done here, and the message says why; 2: an argument is unusable; 130: interrupted.
`rank` also ends with 1 if no document is a hit, as grep does.

Shell completion: `qwen3-ranker --install-completion` (bash, zsh, fish, PowerShell).
"""


def reference() -> str:
    """The page, with plain text in place of the boxes that a terminal shows, and in one width everywhere."""
    app.rich_markup_mode = None
    pages = [(["--help"], "qwen3-ranker"), *_commands(typer.main.get_command(app), [])]
    return "\n".join([TITLE, *(_section(arguments, title) for arguments, title in pages)])


def _commands(group: Any, path: list[str]) -> list[tuple[list[str], str]]:
    """(arguments, title) of each command, and of the commands below it."""
    found = []
    for name, command in sorted(group.commands.items()):
        found.append(([*path, name, "--help"], " ".join(["qwen3-ranker", *path, name])))
        if hasattr(command, "commands"):
            found += _commands(command, [*path, name])
    return found


def _section(arguments: list[str], title: str) -> str:
    result = CliRunner().invoke(
        app, arguments, prog_name="qwen3-ranker", terminal_width=100, max_content_width=100, catch_exceptions=False
    )
    text = "\n".join(line.rstrip() for line in result.output.strip().splitlines())
    return f"## {title}\n\n```text\n{text}\n```\n"


if __name__ == "__main__":
    if "--check" in sys.argv[1:]:
        sys.exit(0 if PAGE.read_text(encoding="utf-8") == reference() else f"{PAGE} is not current: run {__file__}")
    PAGE.write_text(reference(), encoding="utf-8")
