"""Kill offline jobs at random moments, compare their final outputs, and write docs/results/offline_kills.json.

    python benchmarks/kill_offline.py [KILLS] [SEED]

A pass of the test engine takes only a millisecond, so that a kill probably hits between two steps of the job itself.
Every output is compared byte for byte with the output of a job that was not killed.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "docs" / "results" / "offline_kills.json"
PAIRS = 10_000


def main() -> None:
    sys.path.insert(0, str(ROOT))
    from tests.offline.conftest import make_records, write_jsonl
    from tests.offline.kills import kill_again_and_again

    kills = int(sys.argv[1]) if len(sys.argv) > 1 else 50
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else 0
    report: dict[str, object] = {"kills": kills, "seed": seed, "pairs": PAIRS}
    for name, devices in (("one engine", None), ("two engines in processes", ["cpu", "cpu"])):
        with tempfile.TemporaryDirectory() as folder:
            source = write_jsonl(Path(folder) / "in.jsonl", [*make_records(PAIRS), "bad"])
            found, compared = kill_again_and_again(source, Path(folder), kills, seed, {"devices": devices})
        report[name] = {
            "outputs_compared_all_equal": compared,
            "moments": Counter(kill.moment for kill in found),
            "passes_begun": sum(kill.begun for kill in found),
            "passes_lost": Counter(kill.lost_passes for kill in found),
            "most_pairs_lost_by_a_kill": max(kill.lost_pairs for kill in found),
            "pairs_lost_by_all_kills": sum(kill.lost_pairs for kill in found),
        }
        print(name, json.dumps(report[name], indent=2), flush=True)
    RESULTS.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
