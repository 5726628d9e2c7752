"""A second device without one: tensors that compute on the CPU, say that they lie elsewhere, and count.

Tensors on it refuse to be mixed with those in main memory by CUDA's rules. Each time the program has to wait for the
device, and each byte that goes to it or comes back, is counted under the line of the pack or of ComfyUI that asked for
it. It shows neither speed nor the order in which a device works.
"""

from __future__ import annotations

import functools
import itertools
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import comfy.model_management as management
import pytest
import torch
from bootstrap import HOST, ROOT
from refattention.core.patches import transfer
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "second"
GIB = 2**30
aten = torch.ops.aten

# What gives the program a number, or a result whose size the program does not know beforehand
READS = {
    *(aten._local_scalar_dense.default, aten.equal.default, aten.nonzero.default, aten.masked_select.default),
    *(aten._unique2.default, aten.unique_dim.default, aten.unique_consecutive.default, aten.bincount.default),
}
COPIES = {aten._to_copy.default, aten.copy_.default}
INDEXED = {
    *(aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default),
    aten._unsafe_index.Tensor,
}


def _device() -> torch.device:
    """Makes its name known to torch, once in a process."""
    if torch._C._get_privateuse1_backend_name() != NAME:
        _setup_privateuseone_for_python_backend(NAME)
    return torch.device(NAME, 0)


DEVICE = _device()


@dataclass
class Counts:
    """What was counted, by line: waits for the device, bytes to it and from it."""

    waits: Counter[str] = field(default_factory=Counter)
    up: Counter[str] = field(default_factory=Counter)
    down: Counter[str] = field(default_factory=Counter)

    @property
    def parts(self) -> tuple[Counter[str], Counter[str], Counter[str]]:
        return self.waits, self.up, self.down

    def since(self, other: Counts) -> Counts:
        """What came after another state of the same counts."""
        return Counts(self.waits - other.waits, self.up - other.up, self.down - other.down)

    def copy(self) -> Counts:
        return Counts(self.waits.copy(), self.up.copy(), self.down.copy())


