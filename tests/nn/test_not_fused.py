"""What fuse leaves: layers that no block can compute, or whose order of calls is not certain."""

import copy
import functools
from collections import OrderedDict
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fastinfogan.nn import ConvBlock, fuse
from fastinfogan.nn.fused_layers import FusedLayer
from tests.helpers.compare import assert_same
from tests.helpers.fusing import everything, pair


def conv_and(*rest: nn.Module, **more: object) -> nn.Module:
    return nn.Sequential(nn.Conv2d(2, 2, 3, **more), *rest)


def hooked() -> nn.Module:
    model = conv_and(nn.BatchNorm2d(2))
    model[0].register_forward_hook(lambda *_: None)
    return model


def patched() -> nn.Module:
    model = conv_and(nn.BatchNorm2d(2))
    conv = model[0]
    conv.forward = lambda x: nn.Conv2d.forward(conv, x) * 2
    return model


def shared() -> nn.Module:
    conv = nn.Conv2d(2, 2, 3)
    return nn.Sequential(conv, nn.BatchNorm2d(2), conv, nn.BatchNorm2d(2))


class Scaled(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2


class Normal(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2


class Pieces(nn.Module):
    """Layers; each subclass has its forward."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3, padding=1)
        self.bn = nn.BatchNorm2d(2)
        self.act = nn.ReLU()


class Branching(Pieces):
    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        if self.training:
            x = self.bn(x)
        return self.act(x)


class Matching(Pieces):
    def forward(self, x: Tensor) -> Tensor:
        match self.training:
            case True:
                return self.act(self.bn(self.conv(x)))
            case _:
                return self.act(self.conv(x))


class Helping(Pieces):
    def helper(self, x: Tensor) -> Tensor:
        return self.bn(x) if self.training else x

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.helper(self.conv(x)))


class Differing(Pieces):
    def __init__(self) -> None:
        super().__init__()
        self.either = nn.ModuleList([nn.ReLU(), nn.Identity()])

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(self.either[self.training](self.conv(x))))


class ByName(Pieces):
    def forward(self, x: Tensor) -> Tensor:
        return getattr(self, ("act", "bn")[self.training])(self.conv(x))


def as_flagged(module: nn.Module, x: Tensor) -> Tensor:
    return module.act(module.bn(module.conv(x)) if module.flag else module.conv(x))


class PassedOn(Pieces):
    flag = True

    def forward(self, x: Tensor) -> Tensor:
        return as_flagged(self, x)


class OwnName(Pieces):
    def forward(this, x: Tensor) -> Tensor:  # noqa: N805
        return this.act(this.helper(this.conv(x)))

    def helper(self, x: Tensor) -> Tensor:
        return x.square()


def doubled(
    function: Callable[[nn.Module, Tensor], Tensor],
) -> Callable[[nn.Module, Tensor], Tensor]:
    @functools.wraps(function)
    def wrapper(module: nn.Module, x: Tensor) -> Tensor:
        return function(module, x * 2)

    return wrapper


class Decorated(Pieces):
    @doubled
    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(self.conv(x)))


class Plain(Pieces):
    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(self.conv(x)))


class Property(Plain):
    @property
    def first(self) -> nn.Module:
        return self.conv


class Later(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.embed = lambda x: self.conv(x)


class Held(Plain):
    """A layer is in an attribute, too."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = [self.conv]


class FromAbove(nn.Module):
    """Layers of a module below are called one by one, and the module as a whole."""

    def __init__(self) -> None:
        super().__init__()
        self.below = Plain()

    def forward(self, x: Tensor) -> Tensor:
        return self.below.bn(self.below.conv(x)) + self.below(x)


class FromALoop(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.below = nn.ModuleList([Plain(), Plain()])

    def forward(self, x: Tensor) -> Tensor:
        for block in self.below:
            x = x + block.conv(x)
        return x


class Named(nn.Module):
    """A Sequential whose children have names to be called by."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            OrderedDict(conv0=nn.Conv2d(2, 2, 3), norm0=nn.BatchNorm2d(2), relu0=nn.ReLU())
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.features.norm0(self.features.conv0(x))


class Indexed(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Conv2d(2, 2, 3), nn.BatchNorm2d(2), nn.ReLU())

    def embed(self, x: Tensor) -> Tensor:
        return self[0](x)


class WithoutGradient(Pieces):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            x = self.conv(x)
        return self.act(self.bn(x))


class Inheriting(Branching):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


class TwoWays(Pieces):
    def embed(self, x: Tensor) -> Tensor:
        return self.conv(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(self.conv(x)))


class Twice(Pieces):
    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.conv(x))


class Skip(Pieces):
    """The convolution's result is used again."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.act(self.bn(y)) + y


class Sized(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(2, 2, 4, 2, 1)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.up(x, [17, 17]))


class OneByOne(nn.Module):
    """A perceptual loss calls the layers of a Sequential."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(2, 2, 3), nn.BatchNorm2d(2), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        total = x.new_zeros(())
        for layer in self.features:
            x = layer(x)
            total = total + x.square().mean()
        return total


class Sliced(OneByOne):
    def forward(self, x: Tensor) -> Tensor:
        return self.features[:1](x)


class Children(OneByOne):
    def forward(self, x: Tensor) -> Tensor:
        return list(self.features.children())[0](x)  # noqa: RUF015


def weight_norm(old: bool) -> nn.Module:
    wrap = nn.utils.weight_norm if old else nn.utils.parametrizations.weight_norm
    return nn.Sequential(wrap(nn.Conv2d(2, 2, 3)), nn.BatchNorm2d(2))


def spectral_norm(old: bool) -> nn.Module:
    wrap = nn.utils.spectral_norm if old else nn.utils.parametrizations.spectral_norm
    return nn.Sequential(wrap(nn.Conv2d(2, 2, 3)), nn.BatchNorm2d(2))


LEFT: dict[str, tuple[Callable[[], nn.Module], str, str]] = {
    "groups": (lambda: conv_and(nn.BatchNorm2d(2), groups=2), "0", "groups or dilation"),
    "dilation": (lambda: conv_and(nn.BatchNorm2d(2), dilation=2), "0", "groups or dilation"),
    "kernel": (
        lambda: nn.Sequential(nn.Conv2d(2, 2, (3, 1)), nn.ReLU()), "0", "not square"
    ),
    "stride": (lambda: conv_and(nn.ReLU(), stride=(1, 2)), "0", "not square"),
    "padding": (lambda: conv_and(nn.ReLU(), padding=(0, 1)), "0", "not square"),
    "reflection": (
        lambda: conv_and(nn.ReLU(), padding=1, padding_mode="reflect"), "0", "reflect, not zeros"
    ),
    "momentum": (lambda: conv_and(nn.BatchNorm2d(2, momentum=None)), "1", "momentum None"),
    "features": (lambda: nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(8)), "1", "its input has 4"),
    "kind of norm": (lambda: nn.Sequential(nn.Linear(8, 4), nn.BatchNorm2d(8)), "1", "not fit"),
    "slope": (lambda: conv_and(nn.LeakyReLU(-0.1)), "1", "negative"),
    "subclass of a conv": (lambda: nn.Sequential(Scaled(2, 2, 3), nn.ReLU()), "0", "subclass"),
    "subclass of a norm": (lambda: conv_and(Normal(2)), "1", "subclass"),
    "lazy": (lambda: nn.Sequential(nn.LazyConv2d(2, 3), nn.ReLU()), "0", "subclass"),
    "linear alone": (lambda: nn.Sequential(nn.Linear(8, 4), nn.ReLU()), "0", "any rank"),
    "convolution alone": (lambda: conv_and(nn.GELU()), "0", "neither"),
    "transposed, larger": (
        lambda: nn.Sequential(nn.ConvTranspose2d(2, 2, 4, 2), nn.ReLU()), "0", "times the stride"
    ),
    "transposed, asked for a size": (Sized, "up", "exactly once with one argument"),
    "hooks": (hooked, "0", "hooks"),
    "old weight norm": (lambda: weight_norm(True), "0", "hooks"),
    "weight norm": (lambda: weight_norm(False), "0", "subclass"),
    "old spectral norm": (lambda: spectral_norm(True), "0", "hooks"),
    "spectral norm": (lambda: spectral_norm(False), "0", "subclass"),
    "forward replaced": (patched, "0", "replaced"),
    "shared": (shared, "0", "more than one place"),
    "branches": (Branching, "conv", "branches"),
    "match": (Matching, "conv", "branches"),
    "helper": (Helping, "conv", "Helping.helper may use bn"),
    "helper of no layers": (OwnName, "conv", "self.helper"),
    "decorator": (Decorated, "conv", "decorated"),
    "module passed on": (PassedOn, "conv", "forward may use its layers"),
    "layers by name": (ByName, "conv", "forward may use its layers"),
    "property": (Property, "conv", "Property.first may use conv"),
    "function defined by __init__": (Later, "conv", "__init__ may use conv"),
    "held by an attribute": (Held, "conv", "Held.layers holds it"),
    "used from above": (FromAbove, "below.conv", "FromAbove.forward may use conv"),
    "used in a loop above": (FromALoop, "below.0.conv", "FromALoop.forward may use conv"),
    "used by name": (Named, "features.conv0", "Named.forward may use conv0"),
    "used by index": (Indexed, "0", "Indexed.embed may use its layers"),
    "other layers in evaluation": (Differing, "conv", "differently in evaluation mode"),
    "no_grad": (WithoutGradient, "conv", "with block"),
    "super": (Inheriting, "conv", "super"),
    "used by another method": (TwoWays, "conv", "embed may use conv"),
    "called twice": (Twice, "conv", "exactly once"),
    "skip": (Skip, "conv", "neither"),
    "layers one by one": (OneByOne, "features.0", "one by one"),
    "sliced": (Sliced, "features.0", "one by one"),
    "children": (Children, "features.0", "one by one"),
    "list": (lambda: nn.ModuleList([nn.Conv2d(2, 2, 3)]), "0", "no order"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", LEFT)
def test_not_fused(name: str) -> None:
    make, layer, why = LEFT[name]
    torch.manual_seed(1)
    model = make()
    state = copy.deepcopy(model.state_dict())
    report = fuse(model)
    assert not report.fused, report
    assert why in report.left[layer], report
    assert not any(isinstance(m, FusedLayer) for m in model.modules())
    assert model.state_dict().keys() == state.keys()


def test_blocks_are_not_fused() -> None:
    model = nn.Sequential(ConvBlock(2, 4, 3), nn.Conv2d(4, 4, 3), nn.ReLU())
    report = fuse(model)
    assert report.fused == [("1", "2")]
    assert not report.left


@pytest.mark.parametrize(
    "kind", [WithoutGradient, TwoWays, Skip, Twice, FromAbove, Named, PassedOn]
)
def test_the_rest_of_the_model_computes_as_before(kind: type[nn.Module]) -> None:
    model, twin, _ = pair(kind)
    assert_same(everything(model), everything(twin))
