"""Prints `N passed, N failed` for a folder of results that .ci/run made.

`NAME.passed` or `NAME.failed` says how a stage ended. `NAME.json` has Bazel's build events of a
stage, which name the report of every test target, including cached ones. Exits with 1 if a stage or
a test case failed.
"""

from __future__ import annotations

import json
import sys
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlparse


def reports(events: Path) -> Iterator[Path]:
    """Yields the test.xml of each run of a test target."""
    for line in events.read_text().splitlines():
        for output in (
            json.loads(line).get("testResult", {}).get("testActionOutput", [])
        ):
            if output["name"] == "test.xml":
                yield Path(unquote(urlparse(output["uri"]).path))


def outcome(case: ElementTree.Element) -> str:
    if case.find("failure") is not None or case.find("error") is not None:
        return "failed"
    # GoogleTest reports a skipped test in an attribute, pytest in an element.
    if case.find("skipped") is not None or case.get("result") == "skipped":
        return "skipped"
    return "passed"


def main() -> None:
    results = Path(sys.argv[1])
    total: Counter[str] = Counter()
    for events in sorted(results.glob("*.json")):
        cases = Counter(
            outcome(case)
            for report in reports(events)
            for case in ElementTree.parse(report).iter("testcase")
        )
        print(f"{events.stem}: {dict(cases)}")
        total += cases
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
