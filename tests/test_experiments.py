"""The experiments: their published numbers, the variants and JSON."""

import json
from itertools import combinations

import pytest
import torch

from fastinfogan import experiments
from fastinfogan.data.synthetic import SCENES
from fastinfogan.errors import InputError
from fastinfogan.experiments import Experiment
from fastinfogan.networks import InfoGAN
from fastinfogan.reference import Reference

# Width of (z, c), and parameters of (trunk + D head, Q head, generator), each with the digits that
# it is stated to.
STATED = {
    "mnist": (74, "6.559M", "0.133M", "6.652M"),
    "svhn": (168, "0.664M", "0.531M", "2.801M"),
    "celeba": (228, "0.664M", "0.538M", "2.908M"),
    "faces": (133, "8.525M", "10k", "8.685M"),
    "chairs": (189, "19.54M", "64k", "19.78M"),
    "sprites": (10, "0.247M", "18k", "0.251M"),
}


def count(*modules: torch.nn.Module) -> int:
    return sum(p.numel() for module in modules for p in module.parameters())


def as_stated(number: int, like: str) -> str:
    """Round a count to the digits and unit of a stated one."""
    digits = len(like[:-1].partition(".")[2])
    return f"{number / {'M': 1e6, 'k': 1e3}[like[-1]]:.{digits}f}{like[-1]}"


@pytest.mark.parametrize("name", STATED)
def test_widths_and_parameter_counts_are_the_papers(name: str) -> None:
    experiment = experiments.get(name)
    n = InfoGAN(experiment)
    width, *stated = STATED[name]
    assert experiment.latents.input_width == width
    counts = (count(n.trunk, n.d_head), count(n.q_head), count(n.generator))
    assert [as_stated(c, s) for c, s in zip(counts, stated, strict=True)] == stated


@pytest.mark.parametrize("name", experiments.EXPERIMENTS)
def test_json_round_trip(name: str) -> None:
    for variants in [(), *[(v,) for v in experiments.EXPERIMENTS[name].variants]]:
        experiment = experiments.get(name, variants)
        parsed = json.loads(json.dumps(experiment.to_dict()))
        assert Experiment.from_dict(parsed) == experiment


@pytest.mark.parametrize("name", experiments.EXPERIMENTS)
def test_variants_combine_unless_they_set_the_same_facet(name: str) -> None:
    known = experiments.EXPERIMENTS[name].variants
    for one, other in combinations(known, 2):
        if known[one].facets & known[other].facets:
            with pytest.raises(InputError, match="name one"):
                experiments.get(name, [one, other])
        else:
            both = experiments.get(name, [one, other])
            assert both == experiments.get(name, [other, one])
            assert {one, other} <= set(both.variants)


@pytest.mark.parametrize("name", experiments.EXPERIMENTS)
def test_every_variant_but_the_default_changes_something(name: str) -> None:
    default = experiments.get(name)
    for variant in experiments.EXPERIMENTS[name].variants:
        changed = experiments.get(name, [variant])
        assert (changed == default) == (variant in default.variants)


def test_named_numbers() -> None:
    get = experiments.get
    assert (get("faces").learning_rate_g, get("faces").lambda_continuous) == (5e-4, 0.2)
    elevation = get("faces", ["elevation"])
    assert (elevation.learning_rate_d, elevation.learning_rate_g) == (4e-4, 3e-4)
    assert get("chairs").lambda_continuous == 10.0
    width = get("chairs", ["width"])
    assert (width.lambda_continuous, width.lambda_categorical) == (0.05, 2.0)
    assert len(get("svhn", ["two-codes"]).latents.continuous) == 2
    assert len(get("chairs", ["four-codes"]).latents.categorical) == 4
    released = get("mnist", ["released"])
    assert (released.slope, released.lambda_continuous) == (0.01, 1.0)
    assert {c.deviation for c in released.latents.continuous} == {"fixed"}
    research = get("chairs", ["research", "four-codes"])
    assert not research.trunk[-1].batch_norm
    assert {c.deviation for c in research.latents.continuous} == {"clipped"}
    assert get("mnist", ["paper"]) == get("mnist")


@pytest.mark.parametrize("name", experiments.EXPERIMENTS)
def test_product_and_reference_start_from_the_same_weights(name: str) -> None:
    experiment = experiments.get(name)
    actual = list(InfoGAN(experiment, 9).parameters())
    expected = [p for network in Reference(experiment, 9).networks for p in network.parameters()]
    for one, other in zip(actual, expected, strict=True):
        assert torch.equal(one, other)
        assert one.requires_grad == other.requires_grad


@pytest.mark.parametrize(
    ("name", "asked", "taken"),
    [
        ("faces", (), ("research",)),
        ("faces", ("elevation",), ("elevation", "research")),
        ("faces", ("paper",), ("paper",)),
        ("faces", ("research",), ("research",)),
        ("chairs", ("fixed-deviation",), ("fixed-deviation",)),
        ("mnist", (), ()),
        ("sprites", ("shape-code",), ("shape-code",)),
    ],
)
def test_faces_and_chairs_are_trained_as_their_authors_code_does(
    name: str, asked: tuple[str, ...], taken: tuple[str, ...]
) -> None:
    """Unless the paper's tables are asked for, or what contradicts that code."""
    assert set(experiments.to_train(name, asked)) == set(taken)
    experiments.get(name, taken)


def test_default_data_exists() -> None:
    assert {e.data for e in experiments.EXPERIMENTS.values()} <= {None, "digits", *SCENES}


def test_nonsense_is_refused() -> None:
    with pytest.raises(InputError, match="no experiment 'cifar'; there are mnist, svhn"):
        experiments.get("cifar")
    with pytest.raises(InputError, match="celeba has no variant 'two-codes'; it has paper, slope"):
        experiments.get("celeba", ["two-codes"])
    with pytest.raises(InputError, match="not the description of an experiment"):
        Experiment.from_dict({"name": "mnist"})
