"""What a run is, beside its experiment: all that decides the numbers it computes."""

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from fastinfogan.data.augment import Augmentation
from fastinfogan.errors import InputError

Information = Literal["maximise", "observe"]


@dataclass(frozen=True)
class TrainingSettings:
    """The settings of a run.

    Attributes:
        seed: of weights, codes, data order and augmentation, 0 <= seed < 2^63.
        batch_size: rows of real and of generated images in a step, 2 or more.
        precision: "fp32", "bf16" (or "fp64", for parity tests).
        augmentation: of the real images.
        information: "maximise" is InfoGAN; "observe" is a plain GAN with Q beside its D: the D
            step is the same, but the generator is not told what Q can read (paper, Figure 1).
        data: path of the images, None for the embedded ones.
        data_fingerprint: SHA-256 of the images.
        log_every: iterations between two lines of metrics, each a mean over them.
    """

    seed: int
    batch_size: int
    precision: str
    augmentation: Augmentation
    information: Information
    data: str | None
    data_fingerprint: str
    log_every: int = 10

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**63:
            raise InputError(f"--seed must be 0 or more and below 2^63, not {self.seed}")
        if self.batch_size < 2:
            raise InputError(
                f"--batch-size must be 2 or more, not {self.batch_size}: "
                "batch norm cannot train on fewer"
            )
        if self.log_every < 1:
            raise InputError(f"--log-every must be 1 or more, not {self.log_every}")

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON can hold them."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> "TrainingSettings":
        """What `to_dict` gave.

        Raises:
            InputError: a field is missing or unknown.
        """
        try:
            return cls(**fields)
        except TypeError as error:
            raise InputError(f"not the settings of a run: {error}") from error
