"""tests/util/simulation/supported_gpu.py with GPUs that this machine does not have."""

from __future__ import annotations

import pytest
import torch

from tests.util.simulation.supported_gpu import supported_gpu


@pytest.mark.parametrize(
    ("capability", "name"),
    [(None, None), ((7, 5), "GPU"), ((9, 0), None), ((12, 1), "GPU"), ((13, 0), None)],
)
def test_takes_what_engines_can_be_built_for(
    capability: tuple[int, int] | None,
    name: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: capability is not None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "GPU")
    assert supported_gpu() == name
