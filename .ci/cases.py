"""Prints the outcomes of the test cases of one `bazel test` as JSON: {"passed": 3, "failed": 1}.

Its argument is Bazel's build events, which name the report of every test target, including cached
ones. A later `bazel test` may replace the reports.
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


if __name__ == "__main__":
    cases = Counter(
        outcome(case)
        for report in reports(Path(sys.argv[1]))
        for case in ElementTree.parse(report).iter("testcase")
    )
    print(json.dumps(cases))
