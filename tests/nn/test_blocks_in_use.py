"""Blocks compiled, under autocast, frozen, checkpointed, copied."""

import copy
import io
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from bench.counting.saved import saved_bytes
from fastinfogan.errors import InputError
from fastinfogan.nn import Chain, ConvBlock, LinearBlock, frozen_statistics, synchronise
from tests.helpers.compare import assert_same, draw, everything, tolerance_of
from tests.helpers.plain_blocks import a_chain, plain_chain, trained_somewhat


def test_frozen_statistics_are_left_alone() -> None:
    chain = a_chain()
    before = {k: b.clone() for k, b in chain.named_buffers()}
    with frozen_statistics(chain):
        chain(draw(4, 2, 8, 8).float())
    assert_same(before, dict(chain.named_buffers()))


@pytest.mark.parametrize("training", [True, False])
def test_compiled(training: bool, dtype: torch.dtype) -> None:
    chain = trained_somewhat(a_chain(), dtype).train(training)
    twin = copy.deepcopy(chain)
    torch._dynamo.reset()
    compiled = torch.compile(chain, fullgraph=True, backend="aot_eager")
    x = draw(4, 2, 8, 8, dtype=dtype)
    for _ in range(2):
        assert_same(
            everything(chain, compiled, x), everything(twin, twin, x), **tolerance_of(dtype)
        )


def test_compiled_where_the_output_is_the_product_itself(dtype: torch.dtype) -> None:
    """Every gradient was lost there by torch 2.11."""
    block = trained_somewhat(Chain(ConvBlock(2, 6, 4, 2, batch_norm=False)), dtype)
    twin = copy.deepcopy(block)
    torch._dynamo.reset()
    compiled = torch.compile(block, fullgraph=True, backend="eager")
    x = draw(4, 2, 8, 8, dtype=dtype)
    assert_same(everything(block, compiled, x), everything(twin, twin, x), **tolerance_of(dtype))


@pytest.mark.slow
def test_compiled_by_inductor(dtype: torch.dtype) -> None:
    chain = trained_somewhat(Chain(ConvBlock(2, 4, 4, 2), LinearBlock(4 * 4 * 4, 3)), dtype)
    twin = copy.deepcopy(chain)
    torch._dynamo.reset()
    compiled = torch.compile(chain, fullgraph=True)
    x = draw(4, 2, 8, 8, dtype=dtype)
    assert_same(
        everything(chain, compiled, x),
        everything(twin, twin, x),
        **(tolerance_of(dtype) | {"atol": 1e-9}),
    )


