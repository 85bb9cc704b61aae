"""Kinds of machine and their cache files; the twin of core/runtime/RuntimeCacheKind.h."""

# Paths are used as written. pathlib would change them.
# ruff: noqa: PTH112, PTH116, PTH118, PTH208

from __future__ import annotations

import ctypes
import os
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

_LONGEST_SLUG = 128  # leaves room for the longer names of locks and temporary files
_LONGEST_DEVICE_NAME = 256  # bytes
_VERSION = "[0-9.]{1,32}"
_FILE_NAME = re.compile(
    rf"([a-z0-9-]+)-sm([0-9]{{1,4}})-rtx({_VERSION})-([a-z0-9]{{1,16}})"
    r"-driver([0-9]{1,3})\.([0-9]{1,2})\.bin"
)
_NAME_OF_OLD_DEFAULT = re.compile(rf"runtime_cache-{_VERSION}\.bin")
_CAPABILITY_MAJOR = 75  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR
_CAPABILITY_MINOR = 76


class UnknownKindError(Exception):
    """The kind of a device is unknown. The text says why."""


@dataclass(frozen=True)
class RuntimeCacheKind:
    """What TensorRT-RTX compares before it uses a runtime cache.

    Attributes:
        gpu: The device's name in CUDA, such as "NVIDIA L4".
        compute_capability: 10 * major + minor.
        tensorrt_rtx: The version of TensorRT-RTX, such as "1.6.1.120".
        os_family: Such as "linux".
        cuda_driver: 1000 * major + 10 * minor of the CUDA version that the driver supports.
    """

    gpu: str
    compute_capability: int
    tensorrt_rtx: str
    os_family: str
    cuda_driver: int

    def file_name(self) -> str:
        """Returns a name such as "nvidia-l4-sm89-rtx1.6.1.120-linux-driver13.0.bin"."""
        return f"{_prefix(self)}{self.cuda_driver % 1000 // 10}.bin"


def _prefix(kind: RuntimeCacheKind) -> str:
    """Returns the name up to the driver's minor version."""
    return (
        f"{_slug(kind.gpu)}-sm{kind.compute_capability}-rtx{kind.tensorrt_rtx}"
        f"-{_slug(kind.os_family)}-driver{kind.cuda_driver // 1000}."
    )


def _name_of_old_default(kind: RuntimeCacheKind) -> str:
    return f"runtime_cache-{kind.tensorrt_rtx}.bin"


def _slug(text: str) -> str:
    """Reduces a text to lower-case letters, digits and single dashes."""
    slug = re.sub("[^A-Za-z0-9]+", "-", text).lower()
    return slug.strip("-")[:_LONGEST_SLUG].rstrip("-")


def kind_named(file_name: str) -> RuntimeCacheKind | None:
    """Returns the kind that a file name spells out, or None. Its GPU is spelled as in the name."""
    match = _FILE_NAME.fullmatch(file_name)
    if match is None:
        return None
    gpu, capability, tensorrt_rtx, os_family, major, minor = match.groups()
    driver = 1000 * int(major) + 10 * int(minor)
    kind = RuntimeCacheKind(gpu, int(capability), tensorrt_rtx, os_family, driver)
    return kind if kind.file_name() == file_name else None


def is_cache_name(file_name: str) -> bool:
    """Whether this is the name of a kind's file, or the former name of the default cache."""
    return (
        kind_named(file_name) is not None
        or _NAME_OF_OLD_DEFAULT.fullmatch(file_name) is not None
    )


def is_directory(path: str) -> bool:
    """Whether a cache's path ends in a separator or leads to a directory."""
    return path.endswith("/") or os.path.isdir(path)


def is_empty(path: str) -> bool:
    """True if the file is missing or empty, or its status can't be read."""
    try:
        return os.stat(path).st_size == 0
    except OSError:
        return True


def file_in(directory: str, kind: RuntimeCacheKind) -> str:
    """Returns the file in a directory to which a kind is saved."""
    return os.path.join(directory, kind.file_name())


