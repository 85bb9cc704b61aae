"""Writes the API reference of the Python package, as HTML made of its docstrings.

    ./bazelw run //docs:api_reference -- OUT_DIR

Anything that pdoc warns of is an error, and then nothing is written.
"""

from __future__ import annotations

import argparse
import inspect
import os
import sys
import warnings
from pathlib import Path

import pdoc
import pdoc.doc
import pdoc.render

PACKAGE = "torch_tensorrt"
MODULES = [
    "torch_tensorrt",
    "torch_tensorrt.runtime",
    "torch_tensorrt.dynamo",
    "torch_tensorrt.dynamo.runtime",
    "torch_tensorrt.logging",
    "torchtrt_cache",
    "torchtrt_cache.info",
]


def is_hidden(module: str) -> bool:
    """Whether it is one of ours that has no page, so that what it defines is shown elsewhere."""
    return module.split(".")[0] == PACKAGE and module not in MODULES


def describe_in_full(doc: pdoc.doc.Module | pdoc.doc.Class) -> None:
    """Has classes show text and members of the hidden ones that they derive from."""
    for member in doc.own_members:
        if not isinstance(member, pdoc.doc.Class):
            continue
        describe_in_full(member)
        for (module, _), inherited in member.inherited_members.items():
            if is_hidden(module):
                member.own_members.extend(inherited)
        for base in member.obj.__mro__[1:]:
            if is_hidden(base.__module__):
                member.docstring += f"\n\n{inspect.getdoc(base)}"
        constructor = member.members.get("__init__")
        if constructor and not getattr(vars(member.obj).get("__init__"), "__doc__", ""):
            constructor.docstring = ""  # and not that of torch.nn.Module


def parent(module: pdoc.doc.Module) -> str:
    return module.modulename.rpartition(".")[0]


def render() -> dict[str, str]:
    """The pages, by their paths below the output directory.

    Raises:
        ImportError: A module can't be imported.
        Warning: What pdoc can't make sense of.
    """
    pdoc.render.configure(docformat="google", show_source=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        modules = {name: pdoc.doc.Module.from_name(name) for name in MODULES}
        for name, module in modules.items():
            describe_in_full(module)
            module.submodules = [
                other for other in modules.values() if parent(other) == name
            ]
        pages = {
            f"{name.replace('.', '/')}.html": pdoc.render.html_module(module, modules)
            for name, module in modules.items()
        }
        pages["index.html"] = pdoc.render.html_index(modules)
        pages["search.js"] = pdoc.render.search_index(modules)
    return pages


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out_dir", metavar="OUT_DIR", type=Path)
    arguments = parser.parse_args()
    # `bazel run` starts programs elsewhere than where it was started.
    started_in = os.environ.get("BUILD_WORKING_DIRECTORY", "")
    out_dir = Path(started_in, arguments.out_dir).resolve()
    try:
        pages = render()
    except (ImportError, Warning) as error:
        sys.exit(f"api_reference: {error}")
    for name, page in pages.items():
        path = out_dir / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page)
    print(f"{len(pages)} files, to begin with {out_dir / 'index.html'}")


if __name__ == "__main__":
    main()
