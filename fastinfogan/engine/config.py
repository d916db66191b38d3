"""What config.json holds beside the experiment: hyperparameters, options, versions, hardware.

And what the names in it mean on a machine: the device, and the precision, which is the number
format that the networks compute in; weights, statistics and losses stay in fp32.
"""

import dataclasses
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, Final, Literal, Self, get_args

import torch

from fastinfogan import __version__
from fastinfogan.data.bad_images import OnBadImage
from fastinfogan.data.cache.policy import CacheName
from fastinfogan.data.decoders.base import DecoderName
from fastinfogan.errors import InputError, check_fields
from fastinfogan_kernels.inputs.real_images import Augmentation
from fastinfogan_kernels.philox import require_seed
from fastinfogan_kernels.runtime.launch import native_status

Information = Literal["maximise", "observe"]
Device = Literal["cpu", "cuda"]
BatchNorm = Literal["synchronised", "per-rank"]
PrecisionName = Literal["auto", "fp32", "tf32", "bf16", "fp16"]
ComputedIn = Literal["fp32", "tf32", "bf16", "fp16", "fp64"]

_PACKAGES = ("torch", "triton", "numpy", "scipy", "safetensors")

MAX_BATCH_SIZE = 2**16
MAX_ITERATIONS = 2**32 - 1  # the generator's counter has 32 bits for the iteration