def files_to_load(directory: str, kind: RuntimeCacheKind) -> list[str]:
    """Returns the files in a directory that a kind can start with, the best one first.

    They are those of `names_to_load`, without empty files other than the kind's own.
    """
    try:
        names = os.listdir(directory)
    except OSError:
        # A file may be open to this user in a directory that is not.
        names = [_name_of_old_default(kind)]
    own, *others = (os.path.join(directory, n) for n in names_to_load(names, kind))
    # The kind's own file is never left out, so that its errors are not hidden.
    return [own, *(file for file in others if not is_empty(file))]


def names_to_load(names: Iterable[str], kind: RuntimeCacheKind) -> list[str]:
    """Returns the names of files or objects that a kind can start with, the best one first.

    The kind's own name comes first, whether it is in `names` or not. The others are those in
    `names`: older drivers of the same major version, the newest first, and last the file that was
    the default cache before the default became a directory.
    """
    newest = kind.cuda_driver % 1000 // 10
    pattern = re.compile(re.escape(_prefix(kind)) + r"(0|[1-9][0-9]?)\.bin")
    old_default = _name_of_old_default(kind)
    drivers = set()
    has_old_default = False
    for name in names:
        has_old_default |= name == old_default
        if match := pattern.fullmatch(name):
            drivers.add(int(match[1]))
    older = sorted((driver for driver in drivers if driver < newest), reverse=True)
    found = [kind.file_name(), *(f"{_prefix(kind)}{driver}.bin" for driver in older)]
    return [*found, old_default] if has_old_default else found


def kind_of_device(ordinal: int, tensorrt_rtx: str) -> RuntimeCacheKind:
    """Returns the kind of a visible CUDA device.

    Raises:
        UnknownKindError: There is no usable driver or device.
    """
    return _Driver().kind_of(ordinal, tensorrt_rtx)


def kinds_of_machine(tensorrt_rtx: str | None = None) -> list[RuntimeCacheKind]:
    """Returns the kinds of all visible CUDA devices.

    Returns an empty list if the driver or TensorRT-RTX is missing.

    Args:
        tensorrt_rtx: The version of TensorRT-RTX; by default that of the package.
    """
    from importlib import metadata  # takes half of a command's start-up time

    try:
        version = tensorrt_rtx or metadata.version("tensorrt_rtx")
        driver = _Driver()
        kinds = [driver.kind_of(i, version) for i in driver.ordinals()]
    except (metadata.PackageNotFoundError, UnknownKindError):
        return []
    return list(dict.fromkeys(kinds))


class _Driver:
    """The CUDA driver. It describes devices without the CUDA runtime and without a context."""

    def __init__(self) -> None:
        try:
            self._library = ctypes.CDLL("libcuda.so.1")
        except OSError as error:
            raise UnknownKindError(f"there is no CUDA driver: {error}") from error
        self._call("cuInit", 0)

    def ordinals(self) -> Iterator[int]:
        count = ctypes.c_int()
        self._call("cuDeviceGetCount", ctypes.byref(count))
        yield from range(count.value)

    def kind_of(self, ordinal: int, tensorrt_rtx: str) -> RuntimeCacheKind:
        device = ctypes.c_int()
        self._call("cuDeviceGet", ctypes.byref(device), ordinal)
        name = ctypes.create_string_buffer(_LONGEST_DEVICE_NAME)
        self._call("cuDeviceGetName", name, len(name), device)
        version = ctypes.c_int()
        self._call("cuDriverGetVersion", ctypes.byref(version))
        major = self._attribute(_CAPABILITY_MAJOR, device)
        minor = self._attribute(_CAPABILITY_MINOR, device)
        return RuntimeCacheKind(
            gpu=name.value.decode("utf-8", "replace"),
            compute_capability=10 * major + minor,
            # The library's four numbers, without what a package appends to them.
            tensorrt_rtx=".".join(re.findall("[0-9]+", tensorrt_rtx)[:4]),
            os_family=sys.platform,
            cuda_driver=version.value,
        )

    def _attribute(self, attribute: int, device: ctypes.c_int) -> int:
        value = ctypes.c_int()
        self._call("cuDeviceGetAttribute", ctypes.byref(value), attribute, device)
        return value.value

    def _call(self, name: str, *arguments: object) -> None:
        function = getattr(self._library, name, None)
        result = -1 if function is None else function(*arguments)
        if result != 0:
            raise UnknownKindError(f"the CUDA driver's {name} failed with {result}")
