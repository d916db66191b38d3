"""Pages say what bench/results/ holds; exponents and the model of a cluster, by hand."""

import subprocess

import pytest

from bench.counting.iteration import Collective, count
from bench.numbers import ROOT, filled, main
from bench.scaling.costs import coded, exponent, widened
from bench.scaling.model import Speeds, communicating, predict
from fastinfogan import experiments
from fastinfogan.errors import InputError

MNIST = experiments.get("mnist")
PAGE = "Before.\n<!-- numbers: a -->\nold\n<!-- end of a -->\nBehind.\n"


def test_the_pages_hold_the_numbers_of_the_results(capsys: pytest.CaptureFixture[str]) -> None:
    git = ["git", "-C", str(ROOT), "status", "--porcelain", "bench/results"]
    if subprocess.run(git, capture_output=True, check=False).stdout:
        pytest.skip("bench/results holds rows that are not committed; see python -m bench.numbers")
    assert main(["--check"]) == 0, capsys.readouterr().out


def test_a_part_is_written_and_the_rest_left_alone() -> None:
    once = filled(PAGE, {"a": lambda: "new"})
    assert once == "Before.\n<!-- numbers: a -->\n\nnew\n\n<!-- end of a -->\nBehind.\n"
    assert filled(once, {"a": lambda: "new"}) == once


@pytest.mark.parametrize(
    ("page", "message"),
    [
        (PAGE.replace(": a", ": b").replace("of a", "of b"), "no numbers 'b'; there are a"),
        (PAGE.replace("end of a", "end of c"), r"parts \['a'\] are begun, \['c'\] are ended"),
        (PAGE.replace("<!-- end of a -->", ""), r"parts \['a'\] are begun, \[\] are ended"),
    ],
)
def test_a_page_that_cannot_be_written(page: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        filled(page, {"a": lambda: "new"})


def test_exponents() -> None:
    sizes = [1, 2, 4, 8, 16]
    found = exponent(sizes, [3 * size**1.5 for size in sizes])
    assert (found.overall, found.margin, found.last) == pytest.approx((1.5, 0, 1.5), abs=1e-9)
    # Half of the cost at size 1 does not grow: no power law, and the interval shows it.
    found = exponent(sizes, [1 + size for size in sizes])
    assert found.last == pytest.approx(0.917, abs=1e-3)
    assert found.overall < found.last
    assert found.margin > 0.1


def test_axes_change_what_they_say() -> None:
    base = count(MNIST)
    assert count(widened(MNIST, 1.0)) == base
    assert count(widened(MNIST, 2.0)).flops == pytest.approx(4 * base.flops, rel=0.02)
    many = count(coded(MNIST, 8))
    assert many.launches == base.launches
    assert base.flops < many.flops < 1.01 * base.flops


SPEEDS = Speeds(
    flops=1e12, copy=1e12, gap=0.0, nvlink=1e9, network=1e8, start=1.0, near=0.1, far=0.2
)


def test_collectives_by_hand() -> None:
    total, gathered = Collective("all_reduce", 8 * 10**9), Collective("all_gather", 10**8)
    assert communicating([total, gathered], 1, SPEEDS) == 0.0
    # 14 hops and 7/8 of the bytes, both ways.
    assert communicating([total], 8, SPEEDS) == pytest.approx(1 + 1.4 + 14)
    assert communicating([gathered], 8, SPEEDS) == pytest.approx(1 + 0.7 + 0.7)
    # Four nodes: two hops and 3/4 of an eighth of the bytes, both ways.
    assert communicating([total], 32, SPEEDS) == pytest.approx(1 + 1.4 + 14 + 0.8 + 15)
    assert communicating([gathered], 32, SPEEDS) == pytest.approx(1 + 0.7 + 3.1 + 0.4 + 3)


def test_a_prediction_is_its_parts() -> None:
    counts = count(MNIST)
    alone = predict("mnist", 1, 128)
    v = Speeds()
    assert alone.bound == "bytes"
    assert alone.computing == pytest.approx(counts.bytes / v.copy)
    assert alone.launching == pytest.approx(counts.launches * v.gap)
    assert (alone.communicating, alone.efficiency) == (0.0, 1.0)
    node = predict("mnist", 8, 128)
    apart = predict("mnist", 8, 128, "per-rank")
    assert node.to_dict()["images_per_second"] == pytest.approx(8 * 128 / node.seconds)
    assert node.efficiency == pytest.approx(alone.seconds / node.seconds)
    assert 0.0 < node.efficiency < apart.efficiency < 1.0