class OnSecond(Tensor):
    """A tensor on the second device."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> OnSecond:
        placed = {"strides": held.stride(), "storage_offset": held.storage_offset(), "dtype": held.dtype}
        tensor = Tensor._make_wrapper_subclass(cls, held.size(), device=DEVICE, **placed)
        tensor.held = held
        return tensor

    def data_ptr(self) -> int:
        return self.held.data_ptr()

    def untyped_storage(self) -> Any:
        return self.held.untyped_storage()

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def record_stream(self, stream: Any) -> None:
        pass

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{func} on the second device outside of `second_device`")


class _Dispatch(TorchDispatchMode):
    """Computes, refuses and counts."""

    def __init__(self, counts: Counts, pinned: set[int]) -> None:
        super().__init__()
        self._counts = counts
        self._pinned = pinned
        self._whole: set[Any] = set()  # functions that are not made of several

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func not in self._whole:
            with self:  # of what is made of several functions, each of them
                out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
            self._whole.add(func)
        tensors = _tensors(args, kwargs)
        here = [tensor for tensor in tensors if isinstance(tensor, OnSecond)]
        named = kwargs.get("device")
        is_here = bool(here) if named is None else torch.device(named).type == NAME
        if func in COPIES:
            self._count_copy(func, args, kwargs, is_here)
        elif here:
            self._refuse_mixed(func, args, tensors)
            if func in READS or (func in INDEXED and any(t.dtype in (torch.bool, torch.uint8) for t in _indices(args))):
                self._wait()
            if func is aten._local_scalar_dense.default:
                self._counts.down[_line()] += here[0].nbytes
        if named is not None:
            kwargs = {**kwargs, "device": torch.device("cpu") if is_here else named}
        if not (here or is_here):
            return func(*args, **kwargs)
        out = func(*_mapped(_held, args), **_mapped(_held, kwargs))
        if func is aten.copy_.default:
            return args[0]
        if not is_here:
            return out
        # What changes its argument gives the argument back.
        given = {id(tensor.held): tensor for tensor in here}

        def placed(tensor: Tensor) -> Tensor:
            return given[id(tensor)] if id(tensor) in given else OnSecond(tensor)

        return _mapped(placed, out)

    def _count_copy(self, func: Any, args: Any, kwargs: Any, is_here: bool) -> None:
        if func is aten.copy_.default:
            target, source = args[:2]
            is_async = bool(args[2]) if len(args) > 2 else bool(kwargs.get("non_blocking"))
            was_here, is_here, dtype = isinstance(source, OnSecond), isinstance(target, OnSecond), target.dtype
            memory = source if is_here else target
            is_pinned = memory.untyped_storage().data_ptr() in self._pinned
        else:
            source, is_async = args[0], bool(kwargs.get("non_blocking"))
            was_here, dtype = isinstance(source, OnSecond), kwargs.get("dtype") or source.dtype
            # On the way down torch takes pinned memory by itself.
            is_pinned = was_here or source.untyped_storage().data_ptr() in self._pinned
        if was_here == is_here:
            return
        # torch converts where the tensor comes from.
        way = self._counts.up if is_here else self._counts.down
        way[_line()] += source.numel() * dtype.itemsize
        if not (is_async and is_pinned):
            self._wait()

    def _refuse_mixed(self, func: Any, args: Any, tensors: list[Tensor]) -> None:
        others = [tensor for tensor in tensors if not isinstance(tensor, OnSecond) and tensor.ndim > 0]
        if not others:
            return
        if func in INDEXED and isinstance(args[0], OnSecond):
            indices = {id(index) for index in _indices(args)}
            if all(id(other) in indices for other in others):
                self._counts.up[_line()] += sum(other.nbytes for other in others)
                self._wait()
                return
        raise RuntimeError(f"{func}: Expected all tensors to be on the same device, but found {DEVICE} and cpu.")

    def _wait(self) -> None:
        self._counts.waits[_line()] += 1


class _Functions(TorchFunctionMode):
    """What does not go through the dispatcher as it would on a real device."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (torch.tensor, torch.as_tensor) and "device" in kwargs:
            device = kwargs.pop("device")
            made = func(*_mapped(_read, args), **kwargs)
            return made if device is None else made.to(device)
        if func is Tensor.new_tensor and isinstance(args[0], OnSecond):
            return args[0].held.new_tensor(*args[1:], **kwargs).to(DEVICE)
        if func is torch._has_compatible_shallow_copy_type and any(isinstance(each, OnSecond) for each in args):
            return False  # a module that moves gets new parameters
        if func is torch.nn.functional.scaled_dot_product_attention and isinstance(args[0], OnSecond):
            return _Attention.apply_here(func, args, kwargs)
        return func(*args, **kwargs)


class _Generator(torch.Generator):
    """Of numbers on either device, which are drawn in main memory."""

    def __new__(cls, device: Any = "cpu") -> _Generator:
        return super().__new__(cls, device="cpu")


class _Attention:
    @staticmethod
    def apply_here(func: Any, args: Any, kwargs: Any) -> Tensor:
        """By the CPU's own kernel, which the dispatcher would not choose."""
        tensors = _tensors(args, kwargs)
        if not all(isinstance(tensor, OnSecond) for tensor in tensors):
            raise RuntimeError(f"attention: Expected all tensors to be on the same device, but found {DEVICE} and cpu.")
        with torch.utils._python_dispatch._disable_current_modes():
            return OnSecond(func(*_mapped(_held, args), **_mapped(_held, kwargs)))


def _held(tensor: Tensor) -> Tensor:
    return tensor.held if isinstance(tensor, OnSecond) else tensor


