"""The objects of an object store, for those who do not import its library."""

from __future__ import annotations

from typing import NamedTuple


class ObjectGeneration(NamedTuple):
    """Tells one content of an object from the next; opaque to everyone but ObjectStore.

    Some stores have only one of the two.
    """

    e_tag: str | None
    version: str | None


class ObjectContents(NamedTuple):
    data: memoryview
    generation: ObjectGeneration


class ObjectStoreError(RuntimeError):
    """A request to an object store failed. The text is the reason, in a few words."""
