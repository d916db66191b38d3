"""Models to fuse, each with a twin that is not."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastinfogan.nn import FusionReport, fuse
from tests.helpers import compare
from tests.helpers.compare import draw


def sequential() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 4, 2, 1), nn.LeakyReLU(0.1, inplace=True),
        nn.Conv2d(4, 6, 4, padding="same", bias=False), nn.BatchNorm2d(6), nn.ReLU(),
        nn.Dropout(0.0), nn.ConvTranspose2d(6, 5, 4, 2, 1), nn.BatchNorm2d(5, momentum=0.3),
        nn.ReLU(), nn.ConvTranspose2d(5, 4, 3, 2, 1, 1), nn.Tanh(), nn.Flatten(),
        nn.Linear(4 * 16 * 16, 7), nn.BatchNorm1d(7, eps=1e-3), nn.LeakyReLU(0.2), nn.Linear(7, 1),
    )  # fmt: skip


class Attributes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(2, 4, 4, 2, 1)
        self.bn1 = nn.BatchNorm2d(4)
        self.act1 = nn.LeakyReLU(0.2)
        self.conv2 = nn.Conv2d(4, 6, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(6, affine=False)
        self.act2 = nn.ReLU()
        self.head = nn.Linear(6 * 4 * 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act1(self.bn1(self.conv1(x)))
        x = self.act2(self.bn2(self.conv2(x)))
        return self.head(x.flatten(1))


class Residual(nn.Module):
    """Each result that is used twice must stay one that can be used."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1)
        self.stem_bn = nn.BatchNorm2d(4)
        self.conv1 = nn.Conv2d(4, 4, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(4)
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(4)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem_bn(self.stem(x))
        y = F.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(y)) + x)


class Nested(nn.Module):
    """A Sequential called as a whole, and what its weights are read for."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        for layer in self.features:
            for parameter in layer.parameters():
                nn.init.constant_(parameter, 0.1)

    def encode(self, x: Tensor) -> Tensor:
        return self.features(x)

    def decay(self) -> Tensor:
        return sum(p.square().sum() for p in self.features.parameters())

    def forward(self, x: Tensor) -> Tensor:
        return self.features(x)


MODELS: dict[str, tuple[Callable[[], nn.Module], list[tuple[str, ...]]]] = {
    "sequential": (
        sequential,
        [("0", "1", "2", "3", "4"), ("6", "7", "8", "9", "10"), ("12", "13", "14")],
    ),
    "attributes": (Attributes, [("conv1", "bn1", "act1", "conv2", "bn2", "act2")]),
    "residual": (Residual, [("stem", "stem_bn"), ("conv1", "bn1"), ("conv2", "bn2")]),
    "nested": (Nested, [("features.0", "features.1", "features.2")]),
}


def made(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(1)
    model = make().double()
    with torch.no_grad():
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if tensor.is_floating_point():
                tensor.add_(torch.rand_like(tensor) / (20 if name.endswith("weight") else 2))
    return model


def pair(make: Callable[[], nn.Module]) -> tuple[nn.Module, nn.Module, FusionReport]:
    """A fused model, its twin that is not, and the report."""
    fused = made(make)
    twin = copy.deepcopy(fused)
    return fused, twin, fuse(fused)


def images(seed: int = 1, batch: int = 6) -> Tensor:
    """A batch that all of these models take."""
    return draw(batch, 2, 8, 8, seed=seed)


def everything(
    module: nn.Module, run: Callable[[Tensor], Tensor] | None = None
) -> dict[str, Tensor]:
    """See `compare.everything`."""
    return compare.everything(module, module if run is None else run, images())
