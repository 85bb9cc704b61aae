"""The cover letter of a series: the text of its pull request, in upstream's template."""

from __future__ import annotations

import re

from tools.upstream.tree import Missing, Series

TEMPLATE = ".github/pull_request_template.md"


def _section(template: str, heading: str) -> list[str]:
    found = re.search(
        rf"^{heading}\n(.*?)(?=^#|\Z)", template, re.MULTILINE | re.DOTALL
    )
    if found is None:
        raise Missing(f"{TEMPLATE} has no '{heading}'")
    return [line for line in found[1].splitlines() if line.startswith("- ")]


def cover_letter(series: Series, template: str) -> str:
    """Returns the letter. Raises Missing if upstream's template lacks a section."""
    kinds = [
        line
        for line in _section(template, "## Type of change")
        if line.startswith(series.type_of_change)
    ]
    checklist = _section(template, "# Checklist:")
    parts = [f"# {series.subject}"]
    if series.commits:
        commits = [f"- {commit.subject}" for commit in series.commits]
        parts += ["# Description", series.why, "\n".join(commits), series.tested]
    if series.not_sent:
        notes = "\n".join(f"- {note}" for note in series.not_sent)
        parts += ["## What is not sent", notes]
    if series.commits:
        parts += ["## Type of change", "\n".join(kinds)]
        parts += ["# Checklist:", "\n".join(checklist)]
    return "\n\n".join(parts) + "\n"
