"""Configures Sphinx for the documentation site; build_site.py runs it."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

project = "Torch-TensorRT runtime for TensorRT-RTX"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]

html_theme = "furo"
html_title = "Torch-TensorRT-RTX runtime"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_copy_source = False
html_domain_indices = False
html_show_copyright = False
html_show_sphinx = False

myst_heading_anchors = 3

autoclass_content = "both"
autodoc_default_options = {
    "members": True,
    "inherited-members": "Module,int,BaseException",
    "member-order": "bysource",
}
autodoc_inherit_docstrings = False
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
napoleon_numpy_docstring = False
napoleon_use_ivar = True


class CommandHelp(SphinxDirective):
    """What a command of torchtrt-cache prints with --help."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        command = [sys.executable, "-m", "torchtrt_cache", self.arguments[0], "--help"]
        environment = {**os.environ, "COLUMNS": "90"}
        text = subprocess.run(
            command, check=True, capture_output=True, text=True, env=environment
        ).stdout
        return [nodes.literal_block(text, text, language="text")]


def _as_literal(code: re.Match[str]) -> str:
    """A letter that follows, as in a plural, must be set apart."""
    return rf"``{code[1]}``\ {code[2]}" if code[2] else f"``{code[1]}``"


def finish_docstring(
    app: Sphinx, what: str, name: str, thing: object, options: object, lines: list[str]
) -> None:
    """Adds what the private bases of a class say, and makes reStructuredText of all."""
    for base in getattr(thing, "__mro__", ())[1:]:
        if base.__module__.startswith("torch_tensorrt."):
            lines += ["", *(inspect.getdoc(base) or "").splitlines()]
    text = re.sub(r"`([^`]+)`(\w?)", _as_literal, "\n".join(lines))
    # Outside of a literal, the dashes of an option would become a dash.
    text = re.sub(r"(?<!\S)(--[a-z-]+)", r"``\1``", text)
    # An indented paragraph is code.
    text = re.sub(r"^(\S.*)\n\n(?=    \S)", r"\1\n\n::\n\n", text, flags=re.MULTILINE)
    lines[:] = text.splitlines()


def setup(app: Sphinx) -> None:
    app.add_directive("command-help", CommandHelp)
    app.connect("autodoc-process-docstring", finish_docstring, priority=100)
