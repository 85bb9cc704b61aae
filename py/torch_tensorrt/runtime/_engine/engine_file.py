"""The file of an engine, which `EngineModule.save` writes and `torch_tensorrt.load` reads."""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from torch_tensorrt.runtime._cache.tensor_memory import memory_of

_MAGIC = "torch_tensorrt engine"
_VERSION = 2  # 1 has no digest
_DIGEST = "plan_sha256"


@dataclass(frozen=True, eq=False)  # tensors have no equality of their own
class EngineFile:
    """The contents of an engine file.

    On disk it is a dict that `torch.load(path, weights_only=True)` reads. It has a key for each
    attribute, and the keys "magic", "version" and "plan_sha256". The last is the SHA-256 of the
    plan's bytes in hexadecimal digits. The runtime cache is not in the file, because its path
    belongs to a machine.

    Attributes:
        plan: The serialized engine, for which `is_plan` returns True.
    """

    plan: torch.Tensor
    input_binding_names: list[str]
    output_binding_names: list[str]
    name: str
    dynamic_shapes_kernel_specialization_strategy: str
    cuda_graph_strategy: str


_TYPES: dict[str, type] = {
    "plan": torch.Tensor,
    "input_binding_names": list,
    "output_binding_names": list,
    "name": str,
    "dynamic_shapes_kernel_specialization_strategy": str,
    "cuda_graph_strategy": str,
}


def is_plan(tensor: torch.Tensor) -> bool:
    """Returns True if it is a contiguous one-dimensional uint8 tensor on the CPU."""
    is_plain = tensor.layout == torch.strided and tensor.is_cpu
    is_bytes = tensor.dtype == torch.uint8 and tensor.dim() == 1
    return is_plain and is_bytes and tensor.is_contiguous()


def save_engine_file(path: str | os.PathLike[str], engine: EngineFile) -> None:
    """Writes `engine` to `path`. A reader sees the old file or the new one.

    Raises:
        OSError: The file could not be written. A previous file is unchanged.
    """
    # A link is followed, as open() does: the file that it leads to is replaced.
    target = Path(os.path.realpath(path))
    temporary = target.with_name(f"{target.name}.{secrets.token_hex(8)}.tmp")
    content = {
        "magic": _MAGIC,
        "version": _VERSION,
        _DIGEST: _digest_of(engine.plan),
        **{field.name: getattr(engine, field.name) for field in fields(engine)},
    }
    try:
        with temporary.open("xb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def load_engine_file(path: str | os.PathLike[str]) -> EngineFile:
    """Reads a file that `save_engine_file` wrote, and checks the plan's digest.

    The plan is mapped into memory, not copied. Files of format 1 have no digest and load unchecked.

    Raises:
        OSError: The file is missing or can't be read.
        ValueError: The file is not an engine file, is damaged, or is from a later version of this
            package.
    """
    try:
        # Uses mmap, so that a plan of gigabytes takes no memory of its own.
        content = torch.load(
            os.fspath(path), map_location="cpu", weights_only=True, mmap=True
        )
    except Exception as error:
        # In a truncated file, torch's search for the end can fail with EINVAL.
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise
        # Replaces torch's text, which advises how to read other kinds of files.
        raise ValueError(
            f"'{os.fspath(path)}' is not an engine file, or is damaged"
        ) from error
    return _checked(os.fspath(path), content)


def _checked(path: str, content: Any) -> EngineFile:
    if not isinstance(content, dict) or content.get("magic") != _MAGIC:
        raise ValueError(
            f"'{path}' was written by torch.save, but is not an engine file; torch_tensorrt.load "
            "reads what the save() of a compiled module wrote"
        )
    version = content.get("version")
    if not isinstance(version, int) or version > _VERSION:
        raise ValueError(
            f"'{path}' is an engine file of format {version}; this version of torch_tensorrt reads "
            f"up to {_VERSION}"
        )
    for name, expected in _TYPES.items():
        if not isinstance(content.get(name), expected):
            raise ValueError(f"The engine file '{path}' is damaged: no {name} in it")
    _check_plan(path, content, version)
    return EngineFile(**{name: content[name] for name in _TYPES})


def _check_plan(path: str, content: dict[str, Any], version: int) -> None:
    plan, expected = content["plan"], content.get(_DIGEST)
    if not is_plan(plan):
        raise ValueError(
            f"The engine file '{path}' is damaged: its plan is a tensor of {plan.dtype} and shape "
            f"{list(plan.shape)}, expected contiguous bytes"
        )
    if version == 1 and expected is None:
        return
    if not isinstance(expected, str):
        raise ValueError(f"The engine file '{path}' is damaged: no {_DIGEST} in it")
    found = _digest_of(plan)
    if found != expected:
        raise ValueError(
            f"The engine file '{path}' is damaged: the SHA-256 of its plan is {found}, expected "
            f"{expected}"
        )


def _digest_of(plan: torch.Tensor) -> str:
    return hashlib.sha256(memory_of(plan)).hexdigest()
