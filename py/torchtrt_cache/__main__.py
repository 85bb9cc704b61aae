"""The command `torchtrt-cache`."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from importlib import import_module

_COMMANDS = ["info", "prune", "pull", "push", "sync"]


def main(arguments: list[str] | None = None) -> int:
    """Runs a command and returns its exit status. None stands for the process's arguments."""
    parser = argparse.ArgumentParser(
        prog="torchtrt-cache",
        description="Shows, removes or shares runtime caches.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    words = sys.argv[1:] if arguments is None else arguments
    # Importing the modules of the other commands would take most of the start-up time.
    for name in [words[0]] if words and words[0] in _COMMANDS else _COMMANDS:
        module = import_module(f"torchtrt_cache.{name}")
        # Python -OO removes docstrings.
        summary, _, details = (module.__doc__ or "\n\n\n\n").split("\n\n", 2)
        command = commands.add_parser(
            name,
            help=summary,
            description=summary,
            epilog=details,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    options = parser.parse_args(words)
    try:
        status: int = options.run(options)
        if sys.stdout is not None:  # it is None if its descriptor is closed
            sys.stdout.flush()
    except BrokenPipeError:  # for example from `torchtrt-cache info DIR | head -1`
        # The flush at exit must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return status


if __name__ == "__main__":
    sys.exit(main())
