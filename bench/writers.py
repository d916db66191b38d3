"""What README.md and bench/scaling.md say in numbers, each from a file of bench/results/."""

import json
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Any

from bench.learned import FOLDER as LEARNED
from bench.measuring.rows import RESULTS
from fastinfogan.errors import InputError

PAGES = ("README.md", "bench/scaling.md")


@cache
def _read(name: str) -> Any:  # noqa: ANN401
    file = RESULTS / name
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{file}: not to be read: {error}") from error


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; all columns but the first stand right."""
    rule = ["---", *("---:" for _ in head[1:])]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, rule, *rows))


def counts() -> str:
    """What one iteration asks of a GPU."""
    found = _read("scaling.json")["iterations"]
    rows = [
        ("launches", *(f"{each['launches']}" for each in found.values())),
        (
            "bytes moved, of the minimum",
            *(f"{each['bytes'] / each['bytes_minimum']:.2f}" for each in found.values()),
        ),
        ("FLOPs", *(f"{each['flops'] / 1e9:.3g} G" for each in found.values())),
        ("host waits", *(f"{each['host_syncs']}" for each in found.values())),
        ("allocations", *(f"{each['allocations']}" for each in found.values())),
    ]
    return table(("", *found), rows)


def exponents() -> str:
    """How launches, bytes, FLOPs and seconds grow."""
    found = _read("scaling.json")
    rows = []
    for kind in ("counted", "timed"):
        for axis, each in found[kind].items():
            sizes = each["sizes"]
            for cost, e in each["exponents"].items():
                margin = "" if e["margin"] != e["margin"] else f" ± {e['margin']:.2f}"
                rows.append(
                    (
                        f"{cost}{', timed' if kind == 'timed' else ''}",
                        f"{axis}, {sizes[0]:g} to {sizes[-1]:g}",
                        f"{e['overall']:.2f}{margin}",
                        f"{e['last']:.2f}",
                    )
                )
    head = ("cost", "along", "exponent", "at the large end")
    return table(head, rows)


def model() -> str:
    """Iterations on one GPU, one node and a hundred."""
    rows = [
        (
            m["experiment"],
            f"{m['gpus']} x {m['rows']}",
            m["batch_norm"],
            m["bound"],
            *(f"{1e6 * m[k]:,.0f}" for k in ("computing", "launching", "telling", "seconds")),
            f"{m['efficiency']:.2f}",
            f"{m['images_per_second'] / 1e6:.2f} M",
        )
        for m in _read("scaling.json")["model"]
    ]
    head = (
        "experiment", "GPUs x rows", "batch norm", "bound by", "computing, us", "launching",
        "telling", "iteration", "efficiency", "images/s",
    )  # fmt: skip
    return table(head, rows)


def learned() -> str:
    """What 5,000 iterations teach, by seed."""
    seeds = [_read(f"{LEARNED.name}/mnist-seed-{seed}.json") for seed in (1, 2)]
    head = ("", *(f"seed {each['seed']}" for each in seeds))
    errors = [each["evaluation"]["classification"]["c1"]["matching_error"] for each in seeds]
    return table(
        head,
        [
            (
                "L_I of c1 after 300 iterations, of 2.303 nats",
                *(f"{each['bounds']['300']['mi_c1']:.2f}" for each in seeds),
            ),
            (
                "c1 as a classifier after 5,000 iterations, error on images that the matching has "
                "not seen",
                *(f"{100 * error:.1f} %" for error in errors),
            ),
        ],
    )


def figure1() -> str:
    """The two bounds of the paper's Figure 1."""
    infogan, gan = (_read(f"{LEARNED.name}/figure1-{who}.json") for who in ("infogan", "gan"))
    at = {step: bounds["mi_bound"] for step, bounds in infogan["bounds"].items()}
    return (
        f"With InfoGAN the bound climbs to H(c), {at['25']:.2f} nats at 25 iterations and "
        f"{at['100']:.2f} at\n100; with a plain GAN, whose generator is not told what Q can "
        f"read, it peaks at\n{gan['highest']:.2f} and decays to "
        f"{gan['bounds']['1000']['mi_bound']:.2f}."
    )


def faces() -> str:
    """What the heads' codes follow."""
    factors = _read(f"{LEARNED.name}/faces-seed-1.json")["evaluation"]["factors"]
    found = factors["factors"]
    rows = [
        (name, each["code"], f"{each['score']:.2f}", f"{each['information']:.2f}")
        for name, each in found.items()
    ]
    head = ("factor", "code that tells most of it", "rank correlation", "information, nats")
    return (
        f"{table(head, rows)}\n\nMIG {factors['mig']:.3f}, {factors['images']:,} held-out images."
    )


WRITERS: dict[str, Callable[[], str]] = {
    "counts": counts,
    "exponents": exponents,
    "model": model,
    "learned": learned,
    "figure1": figure1,
    "faces": faces,
}
