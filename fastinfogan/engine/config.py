"""What config.json holds beside the experiment: hyperparameters, options, versions, hardware."""

import dataclasses
import os
import platform
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, Self

import torch

from fastinfogan import __version__
from fastinfogan.data.bad_images import OnBadImage
from fastinfogan.data.cache.policy import CacheName
from fastinfogan.data.decoders.base import DecoderName
from fastinfogan.engine.precision import ComputedIn, cpu_multiplies
from fastinfogan.errors import InputError, check_fields
from fastinfogan_kernels.inputs.real_images import Augmentation
from fastinfogan_kernels.philox import require_seed
from fastinfogan_kernels.runtime.launch import native_status

Information = Literal["maximise", "observe"]
Device = Literal["cpu", "cuda"]
BatchNorm = Literal["synchronised", "per-rank"]

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