def test_autocast() -> None:
    """At most twice the error of torch's layers under autocast, against fp32."""
    torch.manual_seed(1)  # other seeds round values near a kink of a leaky ReLU across it
    chain = a_chain()
    twin, wide = copy.deepcopy(chain), copy.deepcopy(chain)
    x = draw(8, 2, 8, 8).float()

    def low(run: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        def under_autocast(x: Tensor) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                return run(x)

        return under_autocast

    found = everything(chain, low(chain), x)
    assert found["out"].dtype == torch.bfloat16
    assert found["0.layer.weight"].dtype == torch.float32
    baseline = everything(twin, low(plain_chain(twin)), x)
    truth = everything(wide, plain_chain(wide), x)
    assert found.keys() == baseline.keys()
    for name, true in truth.items():
        if not true.is_floating_point():
            assert found[name] == baseline[name], name
            continue
        error, allowed = ((each[name] - true).norm() for each in (found, baseline))
        assert error <= 2 * allowed + 1e-2 * true.norm(), name


@pytest.mark.parametrize("trained", ["0.", "1.norm", "2.layer.weight", "5.", "input"])
def test_subsets_of_the_parameters(trained: str, dtype: torch.dtype) -> None:
    chain = trained_somewhat(a_chain(), dtype)
    twin = copy.deepcopy(chain)
    for module in (chain, twin):
        for name, p in module.named_parameters():
            p.requires_grad_(name.startswith(trained))
    x = draw(4, 2, 8, 8, dtype=dtype)
    found, truth = everything(chain, chain, x), everything(twin, plain_chain(twin), x)
    assert_same(found, truth, **tolerance_of(dtype))
    trained_ones = [name for name, _ in chain.named_parameters() if name in found]
    assert all(name.startswith(trained) for name in trained_ones)


def test_frozen_weights_save_nothing_for_backward() -> None:
    """No more than torch's layers save, except the input, which a second backward reads."""
    chain = a_chain()
    x = draw(64, 2, 8, 8, dtype=torch.float32)
    whole = saved_bytes(lambda: chain(x), chain)
    for trained in (4, 5):
        chain[:trained].requires_grad_(False)
        saved = saved_bytes(lambda: chain(x), chain)
        expected = saved_bytes(lambda: plain_chain(chain)(x), chain)
        assert saved <= 1.01 * (expected + x.untyped_storage().nbytes())
        assert saved < 0.8 * whole
    chain.requires_grad_(False)
    assert not chain(x).requires_grad


def test_gradients_accumulate() -> None:
    chain = trained_somewhat(a_chain())
    single = copy.deepcopy(chain)
    one, two = draw(4, 2, 8, 8), draw(4, 2, 8, 8, seed=3)
    outs = [chain(one), chain(two)]
    for out in outs:
        out.square().sum().backward()
    sums: dict[str, Tensor] = {}
    for x in (one, two):
        single.zero_grad()
        single(x).square().sum().backward()
        for name, p in single.named_parameters():
            sums[name] = sums.get(name, 0) + p.grad
    assert_same({k: p.grad for k, p in chain.named_parameters()}, sums)


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing(reentrant: bool, dtype: torch.dtype) -> None:
    chain = trained_somewhat(a_chain(), dtype)
    assert isinstance(chain, Chain)
    twin = copy.deepcopy(chain)

    def checkpointed(x: Tensor) -> Tensor:
        return checkpoint(chain, x, use_reentrant=reentrant)

    def expected(x: Tensor) -> Tensor:
        return checkpoint(plain_chain(twin), x, use_reentrant=reentrant)

    x = draw(4, 2, 8, 8, dtype=dtype)
    # As with torch's batch norm, running statistics are updated twice.
    found, truth = everything(chain, checkpointed, x), everything(twin, expected, x)
    assert_same(found, truth, **tolerance_of(dtype))
    assert chain[1].norm.num_batches_tracked == 2


@pytest.mark.parametrize("copied", ["deepcopy", "pickle", "torch.save"])
def test_copies_are_independent(copied: str) -> None:
    chain = trained_somewhat(a_chain())
    if copied == "deepcopy":
        other = copy.deepcopy(chain)
    elif copied == "pickle":
        other = pickle.loads(pickle.dumps(chain))
    else:
        file = io.BytesIO()
        torch.save(chain, file)
        file.seek(0)
        other = torch.load(file, weights_only=False)
    x = draw(4, 2, 8, 8)
    assert_same(everything(chain, chain, x), everything(other, other, x))
    other(x).sum().backward()
    assert other[1].norm.num_batches_tracked == 2
    assert chain[1].norm.num_batches_tracked == 1


@pytest.mark.parametrize("training", [True, False])
def test_gradient_penalty(training: bool, dtype: torch.dtype) -> None:
    chain = trained_somewhat(a_chain(), dtype).train(training)
    assert isinstance(chain, Chain)
    twin = copy.deepcopy(chain)
    results = []
    for module, run in ((chain, chain), (twin, plain_chain(twin))):
        x = draw(4, 2, 8, 8, dtype=dtype).requires_grad_()
        (slopes,) = torch.autograd.grad(run(x).sum(), x, create_graph=True)
        slopes.flatten(1).norm(dim=1).sub(1).square().sum().backward()
        results.append({k: p.grad for k, p in module.named_parameters() if p.grad is not None})
    assert_same(*results, **tolerance_of(dtype))


def test_convert_sync_batchnorm_is_an_error() -> None:
    chain = a_chain()
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(chain)
    for training in (True, False):
        with pytest.raises(InputError, match=r"fastinfogan\.nn\.synchronise"):
            converted.train(training)(torch.zeros(4, 2, 8, 8))


def test_synchronised_without_processes() -> None:
    chain = synchronise(a_chain())
    with pytest.raises(InputError, match="init_process_group"):
        chain(torch.randn(4, 2, 8, 8))
    synchronise(chain, None)(torch.randn(4, 2, 8, 8))