@dataclass(frozen=True)
class _JsonFields:
    """A dataclass that is written to JSON and read from it."""

    def to_dict(self) -> dict[str, Any]:
        """Return all fields as JSON can hold them."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Self:
        """Build an instance from what `to_dict` returned.

        Raises:
            InputError: a field is missing, unknown, of the wrong type or out of range.
        """
        try:
            return cls(**fields)
        except (TypeError, InputError) as error:
            raise InputError(f"not the settings of a run: {error}") from error


@dataclass(frozen=True)
class TrainConfig(_JsonFields):
    """The hyperparameters of a run: with the experiment they decide its numbers.

    Attributes:
        seed: of weights, codes, data order and augmentation, 0 <= seed < 2^64.
        batch_size: rows of real and of generated images in a step, 2 to 65,536.
        precision: "fp32", "tf32", "bf16", "fp16" (or "fp64", for parity tests).
        augmentation: of the real images.
        information: "maximise" is InfoGAN. "observe" is a GAN with Q observing, the baseline of the
            paper's Figure 1: the D step is InfoGAN's, D's trunk and Q learn from the MI term; only
            the generator gets no gradient of it.
        data: path of the images, None for the embedded ones.
        data_fingerprint: of the images, see `fastinfogan.data.image_set`.
        log_every: iterations between two lines of metrics, which are means over them.
        batch_norm: with several processes: by the statistics of the whole batch, or per rank.
        ranks: number of processes that share the batch.

    Raises:
        InputError: a field is of the wrong type or out of range.
    """

    seed: int
    batch_size: int
    precision: ComputedIn
    augmentation: Augmentation
    information: Information
    data: str | None
    data_fingerprint: dict[str, str]
    log_every: int = 10
    batch_norm: BatchNorm = "synchronised"
    ranks: int = 1

    def __post_init__(self) -> None:
        check_fields(self)
        require_seed(self.seed)
        if self.batch_size < 2:
            raise InputError(
                f"`batch_size` must be 2 or more, not {self.batch_size}: "
                "batch norm cannot train on fewer"
            )
        if self.batch_size > MAX_BATCH_SIZE:
            raise InputError(
                f"`batch_size` must be {MAX_BATCH_SIZE:,} or less, not {self.batch_size}"
            )
        if self.ranks < 1:
            raise InputError(f"a run has 1 rank or more, not {self.ranks}")
        if self.log_every < 1:
            raise InputError(f"`log_every` must be 1 or more, not {self.log_every}")

    def deciding(self) -> dict[str, Any]:
        """Return the fields that a checkpoint must share with its run.

        Not where the images are, nor the ranks if batch norm is synchronised: neither decides a
        number.
        """
        fields = self.to_dict()
        del fields["data"]
        if self.batch_norm == "synchronised":
            del fields["ranks"]
        return fields


@dataclass(frozen=True)
class InitialWeights:
    """The checkpoint whose weights a run started from.

    Attributes:
        run: folder of the other run.
        checkpoint: name of its checkpoint.
        manifest_sha256: of that checkpoint's manifest.
    """

    run: str
    checkpoint: str
    manifest_sha256: str

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class RunOptions(_JsonFields):
    """What a run was asked to do, which decides no number; may change on resuming.

    Attributes:
        iterations: number of iterations in all.
        init_from: the checkpoint whose weights it started from; None for random ones.
        device: "cpu" or "cuda".
        checkpoint_every: iterations between checkpoints.
        pictures_every: iterations between sets of pictures; 0 for the end alone.
        cache: where decoded images are cached, see `fastinfogan.data.cache.policy`.
        decoder: name of the decoder, see `fastinfogan.data.decoders`.
        on_bad_image: what to do about images that cannot be decoded.

    Raises:
        InputError: a field is of the wrong type or out of range.
    """

    iterations: int
    init_from: InitialWeights | None = None
    device: Device = "cpu"
    checkpoint_every: int = 500
    pictures_every: int = 500
    cache: CacheName = "auto"
    decoder: DecoderName = "auto"
    on_bad_image: OnBadImage = "fail"

    def __post_init__(self) -> None:
        check_fields(self)
        if not 0 <= self.iterations <= MAX_ITERATIONS:
            limit = "0 or more" if self.iterations < 0 else f"{MAX_ITERATIONS:,} or less"
            raise InputError(f"`iterations` must be {limit}, not {self.iterations}")
        if self.checkpoint_every < 1:
            raise InputError(f"`checkpoint_every` must be 1 or more, not {self.checkpoint_every}")
        if self.pictures_every < 0:
            raise InputError(f"`pictures_every` must be 0 or more, not {self.pictures_every}")

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Self:
        """Build an instance from what `to_dict` returned.

        Raises:
            InputError: a field is missing, unknown, of the wrong type or out of range.
        """
        try:
            origin = fields["init_from"]
            return super().from_dict(
                {**fields, "init_from": InitialWeights(**origin) if origin else None}
            )
        except (KeyError, TypeError) as error:
            raise InputError(f"not the settings of a run: {error}") from error


def versions() -> dict[str, str]:
    """Return the versions of fastinfogan, Python and the packages that decide numbers."""
    found = {"fastinfogan": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def cpu_model() -> str:
    """Return the CPU's name from /proc/cpuinfo."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def choose_device(name: str) -> torch.device:
    """Choose a device: "auto" is the first GPU, or the CPU where there is none.

    Raises:
        InputError: no such device on this machine.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("`device='cuda'`: this machine has no usable GPU; use cpu or auto")
    if name not in ("cpu", "cuda"):
        raise InputError(f"no device {name!r}; there are auto, cpu and cuda")
    return torch.device(name)


def hardware() -> dict[str, str]:
    """Describe the CPU, its threads and matrix instructions, and the GPUs."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "cpu": cpu_model(),
        "cores": str(os.cpu_count()),
        "threads": str(torch.get_num_threads()),
        "cpu bf16": cpu_multiplies("bf16") or "none",
        "cpu fp16": cpu_multiplies("fp16") or "none",
        "gpu": ", ".join(gpus) or "none",
        "native kernels": native_status(),
    }


