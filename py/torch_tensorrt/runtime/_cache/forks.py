"""Lets objects start over in a child of fork()."""

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

    No other thread runs during that call. It must not wait for any lock, because a thread that does
    not exist in the child may hold the lock forever.
    """
    _objects.add(weakref.ref(owner, _objects.discard))


def leak(owner: object) -> None:
    """Keeps the object, and everything that it refers to, from ever being destroyed."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(owner))


def _start_over() -> None:
    # All of them are kept alive, so that each can leak itself before another one drops it. Unlike
    # tuple(), [*_objects] can't run the garbage collector, which may discard from the set.
    owners = [owner for reference in [*_objects] if (owner := reference())]
    for owner in owners:
        owner.start_over_in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_over)
