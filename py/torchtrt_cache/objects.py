"""The objects of an object store, for code that must not import the store's library."""

from __future__ import annotations

from typing import NamedTuple


class ObjectGeneration(NamedTuple):
    """Identifies one version of an object's contents. Opaque to everyone but ObjectStore.

    Some stores have only one of the two fields.
    """

    e_tag: str | None
    version: str | None


class ObjectContents(NamedTuple):
    data: memoryview
    generation: ObjectGeneration


class ObjectStoreError(RuntimeError):
    """A request to an object store failed. The text says why, in a few words."""
