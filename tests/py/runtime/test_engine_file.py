"""Engines in files: what is written can be read, and what can't be read says why."""

from __future__ import annotations

import os
from pathlib import Path

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
    # Also by what was loaded from it.
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
    with pytest.raises(ValueError, match=r"net\.engine' is no engine file"):
        load_engine_file(path)


def test_a_file_that_was_cut_off_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "net.engine"
    save_engine_file(path, make_engine())
    os.truncate(path, path.stat().st_size - 100)
    with pytest.raises(
        ValueError, match=r"net\.engine' is no engine file, or a damaged"
    ):
        load_engine_file(path)


def test_another_file_of_torch_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save({"weight": torch.zeros(3)}, path)
    with pytest.raises(ValueError, match=r"weights\.pt' is a file of torch\.save, but"):
        load_engine_file(path)
    # torch would have to run code of the file to read this one.
    torch.save(torch.nn.ReLU(), path)
    with pytest.raises(ValueError, match=r"weights\.pt' is no engine file"):
        load_engine_file(path)


def test_a_later_format_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "net.engine"
    save_engine_file(path, make_engine())
    content = torch.load(path, weights_only=True)
    torch.save({**content, "version": content["version"] + 1}, path)
    with pytest.raises(ValueError, match=r"of format 2; .* reads up to 1"):
        load_engine_file(path)


def test_what_is_missing_in_it_is_named(tmp_path: Path) -> None:
    path = tmp_path / "net.engine"
    save_engine_file(path, make_engine())
    content = torch.load(path, weights_only=True)
    torch.save({**content, "output_binding_names": None}, path)
    with pytest.raises(ValueError, match="damaged: no output_binding_names in it"):
        load_engine_file(path)
