"""Changes to a model after fuse take effect as they would without it."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import parametrizations, parametrize, prune

from fastinfogan.errors import InputError
from fastinfogan.nn import fuse, synchronise, unfuse
from tests.helpers.compare import assert_same
from tests.helpers.fusing import everything, images, made, pair, sequential


def seeded(act: Callable[[nn.Module], object]) -> Callable[[nn.Module], object]:
    def run(model: nn.Module) -> None:
        torch.manual_seed(9)
        act(model)

    return run


def layer(model: nn.Module, name: str) -> nn.Module:
    return model.get_submodule(name)


def set_attributes(model: nn.Module) -> None:
    layer(model, "3").momentum = 0.7
    layer(model, "3").eps = 0.5
    layer(model, "7").track_running_stats = False
    layer(model, "14").negative_slope = 0.6


def freeze_norms(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()


def initialise_by_name(model: nn.Module) -> None:
    """As the DCGAN tutorial does."""
    for module in model.modules():
        name = type(module).__name__
        if name.find("Conv") != -1:
            nn.init.normal_(module.weight, 0.0, 0.02)
        elif name.find("BatchNorm") != -1:
            nn.init.normal_(module.weight, 1.0, 0.02)


def reset(model: nn.Module) -> None:
    for module in model.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()


def new_activation(model: nn.Module) -> None:
    model[1] = nn.Tanh()


def one_more(model: nn.Module) -> None:
    model.insert(2, nn.Tanh())


def one_less(model: nn.Module) -> None:
    del model[4]


def dilate(model: nn.Module) -> None:
    layer(model, "2").dilation = (2, 2)


def scale_output(model: nn.Module) -> None:
    layer(model, "2").register_forward_hook(lambda _, __, out: out * 2)


def scale_gradient(model: nn.Module) -> None:
    layer(model, "2").register_full_backward_hook(lambda _, into, __: (into[0] * 2,))


def replace_forward(model: nn.Module) -> None:
    layer(model, "4").forward = torch.tanh


CHANGES: dict[str, Callable[[nn.Module], object]] = {
    "attributes": set_attributes,
    "norms frozen by their class": freeze_norms,
    "initialised by name": initialise_by_name,
    "parameters reset": reset,
    "forward hook": scale_output,
    "backward hook": scale_gradient,
    "another activation": new_activation,
    "one more layer": one_more,
    "one layer less": one_less,
    "dilation": dilate,
    "forward replaced": replace_forward,
    "spectral norm": lambda m: parametrizations.spectral_norm(layer(m, "2")),
    "old spectral norm": lambda m: nn.utils.spectral_norm(layer(m, "2")),
    "weight norm": lambda m: parametrizations.weight_norm(layer(m, "2")),
    "pruning": lambda m: prune.l1_unstructured(layer(m, "2"), "weight", 0.5),
    "new parameter": lambda m: setattr(
        layer(m, "3"), "weight", nn.Parameter(torch.linspace(-1, 1, 6).double())
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_changes_take_effect(name: str) -> None:
    fused, twin, _ = pair(sequential)
    everything(fused)
    everything(twin)
    for model in (fused, twin):
        seeded(CHANGES[name])(model)
    assert_same(everything(fused), everything(twin))
    fused.eval()
    twin.eval()
    assert_same(everything(fused), everything(twin))


def test_a_hook_gets_its_layers_output() -> None:
    fused, twin, _ = pair(sequential)
    seen: list[Tensor] = []
    for model in (fused, twin):
        handle = layer(model, "2").register_forward_hook(lambda _, __, out: seen.append(out))
        model(images())
        handle.remove()
    torch.testing.assert_close(*seen)
    assert_same(everything(fused), everything(twin))
    assert not layer(fused, "0").fused_chain.broken


def test_a_hook_that_removes_itself() -> None:
    fused, twin, _ = pair(sequential)
    for model in (fused, twin):

        def once(module: nn.Module, _: object, __: object) -> None:
            module._forward_hooks.clear()

        layer(model, "0").register_forward_hook(once)
    for _ in range(2):
        assert_same(everything(fused), everything(twin))


def test_parametrizations() -> None:
    fused, twin, _ = pair(sequential)
    for model in (fused, twin):
        parametrizations.weight_norm(layer(model, "2"))
    assert_same(everything(fused), everything(twin))
    unfuse(fused)
    assert_same(everything(fused), everything(twin))
    for model in (fused, twin):
        parametrize.remove_parametrizations(layer(model, "2"), "weight")
    assert_same(everything(fused), everything(twin))


def test_layers_are_of_their_types() -> None:
    fused, twin, _ = pair(sequential)
    for actual, expected in zip(fused.children(), twin.children(), strict=True):
        assert isinstance(actual, type(expected))
        assert vars(expected).keys() <= vars(actual).keys()
    assert fused.get_submodule("0").stride == (2, 2)


def test_convert_sync_batchnorm_runs_layer_by_layer() -> None:
    fused, twin, _ = pair(sequential)
    converted, expected = map(nn.SyncBatchNorm.convert_sync_batchnorm, (fused, twin))
    assert isinstance(converted.get_submodule("3"), nn.SyncBatchNorm)
    assert_same(everything(converted), everything(expected))
    converted.eval()
    expected.eval()
    assert_same(everything(converted), everything(expected))


def test_a_requested_backend_or_process_group_is_not_dropped() -> None:
    fused, _, _ = pair(sequential)
    with pytest.raises(InputError, match="init_process_group"):
        synchronise(fused)(images())
    nn.SyncBatchNorm.convert_sync_batchnorm(fused)
    with pytest.raises(InputError, match=r"\+ 3 \+ 4 cannot .*3: it was replaced"):
        fused(images())
    with pytest.raises(InputError, match="shared statistics need a batch of 4 dimensions"):
        synchronise(pair(sequential)[0])[:5](images()[0])
    for impl in ("triton", "native"):
        model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU())
        fuse(model, impl=impl)
        model[1].register_forward_hook(lambda *_: None)
        with pytest.raises(InputError, match="1: it has hooks; unfuse"):
            model(torch.zeros(1, 2, 5, 5))


def test_functional_call() -> None:
    fused, twin, _ = pair(sequential)
    parameters = {k: v * 1.5 for k, v in twin.named_parameters()}
    actual, expected = (functional_call(m, parameters, images()) for m in (fused, twin))
    torch.testing.assert_close(actual, expected)


def test_a_replica_runs_its_layer_alone() -> None:
    """DataParallel copies a module and gives the copy other tensors."""
    fused, twin, _ = pair(lambda: nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU()))
    replica = fused[0]._replicate_for_data_parallel()
    replica.weight = fused[0].weight.detach() * 2
    replica.bias = fused[0].bias.detach() * 2
    torch.testing.assert_close(replica(images()), twin[0](images()) * 2)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_output_strides(memory_format: torch.memory_format) -> None:
    """Code after the model may call .view() on its output, as without fuse."""
    fused, twin, _ = pair(lambda: nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU()))
    for x in (images(), images()[:, :, :, ::2]):
        x = x.contiguous(memory_format=memory_format)
        for dtype in (torch.float64, torch.float32):
            actual, expected = (m.to(dtype)(x.to(dtype)) for m in (fused, twin))
            assert actual.stride() == expected.stride()


@pytest.mark.slow
def test_compiled_after_a_hook() -> None:
    fused, twin = made(sequential), made(sequential)
    fuse(fused)
    for model in (fused, twin):
        scale_output(model)
    torch._dynamo.reset()
    compiled = torch.compile(fused, fullgraph=True, backend="aot_eager")
    assert_same(everything(fused, compiled), everything(copy.deepcopy(twin)))
