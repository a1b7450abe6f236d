"""A report in three forms: on the terminal, as Markdown, and as a single HTML file without other files."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import PurePath

from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from .machine import Environment


def about_lines(about: Environment) -> list[str]:
    """Lines on where a result comes from; a warning comes first if the machine was busy."""
    lines = [] if about.warning is None else [about.warning]
    return [*lines, f"device: {about.device_line}", about.version_line, f"command: {about.command}"]


def model_name(model: str) -> str:
    """The name of a model in titles: of a folder only its last part, because its path is meaningless elsewhere."""
    path = PurePath(model)
    return path.name if path.is_absolute() or len(path.parts) > 2 or model.startswith((".", "~")) else model


def random_weights(model: str) -> bool:
    """Whether a model's name says that its weights are random, as for measuring speed: qwen3-random-0.6B."""
    return "random" in re.split(r"[^a-z]+", model_name(model).lower())


@dataclass(frozen=True)
class Table:
    """A table with cells of text; the first column is a label.

    Attributes:
        title: what the table shows.
        header: one text per column.
        rows: one text per column in each row.
        note: what a reader must know to understand the table.
        figures: whether the other columns are numbers, which are aligned right.
    """

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    figures: bool = True

    def markdown(self) -> str:
        """The heading, the table and the note as Markdown."""
        lines = [
            _row(self.header),
            "|" + "|".join(["---", *["---:" if self.figures else "---"] * (len(self.header) - 1)]) + "|",
        ]
        lines += [_row(row) for row in self.rows]
        return f"## {self.title}\n\n" + "\n".join(lines) + (f"\n\n{self.note}" if self.note else "")

    def rich(self) -> RichTable:
        """The table for a terminal."""
        table = RichTable(
            title=self.title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, padding=(0, 1)
        )
        for place, name in enumerate(self.header):
            table.add_column(name, justify="right" if place and self.figures else "left", overflow="fold")
        for row in self.rows:
            table.add_row(*(Text(cell) for cell in row))
        return table

    def html(self) -> str:
        """A section."""
        head = "".join(f"<th>{html.escape(name)}</th>" for name in self.header)
        body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in self.rows)
        kind = "" if self.figures else " class=text"
        note = f"<p class=note>{html.escape(self.note)}</p>" if self.note else ""
        return (
            f"<section><h2>{html.escape(self.title)}</h2><div class=scroll><table{kind}><thead><tr>{head}</tr></thead>"
            f"<tbody>{body}</tbody></table></div>{note}</section>"
        )


@dataclass(frozen=True)
class Report:
    """The content of a report.

    Attributes:
        title: one line.
        lines: what was measured, where, and with which settings.
        tables: the tables in reading order.
        picture: a PNG, and a description of what it shows.
        raw: text of the result file, so that the HTML report contains its raw values.
    """

    title: str
    lines: Sequence[str]
    tables: Sequence[Table]
    picture: tuple[bytes, str] | None = None
    raw: str = field(default="", repr=False)

    def print(self, console: Console) -> None:
        """Print the report to a terminal or a pipe."""
        console.print(Text(self.title, style="bold"))
        for line in self.lines:
            console.print(Text(line, style="bold yellow" if line.startswith("WARNING") else "dim"))
        for table in self.tables:
            console.print()
            console.print(table.rich())
            if table.note:
                console.print(Text(table.note, style="dim"))

    def markdown(self, picture: str | None = None) -> str:
        """The report as Markdown; `picture` is the file name of the picture."""
        parts = [f"# {self.title}", "\n".join(f"- {line}" for line in self.lines)]
        if picture is not None and self.picture is not None:
            parts.append(f"![{self.picture[1]}]({picture})")
        return "\n\n".join([*parts, *(table.markdown() for table in self.tables)]) + "\n"

    def html(self) -> str:
        """The report as an HTML page without scripts, whose policy forbids it to load anything."""
        lines = "".join(f"<li>{html.escape(line)}</li>" for line in self.lines)
        picture = ""
        if self.picture is not None:
            data, words = self.picture
            encoded = base64.b64encode(data).decode("ascii")
            picture = f'<img alt="{html.escape(words, quote=True)}" src="data:image/png;base64,{encoded}">'
        raw = f"<details><summary>Raw values</summary><pre>{html.escape(self.raw)}</pre></details>" if self.raw else ""
        return _PAGE.format(
            title=html.escape(self.title),
            lines=lines,
            picture=picture,
            tables="".join(table.html() for table in self.tables),
            raw=raw,
        )


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 1060px; margin: 2rem auto; padding: 0 1rem; color: #1c2024; }}
h1 {{ font-size: 1.5rem; }} h2 {{ font-size: 1.1rem; margin-top: 2rem; }}
ul {{ color: #50575e; padding-left: 1.1rem; }}
img {{ max-width: 100%; border: 1px solid #d5d9dd; border-radius: 6px; background: white; }}
.scroll {{ overflow-x: auto; }}
table {{ border-collapse: collapse; }}
th, td {{ padding: .3rem .8rem; text-align: right; border-bottom: 1px solid #e1e4e8;
  font-variant-numeric: tabular-nums; }}
th:first-child, td:first-child, .text th, .text td {{ text-align: left; }}
.note {{ color: #50575e; font-size: .9rem; max-width: 70ch; }}
pre {{ font-size: .75rem; max-height: 30rem; overflow: auto; background: #f4f5f7; color: #1c2024; padding: 1rem; }}
@media (prefers-color-scheme: dark) {{
  body {{ background: #16191d; color: #e4e7ea; }} ul, .note {{ color: #a3abb3; }}
  th, td {{ border-color: #353b41; }}
}}
</style></head>
<body><h1>{title}</h1><ul>{lines}</ul>{picture}{tables}{raw}</body></html>
"""
