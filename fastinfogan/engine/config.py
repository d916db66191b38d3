"""What a run is, beside its experiment: what decides its numbers, and what it was asked to do."""

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal, Self

from fastinfogan.data.bad_images import OnBadImage
from fastinfogan.data.cache.policy import CacheName
from fastinfogan.data.decoders.base import DecoderName
from fastinfogan.engine.precision import ComputedIn
from fastinfogan.errors import InputError, check_fields
from fastinfogan_kernels.inputs.real_images import Augmentation
from fastinfogan_kernels.philox import require_seed

Information = Literal["maximise", "observe"]
Device = Literal["cpu", "cuda"]
BatchNorm = Literal["synchronised", "per-rank"]

MAX_BATCH_SIZE = 2**16
MAX_ITERATIONS = 2**32 - 1  # the generator's counter has 32 bits for the iteration


@dataclass(frozen=True)
class _Recorded:
    """Plain data with a way to JSON and back."""

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON can hold them."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Self:
        """What `to_dict` gave.

        Raises:
            InputError: a field is missing, unknown, of the wrong type or out of range.
        """
        try:
            return cls(**fields)
        except (TypeError, InputError) as error:
            raise InputError(f"not the settings of a run: {error}") from error


@dataclass(frozen=True)
class TrainConfig(_Recorded):
    """The settings of a run.

    Attributes:
        seed: of weights, codes, data order and augmentation, 0 <= seed < 2^64.
        batch_size: rows of real and of generated images in a step, 2 to 65,536.
        precision: "fp32", "tf32", "bf16", "fp16" (or "fp64", for parity tests).
        augmentation: of the real images.
        information: "maximise" is InfoGAN. "observe" is a GAN with Q observing, the baseline of the
            paper's Figure 1: the D step is InfoGAN's, D's trunk and Q learn from the MI term; only
            the generator is not told what Q can read.
        data: path of the images, None for the embedded ones.
        data_fingerprint: of the images, see `fastinfogan.data.image_set`.
        log_every: iterations between two lines of metrics, each a mean over them.
        batch_norm: of several ranks: by the statistics of the whole batch, or each by its own.
        ranks: how many share the batch.

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
        """The fields that a checkpoint must share: those that decide its numbers.

        Where the images lie does not; nor do ranks, if batch norm is the whole batch's.
        """
        fields = self.to_dict()
        del fields["data"]
        if self.batch_norm == "synchronised":
            del fields["ranks"]
        return fields


@dataclass(frozen=True)
class Origin:
    """Where a run's first weights come from, if not from its seed.

    Attributes:
        run: the other run's folder.
        checkpoint: name of its checkpoint.
        manifest_sha256: of that checkpoint's manifest.
    """

    run: str
    checkpoint: str
    manifest_sha256: str

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class RunOptions(_Recorded):
    """What a run was asked to do; a resume may ask for more.

    Attributes:
        iterations: how many in all.
        init_from: whose weights it started from; None for its seed's.
        device: "cpu" or "cuda".
        checkpoint_every: iterations between checkpoints.
        pictures_every: iterations between sets of pictures; 0 for the end alone.
        cache: where decoded images are kept, see `data.place`.
        decoder: who decodes pictures, see `data.decode`.
        on_bad_image: what is done about pictures that cannot be decoded.

    Raises:
        InputError: a field is of the wrong type or out of range.
    """

    iterations: int
    init_from: Origin | None = None
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
        """What `to_dict` gave.

        Raises:
            InputError: a field is missing, unknown, of the wrong type or out of range.
        """
        try:
            origin = fields["init_from"]
            return super().from_dict({**fields, "init_from": Origin(**origin) if origin else None})
        except (KeyError, TypeError) as error:
            raise InputError(f"not the settings of a run: {error}") from error
