"""fuse and unfuse on models of all kinds: the same model before, between and after."""

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastinfogan.errors import InputError
from fastinfogan.nn import ConvBlock, FusionReport, fuse, statistics_frozen, synchronise, unfuse
from fastinfogan.nn.stand_ins import Fused


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
        return self.features(x)  # type: ignore[no-any-return]

    def decay(self) -> Tensor:
        return sum(p.square().sum() for p in self.features.parameters())  # type: ignore[return-value]

    def forward(self, x: Tensor) -> Tensor:
        return self.features(x)  # type: ignore[no-any-return]


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


def draw(seed: int = 1, batch: int = 6) -> Tensor:
    source = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 2, 8, 8, generator=source, dtype=torch.float64)


def everything(
    module: nn.Module, run: Callable[[Tensor], Tensor] | None = None
) -> dict[str, Tensor]:
    module.zero_grad()
    x = draw().requires_grad_()
    out = (module if run is None else run)(x)
    (out * torch.linspace(-1, 1, out.numel(), dtype=torch.float64).view_as(out)).sum().backward()
    found = {"out": out.detach(), "x": x.grad}
    found |= {k: p.grad.clone() for k, p in module.named_parameters() if p.grad is not None}
    return found | {k: b.clone() for k, b in module.named_buffers()}  # type: ignore[return-value]


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(
            one[name], other[name], rtol=1e-9, atol=1e-10, msg=lambda m, name=name: f"{name}: {m}"
        )


@pytest.mark.parametrize("name", MODELS)
def test_the_same_model(name: str) -> None:
    make, chains = MODELS[name]
    fused, twin, report = pair(make)
    assert report.fused == chains
    for training in (True, False, True):
        fused.train(training)
        twin.train(training)
        assert_same(everything(fused), everything(twin))
    assert_same(fused.state_dict(), twin.state_dict())
    assert list(fused.state_dict()) == list(twin.state_dict())
    assert [n for n, _ in fused.named_parameters()] == [n for n, _ in twin.named_parameters()]
    assert fused.state_dict()._metadata.keys() == twin.state_dict()._metadata.keys()  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", MODELS)
def test_compiled(name: str) -> None:
    fused, twin, _ = pair(MODELS[name][0])
    torch._dynamo.reset()
    compiled = torch.compile(fused, fullgraph=True, backend="aot_eager")
    assert_same(everything(fused, compiled), everything(twin))


@pytest.mark.parametrize("assign", [False, True])
def test_state_goes_both_ways(assign: bool) -> None:
    fused, twin, _ = pair(sequential)
    twin(draw(3))
    fused.load_state_dict(twin.state_dict(), assign=assign)
    fused.eval()
    twin.eval()
    torch.testing.assert_close(fused(draw()), twin(draw()))
    fused.train()
    fused(draw(4))
    twin.load_state_dict(copy.deepcopy(fused.state_dict()))
    fused.eval()
    torch.testing.assert_close(fused(draw()), twin(draw()))
    with pytest.raises(RuntimeError, match=r"size mismatch for 0\.weight"):
        fused.load_state_dict(twin.state_dict() | {"0.weight": torch.zeros(4, 3, 4, 4)})
    with pytest.raises(RuntimeError, match=r"Missing key.*3\.running_mean"):
        fused.load_state_dict({k: v for k, v in twin.state_dict().items() if k != "3.running_mean"})


def test_an_optimizer_made_before_fusing_trains() -> None:
    fused = made(sequential)
    twin = copy.deepcopy(fused)
    optimizers = [torch.optim.Adam(m.parameters(), lr=1e-2) for m in (fused, twin)]
    fuse(fused)
    for step in range(3):
        for model, optimizer in zip((fused, twin), optimizers, strict=True):
            optimizer.zero_grad()
            model(draw(step)).square().sum().backward()
            optimizer.step()
    fused.eval()
    twin.eval()
    torch.testing.assert_close(fused(draw()), twin(draw()), rtol=1e-5, atol=1e-7)
    assert not torch.equal(
        fused.state_dict()["0.weight"], made(sequential).state_dict()["0.weight"]
    )


def test_moving_and_modes() -> None:
    fused, twin, _ = pair(sequential)
    for model in (fused, twin):
        model.float()
        model.get_submodule("3").eval()
        model.get_parameter("0.weight").requires_grad_(False)
    x = draw().float()
    for model in (fused, twin):
        model(x).sum().backward()
    torch.testing.assert_close(fused.state_dict(), twin.state_dict(), rtol=1e-4, atol=1e-4)
    assert fused.state_dict()["3.num_batches_tracked"] == 0
    assert fused.state_dict()["7.num_batches_tracked"] == 1
    assert fused.get_parameter("0.weight").grad is None
    fused.to("meta")
    assert fused(torch.zeros(2, 2, 8, 8, device="meta")).device.type == "meta"


