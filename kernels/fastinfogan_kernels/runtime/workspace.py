"""The memory of a fixed program: allocated in its first run, reused in every other.

A program that asks for the same tensors in the same order at every run gets the same ones each
time, so that it allocates nothing after the first. Tensors whose lifetimes do not overlap share
memory, as under a caching allocator; the first run records the lifetimes. Without a workspace the
functions here are torch's.
"""

from bisect import bisect_left
from contextvars import ContextVar, Token
from dataclasses import dataclass, field
from math import prod

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

_ALIGNED = 64
"""Every tensor's memory is a multiple of these bytes: vectors load whole cache lines."""


@dataclass(frozen=True)
class _Request:
    """A requested tensor: dense in memory, in the order of the strides."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    zeroed: bool

    @property
    def nbytes(self) -> int:
        return -(-prod(self.shape) * self.dtype.itemsize // _ALIGNED) * _ALIGNED

    def make(self) -> Tensor:
        """Allocate the tensor."""
        made = torch.empty_strided(self.shape, self.strides, dtype=self.dtype, device=self.device)
        return made.zero_() if self.zeroed else made

    def at(self, memory: Tensor) -> Tensor:
        """Place the tensor in this memory, bytes."""
        made = memory.view(self.dtype).as_strided(self.shape, self.strides)
        return made.zero_() if self.zeroed else made


@dataclass
class _Recording:
    """Which requests share a block of memory; recorded in a run that allocates every tensor.

    Attributes:
        requests: in order.
        blocks: index of each request's block.
        sizes: bytes of each block.
        alive: storages that hold a block.
        free: blocks that none holds, by size.
    """

    requests: list[_Request] = field(default_factory=list)
    blocks: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    alive: list[tuple[StorageWeakRef, int]] = field(default_factory=list)
    free: list[tuple[int, int]] = field(default_factory=list)

    def make(self, request: _Request) -> Tensor:
        """Allocate a tensor, and record which block it will use."""
        if not request.zeroed:  # what is zeroed once must stay zero
            self._collect()
        self.requests.append(request)
        size = request.nbytes
        found = len(self.free) if request.zeroed else bisect_left(self.free, (size, -1))
        # Small tensors do not use a feature map's block.
        if found < len(self.free) and self.free[found][0] <= 2 * size:
            _, block = self.free.pop(found)
        else:
            block = len(self.sizes)
            self.sizes.append(size)
        self.blocks.append(block)
        made = request.make()
        if not request.zeroed:
            storage = StorageWeakRef(made.untyped_storage())  # type: ignore[no-untyped-call]
            self.alive.append((storage, block))
        return made

    def _collect(self) -> None:
        """Free the blocks of tensors that are no longer referenced."""
        gone = {block for storage, block in self.alive if storage.expired()}  # type: ignore[no-untyped-call]
        self.alive = [each for each in self.alive if each[1] not in gone]
        self.free = sorted([*self.free, *((self.sizes[block], block) for block in gone)])

    def tensors(self) -> list[Tensor]:
        """Allocate all blocks, and place each request's tensor in its block."""
        if not self.requests:
            return []
        (device,) = {request.device for request in self.requests}
        memory = [torch.empty(n, dtype=torch.uint8, device=device) for n in self.sizes]
        pairs = zip(self.requests, self.blocks, strict=True)
        return [request.at(memory[block]) for request, block in pairs]


class Workspace:
    """A program's tensors, on one device. Each run is a `with` block.

    A run whose requests differ from the recorded ones gets new tensors, and the next run records.
    """

    def __init__(self) -> None:
        self._recording: _Recording | None = None
        self._requests: list[_Request] = []
        self._tensors: list[Tensor] = []
        self._at = 0
        self._known = False
        self._token: Token[Workspace | None] | None = None

    def __enter__(self) -> "Workspace":
        self._token = _active.set(self)
        self._at = 0
        self._recording = None if self._known else _Recording()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        assert self._token is not None
        _active.reset(self._token)
        if self._recording is not None and kind is None:
            self._requests = self._recording.requests
            self._tensors, self._known = self._recording.tensors(), True
        self._recording = None

    def take(self, request: _Request) -> Tensor:
        """Return the tensor that this request gets at every run."""
        if self._recording is not None:
            return self._recording.make(request)
        here, self._at = self._at, self._at + 1
        if not self._known or here >= len(self._requests) or self._requests[here] != request:
            self._known, self._requests, self._tensors = False, [], []
            return request.make()
        return self._tensors[here]


_active: ContextVar[Workspace | None] = ContextVar("workspace", default=None)


def _in_use() -> Workspace | None:
    """Return the running program's workspace; none for torch.compile, which plans its own."""
    return None if torch.compiler.is_compiling() else _active.get()


def empty(shape: int | tuple[int, ...], dtype: torch.dtype, device: torch.device | str) -> Tensor:
    """Return an uninitialized, contiguous tensor."""
    sizes = (shape,) if isinstance(shape, int) else shape
    active = _in_use()
    if active is None:
        return torch.empty(sizes, dtype=dtype, device=device)
    strides = tuple(prod(sizes[i + 1 :]) for i in range(len(sizes)))
    return active.take(_Request(tuple(sizes), strides, dtype, torch.device(device), False))


def zeros(count: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return `count` zeros; a kernel that writes to them must reset them to 0."""
    active = _in_use()
    if active is None:
        return torch.zeros(count, dtype=dtype, device=device)
    return active.take(_Request((count,), (1,), dtype, device, True))


def empty_like(x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Return an uninitialized tensor of a dense tensor's shape and strides."""
    active = _in_use()
    if active is None:
        return torch.empty_like(x, dtype=dtype)
    return active.take(_like(x, dtype, zeroed=False))


def zeros_like(x: Tensor) -> Tensor:
    """Return zeros of a dense tensor's shape and strides; read-only."""
    active = _in_use()
    if active is None:
        return torch.zeros_like(x)
    return active.take(_like(x, None, zeroed=True))


def _like(x: Tensor, dtype: torch.dtype | None, *, zeroed: bool) -> _Request:
    return _Request(tuple(x.shape), x.stride(), dtype or x.dtype, x.device, zeroed)


def same_memory_order(a: Tensor, b: Tensor) -> bool:
    """Return whether two tensors have their elements in the same order in memory."""
    if a.shape != b.shape:
        return False
    return a.stride() == b.stride() or all(
        x == y for x, y, size in zip(a.stride(), b.stride(), a.shape, strict=True) if size > 1
    )


def is_dense(x: Tensor) -> bool:
    """Return whether a tensor's elements fill a contiguous range of memory, without overlap."""
    expected = 1
    for stride, size in sorted(zip(x.stride(), x.shape, strict=True)):
        if size != 1:
            if stride != expected:
                return False
            expected *= size
    return True
