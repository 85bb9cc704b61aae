"""What a child of fork() starts over with."""

from __future__ import annotations

import ctypes
import os
import weakref
from typing import Protocol


class _StartsOver(Protocol):
    def start_over_in_child(self) -> None: ...


_objects: set[weakref.ref[_StartsOver]] = set()


def start_over_in_children(owner: _StartsOver) -> None:
    """Calls `owner.start_over_in_child()` in every later child of fork(), while `owner` lives.

    That call has no other thread beside it. It must not wait for any lock, because a thread that is
    not there may hold it for ever.
    """
    _objects.add(weakref.ref(owner, _objects.discard))


def leak(owner: object) -> None:
    """Never destroys the object, and nothing that it refers to."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(owner))


def _start_over() -> None:
    # All of them are kept alive, so that each may leak itself before another one lets it go.
    owners = [owner for reference in tuple(_objects) if (owner := reference())]
    for owner in owners:
        owner.start_over_in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_over)
