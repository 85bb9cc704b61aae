"""The documentation site builds without warnings, and its links lead somewhere."""

from __future__ import annotations

import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from docs import build_site
from docs.drawings import DRAWINGS
from tests.py.docs.public_api import MEMBERS

DOCS = Path(__file__).parents[3] / "docs"
MADE_BY_SPHINX = {"genindex", "search"}


class Page(HTMLParser):
    """The anchors and links of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.ids = {""}
        self.links: set[str] = set()
        self.loaded: set[str] = set()  # with the page
        self.text = path.read_text()
        self.feed(self.text)

    def handle_starttag(
        self, tag: str, attributes: list[tuple[str, str | None]]
    ) -> None:
        for name, value in attributes:
            if value is None:
                continue
            if name == "id":
                self.ids.add(value)
            elif name == "src" or (tag, name) == ("link", "href"):
                self.loaded.add(value)
            elif name == "href":
                self.links.add(value)

    def targets(self) -> list[tuple[Path, str]]:
        """The files of the site, and anchors in them, that the page needs."""
        targets = []
        for link in self.links | self.loaded:
            if not link.startswith(("https:", "http:")):
                path, anchor = urlsplit(link).path, urlsplit(link).fragment
                file = self.path.parent / unquote(path) if path else self.path
                targets.append((file.resolve(), anchor))
        return targets


def build(program: Path, out_dir: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(program), str(out_dir)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Page]:
    """The pages of the site by their names."""
    out_dir = tmp_path_factory.mktemp("site").resolve()
    run = build(DOCS / "build_site.py", out_dir)
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout == f"The site is {out_dir / 'index.html'}\n"
    return {
        path.relative_to(out_dir).with_suffix("").as_posix(): Page(path)
        for path in out_dir.rglob("*.html")
    }


def test_every_document_is_a_page(pages: dict[str, Page]) -> None:
    documents = [*DOCS.rglob("*.md"), *DOCS.rglob("*.rst")]
    names = {path.relative_to(DOCS).with_suffix("").as_posix() for path in documents}
    assert {"index", "tutorial", "how-to/fleet", "reference/python"} <= names
    assert pages.keys() == names | MADE_BY_SPHINX


def test_links_lead_somewhere(pages: dict[str, Page]) -> None:
    by_path = {page.path: page for page in pages.values()}
    broken = [
        f"{name}: {path}#{anchor}"
        for name, page in pages.items()
        for path, anchor in page.targets()
        if not path.is_file() or (path in by_path and anchor not in by_path[path].ids)
    ]
    assert not broken


def test_pages_are_reached_from_the_index(pages: dict[str, Page]) -> None:
    by_path = {page.path: page for page in pages.values()}
    reached: set[Path] = set()
    todo = {pages["index"].path}
    while todo:
        page = by_path[todo.pop()]
        reached.add(page.path)
        todo |= {path for path, _ in page.targets() if path in by_path} - reached
    assert reached == by_path.keys()


def test_pages_load_nothing_from_elsewhere(pages: dict[str, Page]) -> None:
    loaded = {source for page in pages.values() for source in page.loaded}
    assert not [source for source in loaded if source.startswith(("http", "//"))]


def test_members_are_shown(pages: dict[str, Page]) -> None:
    shown = pages["reference/python"].ids
    assert [str(member) for member in MEMBERS if str(member) not in shown] == []


def test_constructors_are_described(pages: dict[str, Page]) -> None:
    text = pages["reference/python"].text
    assert "A torch module that runs a serialized TensorRT-RTX engine" in text
    assert "Initialize internal Module state" not in text  # torch's
    assert "start_over_in_child" not in text


def test_commands_are_shown(pages: dict[str, Page]) -> None:
    text = pages["reference/command-line"].text
    for command in ("info", "prune", "pull", "push", "sync"):
        assert f"usage: torchtrt-cache {command} " in text


@pytest.mark.parametrize("name", DRAWINGS)
def test_drawings_are_what_their_program_draws(name: str) -> None:
    assert (DOCS / "drawings" / name).read_text() == DRAWINGS[name]()


def test_a_warning_is_an_error(tmp_path: Path) -> None:
    for name in build_site.FOLDERS:
        (tmp_path / name).mkdir(parents=True)
    for name in build_site.FILES:
        (tmp_path / name).touch()
    docs = tmp_path / "docs"
    program = docs / "build_site.py"
    program.write_text((DOCS / "build_site.py").read_text())
    (docs / "conf.py").write_text('extensions = ["myst_parser"]\n')
    (docs / "index.md").write_text("# Title\n\n[nowhere](missing.md)\n")
    run = build(program, tmp_path / "site")
    assert run.returncode != 0
    assert "missing.md" in run.stderr
