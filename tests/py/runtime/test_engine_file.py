"""Engines in files: a saved file can be loaded, and an error says why another can't."""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from torch_tensorrt.runtime._engine.engine_file import (
    EngineFile,
    load_engine_file,
    save_engine_file,
)


def make_engine(size: int = 1000) -> EngineFile:
    plan = torch.arange(size).to(torch.uint8)
    return EngineFile(plan, ["x", "mask"], ["y"], "Net", "eager", "whole_graph_capture")


def test_all_of_it_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "net.engine"
    saved = make_engine()
    save_engine_file(path, saved)
    loaded = load_engine_file(str(path))
    assert torch.equal(loaded.plan, saved.plan)
    assert vars(loaded) == {**vars(saved), "plan": loaded.plan}
    assert [file.name for file in tmp_path.iterdir()] == ["net.engine"]


def test_it_may_be_replaced_while_it_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "net.engine"
    save_engine_file(path, make_engine(100_000))
    loaded = load_engine_file(path)
    save_engine_file(path, make_engine(10))
    assert torch.equal(loaded.plan, make_engine(100_000).plan)
    assert load_engine_file(path).plan.numel() == 10
    # The file may also be replaced by the engine that was loaded from it.
    save_engine_file(path, loaded)
    assert load_engine_file(path).plan.numel() == 100_000


def test_its_mode_is_that_of_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "other").touch()
    save_engine_file(tmp_path / "net.engine", make_engine())
    assert (tmp_path / "net.engine").stat().st_mode == (
        tmp_path / "other"
    ).stat().st_mode


def test_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("net.engine")
    save_engine_file(tmp_path / "link", make_engine())
    assert (tmp_path / "link").is_symlink()
    assert load_engine_file(tmp_path / "net.engine").name == "Net"


def test_a_failed_save_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "net.engine"
    save_engine_file(path, make_engine())
    before = path.read_bytes()

    def fail(_: int) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        save_engine_file(path, make_engine(10))
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["net.engine"]


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"missing.net\.engine"):
        save_engine_file(tmp_path / "missing" / "net.engine", make_engine())


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"net\.engine"):
        load_engine_file(tmp_path / "net.engine")


@pytest.mark.parametrize("content", [b"", b"no engine", b"PK\x03\x04" + bytes(100)])
def test_another_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "net.engine"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"net\.engine' is not an engine file"):
        load_engine_file(path)


@pytest.mark.parametrize("size", [1000, 10_000, 100_000])
@pytest.mark.parametrize("part", [0.1, 0.5, 0.99])
def test_a_file_that_was_cut_off_is_refused(
    tmp_path: Path, size: int, part: float
) -> None:
    path = tmp_path / "net.engine"
    save_engine_file(path, make_engine(size))
    os.truncate(path, int(path.stat().st_size * part))
    with pytest.raises(
        ValueError, match=r"net\.engine' is not an engine file, or is damaged"
    ):
        load_engine_file(path)


def test_another_file_of_torch_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save({"weight": torch.zeros(3)}, path)
    with pytest.raises(
        ValueError, match=r"weights\.pt' was written by torch\.save, but"
    ):
        load_engine_file(path)
    # To read this file, torch would have to run code from it.
    torch.save(torch.nn.ReLU(), path)
    with pytest.raises(ValueError, match=r"weights\.pt' is not an engine file"):
        load_engine_file(path)


def save_changed(path: Path, **changes: Any) -> None:
    """Saves an engine and then changes the file's contents."""
    save_engine_file(path, make_engine())
    torch.save({**torch.load(path, weights_only=True), **changes}, path)


def test_a_later_format_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "net.engine"
    save_changed(path, version=3)
    with pytest.raises(ValueError, match=r"of format 3; .* reads up to 2"):
        load_engine_file(path)


@pytest.mark.parametrize("name", ["output_binding_names", "plan_sha256"])
def test_what_is_missing_in_it_is_named(tmp_path: Path, name: str) -> None:
    path = tmp_path / "net.engine"
    save_changed(path, **{name: None})
    with pytest.raises(ValueError, match=f"damaged: no {name} in it"):
        load_engine_file(path)


def test_format_1_has_no_digest_and_loads(tmp_path: Path) -> None:
    path = tmp_path / "net.engine"
    content = {"magic": "torch_tensorrt engine", "version": 1, **vars(make_engine())}
    torch.save(content, path)
    loaded = load_engine_file(path)
    assert torch.equal(loaded.plan, make_engine().plan)
    assert vars(loaded) == {**vars(make_engine()), "plan": loaded.plan}


def test_another_plan_than_that_of_the_digest_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "net.engine"
    plan = make_engine().plan.clone()
    plan[500] += 1
    save_changed(path, plan=plan)
    found, expected = (
        hashlib.sha256(bytes(p.tolist())).hexdigest()
        for p in (plan, make_engine().plan)
    )
    with pytest.raises(ValueError) as caught:
        load_engine_file(path)
    assert str(caught.value) == (
        f"The engine file '{path}' is damaged: the SHA-256 of its plan is {found}, expected "
        f"{expected}"
    )


@pytest.mark.parametrize(
    "plan",
    [
        pytest.param(torch.zeros(1000), id="of another type"),
        pytest.param(torch.zeros(10, 100, dtype=torch.uint8), id="of two dimensions"),
        pytest.param(torch.zeros(2000, dtype=torch.uint8)[::2], id="with gaps"),
        pytest.param(torch.zeros(9, dtype=torch.uint8, device="meta"), id="nowhere"),
    ],
)
@pytest.mark.parametrize("version", [1, 2])
def test_a_plan_that_is_not_bytes_is_refused(
    tmp_path: Path, plan: torch.Tensor, version: int
) -> None:
    path = tmp_path / "net.engine"
    save_changed(path, plan=plan, version=version)
    with pytest.raises(ValueError, match="damaged: its plan is a tensor of"):
        load_engine_file(path)


def test_damage_is_noticed_or_harmless(tmp_path: Path) -> None:
    path = tmp_path / "net.engine"
    saved = make_engine()
    save_engine_file(path, saved)
    whole = path.read_bytes()
    source = random.Random(1)

    def another_byte(at: int) -> bytes:
        return bytes([whole[at] ^ source.randrange(1, 256)])

    def noise(at: int) -> bytes:
        return source.randbytes(source.randint(2, 512))

    def zeros(at: int) -> bytes:
        return bytes(source.randint(2, 512))

    def other_place(at: int) -> bytes:
        start = source.randrange(len(whole))
        return whole[start : start + source.randint(2, 512)]

    def refused(damage: Callable[[int], bytes], at: int) -> bool:
        damaged = bytearray(whole)
        piece = damage(at)[: len(whole) - at]
        damaged[at : at + len(piece)] = piece
        path.write_bytes(damaged)
        try:
            loaded = load_engine_file(path)
        except ValueError:
            return True
        assert torch.equal(loaded.plan, saved.plan), f"{damage.__name__} at {at}"
        return False

    bytes_refused = [refused(another_byte, at) for at in range(len(whole))]
    # At least the changes in the plan are noticed. Some changes of padding have no effect.
    assert saved.plan.numel() < sum(bytes_refused) < len(whole)
    blocks_refused = [
        refused(damage, source.randrange(len(whole)))
        for damage in (noise, zeros, other_place)
        for _ in range(300)
    ]
    assert any(blocks_refused)
