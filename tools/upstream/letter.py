"""The cover letter of a series."""

from __future__ import annotations

import re

from tools.upstream.series import Series, filled

# Where the checkout has no template of a pull request.
CHECKLIST = [
    "- [ ] The linters pass on the files changed",
    "- [ ] I have reviewed the diff myself",
    "- [ ] The documentation says what changed",
    "- [ ] There are tests that fail without the change",
    "- [ ] The old and the new tests pass on my machine",
]
TEMPLATES = [
    ".github/pull_request_template.md",
    ".github/PULL_REQUEST_TEMPLATE.md",
    "pull_request_template.md",
    "PULL_REQUEST_TEMPLATE.md",
]


def checklist_of(template: str | None) -> list[str]:
    """The lines to tick in upstream's template, unticked, for the contributor to answer."""
    lines = re.findall(r"^- \[[ xX]\] .*\S", template or "", re.MULTILINE)
    return [f"- [ ]{line[5:]}" for line in lines] or CHECKLIST


def cover_letter(series: Series, checklist: list[str]) -> str:
    """Subject, an empty line, and the text."""

    def points(texts: list[str]) -> str:
        return "\n".join(filled(text, "- ", "  ") for text in texts)

    sections = [
        series.subject,
        filled(series.body),
        "Commits:\n" + points([commit.subject for commit in series.commits]),
        filled(f"How tested: {series.how_tested}"),
        "Checklist:\n" + "\n".join(checklist),
    ]
    if series.left_out:
        title = "Left out, because the tree that this was made for lacks what it would change:"
        sections.insert(3, f"{title}\n{points(series.left_out)}")
    return "\n\n".join(sections) + "\n"
