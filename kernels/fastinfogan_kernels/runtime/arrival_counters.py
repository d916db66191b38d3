"""Tickets: by them the programs of a launch find out which is the last, as `device.reduce` says.

A ticket is an int32 that is 0 between launches: every kernel puts back to 0 what it has counted up.
So one buffer serves all launches of a stream, which follow one another there; two streams, whose
launches may overlap, have a buffer each. Nothing is cleared before a launch.

A captured graph may be replayed on any stream and beside any other work, so each of its launches
has arrival_counters of its own for good. They are cut from a supply that was zeroed outside of the capture;
what the supply lacks, because nothing ran before the capture, the graph itself zeroes each time.
"""

import torch
from torch import Tensor

from fastinfogan_kernels.runtime.lang import triton
from fastinfogan_kernels.runtime.launch import is_recording
from fastinfogan_kernels.runtime.workspace import zeros

_AT_LEAST = 4096
_SUPPLY = 1 << 18

_of_stream: dict[tuple[torch.device, int], Tensor] = {}
_supply: dict[torch.device, Tensor] = {}
_supplies: list[Tensor] = []
"""All there ever were: graphs know their addresses, and keep no tensor."""


def arrival_counters(count: int, like: Tensor) -> Tensor:
    """Tickets for one launch, on the current stream.

    Args:
        count: how many.
        like: a tensor on the same device.

    Returns:
        int32, all 0, at least `count` of them; a recorded launch's are shared with no other.
    """
    device = like.device
    if is_recording():
        return zeros(count, torch.int32, device)
    stream = 0
    if device.type == "cuda":
        if torch.cuda.is_current_stream_capturing():
            return _of_a_capture(count, device)
        if _supply.get(device, _NONE).numel() < _SUPPLY // 2:
            _supply[device] = _zeros(_SUPPLY, device)
            _supplies.append(_supply[device])
        stream = torch.cuda.current_stream(device).cuda_stream
    found = _of_stream.get((device, stream), _NONE)
    if found.numel() < count:
        found = _of_stream[device, stream] = _zeros(max(2 * count, _AT_LEAST), device)
    return found


def _of_a_capture(count: int, device: torch.device) -> Tensor:
    left = _supply.get(device, _NONE)
    if left.numel() < count:
        return _zeros(count, device)
    # Kernels are compiled for an alignment: it is to be the same in a capture as before it.
    _supply[device] = left[triton.cdiv(count, 32) * 32 :]
    return left[:count]


def _zeros(count: int, device: torch.device) -> Tensor:
    return torch.zeros(count, dtype=torch.int32, device=device)


_NONE = torch.empty(0, dtype=torch.int32)