@dataclass(frozen=True)
class Precision:
    """A way of computing.

    Attributes:
        name: fp32, tf32, bf16, fp16, or fp64 (for parity tests).
        dtype: of weights, optimizer state and losses.
        compute: of activations, convolutions and matrix products, if another than `dtype`.
        scaled: whether the losses are scaled, lest gradients round to 0.
    """

    name: ComputedIn
    dtype: torch.dtype = torch.float32
    compute: torch.dtype | None = None
    scaled: bool = False

    @property
    def computed(self) -> torch.dtype:
        """The dtype of activations between blocks, and of the weights they are computed with."""
        return self.compute or self.dtype

    @contextmanager
    def arithmetic(self) -> Iterator[None]:
        """Round the operands of fp32 products to TF32 in tf32, and in no other precision.

        This is a setting of the process, restored afterwards. What is compiled or captured inside
        retains it.
        """
        rounded = self.name == "tf32"
        switches = _switches()
        before = [switch.fp32_precision for switch in switches]
        cudnn: Any = torch.backends.cudnn
        name, allowed = "highest", True  # torch's own
        with suppress(RuntimeError):  # the switches are set to what has no name
            name = torch.get_float32_matmul_precision()
        with suppress(RuntimeError):
            allowed = cudnn.allow_tf32
        try:
            # By name, which our kernels and torch.compile go by; and whatever backends inherit.
            torch.set_float32_matmul_precision("high" if rounded else "highest")
            cudnn.allow_tf32 = rounded
            for switch in switches:
                switch.fp32_precision = "tf32" if rounded else "ieee"
            yield
        finally:
            torch.set_float32_matmul_precision(name)
            cudnn.allow_tf32 = allowed
            for switch, value in zip(switches, before, strict=True):
                switch.fp32_precision = value


def _switches() -> tuple[Any, ...]:
    """Return where torch keeps how products of fp32 are computed, and the name of it all."""
    b: Any = torch.backends
    return b.cuda.matmul, b.cudnn.conv, b.cudnn.rnn, b.mkldnn.matmul, b.mkldnn.conv


FP64: Final = Precision("fp64", torch.float64)
FP32: Final = Precision("fp32")
TF32: Final = Precision("tf32")
BF16: Final = Precision("bf16", compute=torch.bfloat16)
FP16: Final = Precision("fp16", compute=torch.float16, scaled=True)
PRECISIONS: Final = {p.name: p for p in (FP64, FP32, TF32, BF16, FP16)}


_INSTRUCTIONS: Final = {
    "bf16": {"amx_bf16": "AMX", "avx512_bf16": "AVX512-BF16", "bf16": "Arm BF16"},
    "fp16": {"amx_fp16": "AMX", "avx512_fp16": "AVX512-FP16", "fphp": "Arm FP16"},
}
"""By the kernel's name of a CPU's feature: ours of the instructions that multiply a format."""


@cache
def cpu_multiplies(name: str) -> str | None:
    """Return the instruction set by which this CPU multiplies "bf16" or "fp16", or None."""
    try:
        flags = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return None
    return next((ours for flag, ours in _INSTRUCTIONS[name].items() if flag in flags), None)


def _matrix_units(name: str, device: torch.device) -> str | None:
    """Return what multiplies matrices of a format on a device; None if emulated or absent."""
    if device.type == "cpu":
        return cpu_multiplies(name) if name in _INSTRUCTIONS else None
    # Tensor cores multiply fp16 since Volta, 7.0; bf16 and TF32 since Ampere, 8.0.
    since = (7, 0) if name == "fp16" else (8, 0)
    has = torch.version.hip is not None or torch.cuda.get_device_capability(device) >= since
    return "the GPU's matrix units" if has else None


def choose_precision(name: PrecisionName, device: torch.device) -> tuple[Precision, str]:
    """Choose a precision for a device.

    Args:
        name: "fp32"; "tf32", fp32 with products of rounded operands; "bf16"; "fp16", with scaled
            losses; or "auto": bf16 where the hardware multiplies it.
        device: where the networks lie.

    Returns:
        The precision and, in a few words, why.

    Raises:
        InputError: no such precision, or not on this device.
    """
    known = get_args(PrecisionName)
    if name not in known:
        raise InputError(f"no precision {name!r}; there are {', '.join(known)}")
    if name == "fp32":
        return FP32, "asked for"
    hardware = _matrix_units("bf16" if name == "auto" else name, device)
    if name == "auto":
        if hardware:
            return BF16, f"{hardware} multiplies bf16"
        return FP32, f"this {device.type} has no bf16 arithmetic"
    if name == "tf32" and not hardware:
        raise InputError(
            f"`precision='tf32'`: this {device.type} has no TF32, GPUs of compute capability 8.0 "
            "and more have; use fp32 or auto"
        )
    if not hardware:
        why = f"asked for, though this {device.type} emulates {name}: fp32 is faster"
        return PRECISIONS[name], why
    return PRECISIONS[name], "asked for"
