"""Files that are not what they should be are refused with a sentence that says so."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import comfy.utils
import pytest
import torch
from messages import is_clear
from mutations import Hostile
from refattention.core.models import checkpoint
from safetensors.torch import save_file

WEIGHTS = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.ones(2)}


def halved(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


@pytest.mark.parametrize("wrap", [lambda w: w, lambda w: {"state_dict": w}, lambda w: {"model": w}])
def test_pth(tmp_path: Path, wrap: Callable[[Any], Any]) -> None:
    torch.save(wrap(WEIGHTS), tmp_path / "model.pth")
    assert torch.equal(checkpoint.load(tmp_path / "model.pth")["a.weight"], WEIGHTS["a.weight"])


def test_safetensors(tmp_path: Path) -> None:
    save_file(WEIGHTS, tmp_path / "model.safetensors")
    assert torch.equal(checkpoint.load(tmp_path / "model.safetensors")["a.bias"], WEIGHTS["a.bias"])


@pytest.mark.parametrize("write", [torch.save, lambda thing, path: path.write_bytes(pickle.dumps(thing, protocol=2))])
def test_code_in_a_file_is_not_run(tmp_path: Path, write: Callable[[Any, Path], Any]) -> None:
    write({"a.weight": torch.ones(1), "b": Hostile(tmp_path / "run")}, tmp_path / "evil.pth")
    with pytest.raises(RuntimeError, match=r"^evil\.pth holds Python objects that could run code"):
        checkpoint.load(tmp_path / "evil.pth")
    assert not (tmp_path / "run").exists()


def write_truncated_pth(path: Path) -> None:
    torch.save(WEIGHTS, path)
    halved(path)


def write_truncated_safetensors(path: Path) -> None:
    save_file(WEIGHTS, path)
    halved(path)


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("model.pth", write_truncated_pth),
        ("model.safetensors", write_truncated_safetensors),
        ("model.pth", lambda path: path.write_text("<html>404</html>")),
        ("model.safetensors", lambda path: path.write_text("<html>404</html>")),
        ("model.pth", lambda path: path.write_bytes(b"")),
        ("model.safetensors", lambda path: path.write_bytes(b"")),
        ("model.safetensors", lambda path: torch.save(WEIGHTS, path)),
        ("model.pth", lambda path: torch.save(torch.zeros(2), path)),
        ("memory.pth", Path.mkdir),
    ],
)
def test_damaged_files(tmp_path: Path, name: str, write: Callable[[Path], Any]) -> None:
    write(tmp_path / name)
    with pytest.raises(RuntimeError, match=rf"^{name} cannot be read as a checkpoint; it is damaged"):
        checkpoint.load(tmp_path / name)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OSError("The paging file is too small for this operation to complete. (os error 1455)"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: not enough memory: you tried"),
    ],
    ids=["python", "windows", "torch"],
)
def test_a_good_file_without_room_for_it_is_not_called_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(comfy.utils, "load_torch_file", fail)
    with pytest.raises(RuntimeError, match=r"^There is not enough main memory to read model\.pth\.") as refused:
        checkpoint.load(tmp_path / "model.pth")
    assert is_clear(str(refused.value))


@pytest.mark.parametrize("content", [[torch.zeros(2)], 3, {}, {"a": torch.zeros(2), 1: torch.zeros(2)}])
def test_files_without_named_weights(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "model.pth")
    with pytest.raises(RuntimeError, match=r"^model\.pth does not hold named weights"):
        checkpoint.load(tmp_path / "model.pth")


def test_entries_that_are_no_tensors(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(2), "epoch": 3}, tmp_path / "model.pth")
    with pytest.raises(RuntimeError, match="its entry 'epoch' is not a tensor"):
        checkpoint.load(tmp_path / "model.pth")


def test_check_accepts_what_fits() -> None:
    table = checkpoint.shapes(WEIGHTS)
    checkpoint.check(table, table, "model.pth")
    checkpoint.check({**table, "unused.bias": (3,)}, table, "model.pth", lambda name: name.startswith("unused."))


def test_check_names_what_is_wrong() -> None:
    expected = {"a": (2, 3), "b": (4,), "c": (1,), "d": ()}
    found = {"a": (3, 2), "d": (), "x": (1,), "y": (1,)}
    with pytest.raises(RuntimeError) as error:
        checkpoint.check(found, expected, "model.pth")
    assert str(error.value) == (
        "model.pth does not fit: 2 of its 4 weights are missing (b, …), "
        "1 have another shape (a is 3x2 instead of 2x3), 2 are unknown (x, …)."
    )


@pytest.mark.parametrize("has_links", [True, False])
@pytest.mark.parametrize("target", ["new", "file", "dangling"])
def test_a_file_is_published_once_and_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_links: bool, target: str
) -> None:
    """Also on file systems that know no links."""
    path = tmp_path / "model.safetensors"
    if target == "file":
        path.write_text("mine")
    if target == "dangling":
        path.symlink_to(tmp_path / "nowhere")

    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    if not has_links:
        monkeypatch.setattr(os, "link", refuse)
    if target == "new":
        checkpoint.save(WEIGHTS, path, {"a": "b"})
        assert checkpoint.load(path).keys() == WEIGHTS.keys() and checkpoint.load_metadata(path)["a"] == "b"
    else:
        with pytest.raises(FileExistsError):
            checkpoint.save(WEIGHTS, path, {})
        assert path.is_symlink() if target == "dangling" else path.read_text() == "mine"
    assert [each.name for each in tmp_path.iterdir()] == ["model.safetensors"]


@pytest.mark.parametrize("call", ["link", "replace"])
def test_a_failure_while_publishing_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    def fail(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "link", fail)
    if call == "replace":
        monkeypatch.setattr(os, "replace", fail)
        with pytest.raises(RuntimeError, match=r"model.safetensors could not be written to .*Input/output error"):
            checkpoint.save(WEIGHTS, tmp_path / "model.safetensors", {})
        assert not list(tmp_path.iterdir())
    else:
        checkpoint.save(WEIGHTS, tmp_path / "model.safetensors", {})
        assert checkpoint.load(tmp_path / "model.safetensors").keys() == WEIGHTS.keys()