def test_statistics_frozen_reaches_fused_layers() -> None:
    fused, twin, _ = pair(sequential)
    with statistics_frozen(fused):
        fused(draw())
    assert_same(fused.state_dict(), twin.state_dict())


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_are_independent(copied: Callable[[nn.Module], nn.Module]) -> None:
    fused, twin, _ = pair(Attributes)
    other = copied(fused)
    with torch.no_grad():
        other.get_parameter("conv2.weight").zero_()
    assert not torch.equal(other(draw()), fused(draw()))
    twin(draw())
    assert_same(everything(fused), everything(twin))
    unfuse(other)
    other.load_state_dict(twin.state_dict())
    assert_same(everything(other), everything(twin))


def test_unfuse_gives_the_very_layers_back() -> None:
    model = made(sequential)
    layers = list(model.children())
    twin = copy.deepcopy(model)
    fuse(model)
    for m in (model, twin):
        m(draw()).sum().backward()
        m.eval()
    unfuse(model)
    assert all(a is b for a, b in zip(layers, model.children(), strict=True))
    assert not any(layer.training for layer in layers)
    assert_same(model.state_dict(), twin.state_dict())
    assert_same(everything(model), everything(twin))


def test_fusing_twice_is_harmless() -> None:
    fused, twin, first = pair(sequential)
    again = fuse(fused)
    assert not again.fused
    assert again.left == first.left
    assert_same(everything(fused), everything(twin))


def test_convert_sync_batchnorm_keeps_what_is_fused() -> None:
    fused, twin, _ = pair(sequential)
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(fused)
    assert_same(everything(converted), everything(twin))
    assert not fuse(nn.SyncBatchNorm.convert_sync_batchnorm(made(Residual))).fused
    with pytest.raises(InputError, match="init_process_group"):
        synchronise(fused)(draw())


def test_other_ranks_and_empty_batches_go_as_before() -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU())
    twin = copy.deepcopy(model)
    assert fuse(model).fused
    for x in (torch.randn(2, 5, 5), torch.zeros(0, 2, 5, 5)):
        torch.testing.assert_close(model(x), twin(x))
    flat = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(5), nn.ReLU())
    assert not fuse(flat).fused
    flat = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.ReLU())
    twin = copy.deepcopy(flat)
    assert fuse(flat).fused
    torch.testing.assert_close(flat(torch.ones(2, 5, 3)), twin(torch.ones(2, 5, 3)))


def test_impl_is_handed_on() -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU())
    fuse(model, impl="triton")
    with pytest.raises(InputError, match="TRITON_INTERPRET=1"):
        model(torch.zeros(1, 2, 5, 5))


def test_the_report_tells() -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Conv2d(3, 3, 3))
    assert str(fuse(model)) == (
        "fused  0 + 1\nleft   2: neither batch norm nor an activation follows"
    )
    assert str(fuse(nn.Sequential(nn.ReLU()))) == "nothing to fuse"
    assert "0" in repr(model[0])
    assert "ReLU, fused" in repr(model[1])


def conv_and(*rest: nn.Module, **more: object) -> nn.Module:
    return nn.Sequential(nn.Conv2d(2, 2, 3, **more), *rest)  # type: ignore[arg-type]


def hooked() -> nn.Module:
    model = conv_and(nn.BatchNorm2d(2))
    model[0].register_forward_hook(lambda *_: None)  # type: ignore[index, operator]
    return model


def patched() -> nn.Module:
    model = conv_and(nn.BatchNorm2d(2))
    conv = model[0]  # type: ignore[index]
    conv.forward = lambda x: nn.Conv2d.forward(conv, x) * 2  # type: ignore[method-assign, assignment, arg-type]
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
    """Layers whose forward is each test's own."""

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
        return self.act(x)  # type: ignore[no-any-return]


class Matching(Pieces):
    def forward(self, x: Tensor) -> Tensor:
        match self.training:
            case True:
                return self.act(self.bn(self.conv(x)))  # type: ignore[no-any-return]
            case _:
                return self.act(self.conv(x))  # type: ignore[no-any-return]


class Helping(Pieces):
    def helper(self, x: Tensor) -> Tensor:
        return self.bn(x) if self.training else x

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.helper(self.conv(x)))  # type: ignore[no-any-return]


