"""Local checkpoints: those that fit are loaded, those that do not are described in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from memplan.errors import AnalysisError, UsageError
from memplan.sources import InputSpec, Source, build
from memplan.sources.packages import is_installed
from memplan.sources.weights import read_weights


def make_net() -> nn.Module:
    net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4, bias=False))
    net[2].weight = net[0].weight
    return net


def make_source(path: Path) -> Source:
    return Source("net", "net", "test", make_net, args=(InputSpec((2, 4)),), weights=path)


WRAPPINGS: dict[str, Any] = {
    "bare": lambda state: state,
    "state_dict": lambda state: {"state_dict": state, "epoch": 3},
    "model": lambda state: {"model": state},
    "data parallel": lambda state: {f"module.{key}": tensor for key, tensor in state.items()},
    "tied once": lambda state: {key: tensor for key, tensor in state.items() if key != "2.weight"},
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_weights_that_fit_are_loaded_on_the_cpu_only(wrapping: str, device: Any, tmp_path: Path) -> None:
    path = tmp_path / "net.pt"
    state = make_net().state_dict()
    torch.save(WRAPPINGS[wrapping](state), path)
    module = build(make_source(path), device).module
    if device == "cpu":
        assert all(torch.equal(tensor, state[name]) for name, tensor in module.state_dict().items())
    assert all(tensor.device.type == device for tensor in module.state_dict().values())


@pytest.mark.skipif(not is_installed("safetensors"), reason="safetensors is not installed")
def test_safetensors_are_read(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    path = tmp_path / "net.safetensors"
    state = {key: tensor for key, tensor in make_net().state_dict().items() if key != "2.weight"}
    save_file(state, path)
    assert build(make_source(path), "meta").module[0].weight.is_meta  # type: ignore[index]  # a Sequential
    assert torch.equal(build(make_source(path), "cpu").module[0].weight, state["0.weight"])  # type: ignore[index]  # likewise


def test_weights_on_meta_have_no_values(tmp_path: Path) -> None:
    path = tmp_path / "net.pt"
    torch.save(make_net().state_dict(), path)
    assert all(tensor.is_meta for tensor in read_weights(path, device="meta").values())


@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_weights_that_do_not_fit_name_the_first_of_each_fault(device: Any, tmp_path: Path) -> None:
    path = tmp_path / "net.pt"
    torch.save(
        {"0.weight": torch.ones(4, 3), "0.bias": torch.ones(4), "top.weight": torch.ones(2), "top.bias": torch.ones(2)},
        path,
    )
    with pytest.raises(AnalysisError) as raised:
        build(make_source(path), device)
    assert str(raised.value) == (
        f"weights {str(path)!r} do not fit net: 5 missing, first 1.weight; 2 unexpected, first top.weight; "
        "1 of another shape, first 0.weight (4x3 in the file, 4x4 in the model); check the model's name and --classes"
    )


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "net.pt",
            b"not a checkpoint",
            "weights {0!r} hold more than tensors, or are not a PyTorch checkpoint; "
            "save module.state_dict() with torch.save",
        ),
        ("net.pth", b"", "weights {0!r} cannot be read: EOFError: "),
        ("net.safetensors", b"short", "weights {0!r} cannot be read: SafetensorError: "),
    ],
)
def test_a_malformed_file_is_one_line(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(AnalysisError) as raised:
        build(make_source(path), "meta")
    assert str(raised.value).startswith(message.format(str(path)))
    assert "\n" not in str(raised.value)


def test_a_pickled_module_and_a_bare_tensor_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "net.pt"
    torch.save(make_net(), path)
    with pytest.raises(AnalysisError, match="hold more than tensors, or are not a PyTorch checkpoint"):
        read_weights(path, device="cpu")
    torch.save({"epoch": 3}, path)
    with pytest.raises(AnalysisError, match=r"hold no state dict; save module\.state_dict"):
        read_weights(path, device="cpu")


def test_a_directory_is_no_weights_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"^no weights file "):
        read_weights(tmp_path, device="cpu")
