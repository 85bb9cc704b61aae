"""Prints `N passed, N failed` for a folder of results that .ci/run made.

`NAME.passed` or `NAME.failed` says how a stage ended. `NAME.cases` has the outcomes of its test
cases, or nothing if they are unknown. Exits with 1 if a stage or a test case failed.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path


def main() -> None:
    results = Path(sys.argv[1])
    total: Counter[str] = Counter()
    for cases in sorted(results.glob("*.cases")):
        text = cases.read_text().strip()
        print(f"{cases.stem}: {text}")
        total.update(json.loads(text or "{}"))
    for stage in sorted(results.glob("*.failed")):
        print(f"stage failed: {stage.stem}")
    total["passed"] += len(list(results.glob("*.passed")))
    total["failed"] += len(list(results.glob("*.failed")))
    if total["skipped"]:
        print(f"skipped test cases: {total['skipped']}")
    print(f"{total['passed']} passed, {total['failed']} failed")
    sys.exit(1 if total["failed"] else 0)


if __name__ == "__main__":
    main()