class Differing(Pieces):
    def forward(self, x: Tensor) -> Tensor:
        return getattr(self, ("act", "bn")[self.training])(self.conv(x))  # type: ignore[no-any-return]


class WithoutGradient(Pieces):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            x = self.conv(x)
        return self.act(self.bn(x))  # type: ignore[no-any-return]


class Inheriting(Branching):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


class TwoWays(Pieces):
    def embed(self, x: Tensor) -> Tensor:
        return self.conv(x)  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(self.conv(x)))  # type: ignore[no-any-return]


class Twice(Pieces):
    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.conv(x))  # type: ignore[no-any-return]


class Skip(Pieces):
    """The convolution's result is used again."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.act(self.bn(y)) + y  # type: ignore[no-any-return]


class Sized(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(2, 2, 4, 2, 1)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.up(x, [17, 17]))  # type: ignore[no-any-return]


class OneByOne(nn.Module):
    """A perceptual loss's way with a Sequential."""

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
        return self.features[:1](x)  # type: ignore[no-any-return]


class Children(OneByOne):
    def forward(self, x: Tensor) -> Tensor:
        return list(self.features.children())[0](x)  # type: ignore[no-any-return] # noqa: RUF015


def weight_norm(old: bool) -> nn.Module:
    wrap = nn.utils.weight_norm if old else nn.utils.parametrizations.weight_norm
    return nn.Sequential(wrap(nn.Conv2d(2, 2, 3)), nn.BatchNorm2d(2))  # type: ignore[operator]


def spectral_norm(old: bool) -> nn.Module:
    wrap = nn.utils.spectral_norm if old else nn.utils.parametrizations.spectral_norm
    return nn.Sequential(wrap(nn.Conv2d(2, 2, 3)), nn.BatchNorm2d(2))  # type: ignore[operator]


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
    "features": (lambda: nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(8)), "1", "8 features, 4"),
    "kind of norm": (lambda: nn.Sequential(nn.Linear(8, 4), nn.BatchNorm2d(8)), "1", "not fit"),
    "slope": (lambda: conv_and(nn.LeakyReLU(-0.1)), "1", "negative"),
    "subclass of a map": (lambda: nn.Sequential(Scaled(2, 2, 3), nn.ReLU()), "0", "subclass"),
    "subclass of a norm": (lambda: conv_and(Normal(2)), "1", "subclass"),
    "lazy": (lambda: nn.Sequential(nn.LazyConv2d(2, 3), nn.ReLU()), "0", "subclass"),
    "linear alone": (lambda: nn.Sequential(nn.Linear(8, 4), nn.ReLU()), "0", "any rank"),
    "convolution alone": (lambda: conv_and(nn.GELU()), "0", "neither"),
    "transposed, larger": (
        lambda: nn.Sequential(nn.ConvTranspose2d(2, 2, 4, 2), nn.ReLU()), "0", "times the stride"
    ),
    "transposed, asked for a size": (Sized, "up", "its input alone"),
    "hooks": (hooked, "0", "hooks"),
    "old weight norm": (lambda: weight_norm(True), "0", "hooks"),
    "weight norm": (lambda: weight_norm(False), "0", "subclass"),
    "old spectral norm": (lambda: spectral_norm(True), "0", "hooks"),
    "spectral norm": (lambda: spectral_norm(False), "0", "subclass"),
    "forward replaced": (patched, "0", "replaced"),
    "shared": (shared, "0", "more than one place"),
    "branches": (Branching, "conv", "branches"),
    "match": (Matching, "conv", "branches"),
    "helper": (Helping, "conv", "self.helper"),
    "other layers in evaluation": (Differing, "conv", "otherwise in evaluation mode"),
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
def test_what_cannot_be_shown_is_left(name: str) -> None:
    make, layer, why = LEFT[name]
    torch.manual_seed(1)
    model = make()
    state = copy.deepcopy(model.state_dict())
    report = fuse(model)
    assert not report.fused, report
    assert why in report.left[layer], report
    assert not any(isinstance(m, Fused) for m in model.modules())
    assert model.state_dict().keys() == state.keys()


def test_a_block_is_no_model_to_fuse() -> None:
    model = nn.Sequential(ConvBlock(2, 4, 3), nn.Conv2d(4, 4, 3), nn.ReLU())
    report = fuse(model)
    assert report.fused == [("1", "2")]
    assert not report.left


@pytest.mark.parametrize("kind", [WithoutGradient, TwoWays, Skip, Twice])
def test_what_is_left_computes_as_before(kind: type[nn.Module]) -> None:
    model, twin, _ = pair(kind)
    assert_same(everything(model), everything(twin))
