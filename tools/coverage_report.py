"""Write docs/results/coverage.json and the figure in CONTRIBUTING.md from the file .coverage.

For each room, docs/results/coverage.json has the number of statements and branches, and how many of them ran.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections import defaultdict
from pathlib import Path

from coverage import Coverage

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results" / "coverage.json"
PAGE = ROOT / "CONTRIBUTING.md"
BEGIN, END = "<!-- coverage: tools/coverage_report.py -->\n", "<!-- end of coverage -->"
CORE = "src/qwen3_ranker_plugins/"
#: Rooms whose own tests `make coverage` does not run.
LEFT_OUT = {"bench/", "data/", "demo/", "offline/", "server/"}


def room(name: str) -> str:
    """The package of the first level that a file is in, an adapter, or "core modules"."""
    if (found := re.search(r"integrations/(\w+)/", name)) is not None:
        return f"adapter: {found[1]}"
    first, _, rest = name.partition(CORE)[2].partition("/")
    return f"{first}/" if rest else "core modules"


def measured() -> dict[str, dict[str, int]]:
    """Room -> its statements and branches, and how many of them ran."""
    coverage = Coverage(data_file=str(ROOT / ".coverage"), config_file=str(ROOT / "pyproject.toml"))
    coverage.load()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "coverage.json"
        coverage.json_report(outfile=str(path))
        report = json.loads(path.read_text(encoding="utf-8"))
    rooms: dict[str, dict[str, int]] = defaultdict(lambda: {"there": 0, "run": 0})
    for name, each in report["files"].items():
        if (part := room(name)) in LEFT_OUT:
            continue
        summary = each["summary"]
        for key in (part, "total"):
            rooms[key]["there"] += summary["num_statements"] + summary["num_branches"]
            rooms[key]["run"] += summary["covered_lines"] + summary["covered_branches"]
    return dict(sorted(rooms.items()))


def percent(counts: dict[str, int]) -> str:
    return f"{100 * counts['run'] / counts['there']:.0f} %"


def main() -> None:
    rooms = measured()
    RESULTS.write_text(json.dumps(rooms, indent=1) + "\n", encoding="utf-8")
    parts = ", ".join(f"`{name}` {percent(counts)}" for name, counts in rooms.items() if name != "total")
    total = percent(rooms["total"])
    line = f"The last run: {total} of all lines and branches ([file](docs/results/coverage.json)): {parts}.\n"
    text = PAGE.read_text(encoding="utf-8")
    start, end = text.index(BEGIN) + len(BEGIN), text.index(END)
    PAGE.write_text(text[:start] + line + text[end:], encoding="utf-8")
    print(line, end="")


if __name__ == "__main__":
    main()