def _read(tensor: Tensor) -> Any:
    """What a tensor that is made of others takes of one on the device: numbers, one by one."""
    return tensor.tolist() if isinstance(tensor, OnSecond) else tensor


def _mapped(function: Callable[[Tensor], Any], value: Any) -> Any:
    """What functions take or give, each tensor in it put through a function; torch's own way is for deeper trees."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, (list, tuple)):
        return type(value)([_mapped(function, each) for each in value])
    if isinstance(value, dict):
        return {key: _mapped(function, each) for key, each in value.items()}
    return value


def _tensors(args: Any, kwargs: Any) -> list[Tensor]:
    found: list[Tensor] = []
    _mapped(lambda tensor: found.append(tensor) or tensor, [args, kwargs])
    return found


def _indices(args: Any) -> list[Tensor]:
    return [index for index in args[1] if isinstance(index, Tensor)]


def _line() -> str:
    """The innermost line of the pack or of ComfyUI."""
    frame = sys._getframe(1)
    while frame is not None:
        if file := _counted(frame.f_code.co_filename):
            return f"{file}:{frame.f_lineno} {frame.f_code.co_name}"
        frame = frame.f_back
    return "elsewhere"


@functools.cache
def _counted(file: str) -> str:
    """The name of a file of the pack or of ComfyUI; empty for any other."""
    path = Path(file)
    for root, inside in ((ROOT, ("core", "nodes")), (HOST, ("comfy", "comfy_extras"))):
        if any(path.is_relative_to(root / folder) for folder in inside):
            return str(path.relative_to(root))
    return ""


@contextmanager
def second_device(pins: bool = True) -> Iterator[Counts]:
    """ComfyUI with a second device; what is made without a name of a device stays in main memory.

    Args:
        pins: whether it can pin main memory.
    """
    counts, pinned = Counts(), set[int]()

    def pin(tensor: Tensor) -> bool:
        can = pins and tensor.device.type == "cpu" and tensor.is_contiguous()
        if can:
            pinned.add(tensor.untyped_storage().data_ptr())
        return can

    def unpin(tensor: Tensor) -> bool:
        pinned.discard(tensor.untyped_storage().data_ptr())
        return True

    def much(device: Any = None, torch_free_too: bool = False, torch_total_too: bool = False) -> Any:
        return (64 * GIB, 64 * GIB) if torch_free_too or torch_total_too else 64 * GIB

    management.unload_all_models()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "Generator", _Generator)
        patch.setattr(management, "vram_state", management.VRAMState.NORMAL_VRAM)
        patch.setattr(management, "get_free_memory", much)
        patch.setattr(management, "get_total_memory", much)
        patch.setattr(management, "MAX_PINNED_MEMORY", 64 * GIB if pins else 0)
        patch.setattr(management, "pin_memory", pin)
        patch.setattr(transfer, "timed", lambda function: (function(), 0.0))  # it has no speed
        patch.setattr(management, "unpin_memory", unpin)
        with _Functions(), _Dispatch(counts, pinned):
            try:
                yield counts
            finally:
                management.unload_all_models()
                while _PLACED:
                    _PLACED.pop().model.to("cpu")


_PLACED: list[Any] = []  # what is to be brought back


def on_second(patcher: Any) -> Any:
    """A clone of a model that is loaded onto the second device, with the models that come with it."""
    clone = patcher.clone()
    for each in (clone, *clone.get_nested_additional_models()):
        each.load_device, each.offload_device = DEVICE, torch.device("cpu")
        _PLACED.append(each)
    return clone


def steps_of(counts: Counts, run: Callable[[Callable[..., None]], Any]) -> tuple[Any, list[Counts]]:
    """What a sampling run gave, and what was counted in each of its steps.

    Args:
        run: samples with a callback of ComfyUI's.
    """
    states = [counts.copy()]
    out = run(lambda *_: states.append(counts.copy()))
    return out, [after.since(before) for before, after in itertools.pairwise(states)]
