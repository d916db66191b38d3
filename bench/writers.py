"""What README.md and bench/scaling.md say in numbers, each from a file of bench/results/."""

import json
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Any

from bench.learned import FOLDER as LEARNED
from bench.timing.interleaved import Spread
from bench.timing.rows import RESULTS, Row, read
from bench.timing.table import duration
from fastinfogan import experiments
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


def _machines() -> list[tuple[dict[str, Any], list[Row]]]:
    """What a file of rows says of its machine, and its rows; for each."""
    found = []
    for file in sorted(RESULTS.glob("*.json")):
        told = json.loads(file.read_text())
        if "roofline" in told:
            found.append((told, read(file)))
    return found


def _named(told: dict[str, Any]) -> str:
    """The machine in a few words."""
    hardware, roofline = told["hardware"], told["roofline"]
    if roofline["device"] == "cuda":
        return str(hardware["gpu"].split(", ")[0])
    kind = hardware["cpu bf16"]
    return f"{hardware['threads']} threads of a CPU" + (f" with {kind}" if kind != "none" else "")


def machines() -> str:
    """What was measured on, and what it can do."""
    lines = []
    for told, _ in _machines():
        roofline, versions = told["roofline"], told["versions"]
        rates = [f"{rate / 1e12:.3g} TFLOP/s in {k}" for k, rate in roofline["flops"].items()]
        lines.append(
            f"- {_named(told)}, torch {versions['torch']}: a large product runs at "
            f"{', '.join(rates)}, a large copy at {roofline['copy'] / 1e9:.3g} GB/s"
        )
    return "\n".join(lines)


def _by_machine(group: str, write: Callable[[list[Row]], str]) -> str:
    found, parts = _machines(), []
    for told, rows in found:
        if chosen := [row for row in rows if row.group == group]:
            parts += [f"On {_named(told)}:"] * (len(found) > 1)
            parts.append(write(sorted(chosen, key=_order)))
    return "\n\n".join(parts)


def _order(row: Row) -> tuple[int, str, str, int]:
    names = list(experiments.EXPERIMENTS)
    where = names.index(row.experiment) if row.experiment in names else len(names)
    return where, row.precision or "", row.name.split(",")[0], row.batch or 0


def _measured(rows: list[Row]) -> str:
    """A line a row: our median, and our time of each peer's."""
    peers = list(dict.fromkeys(peer for row in rows for peer in row.ratios))
    shares = any(row.share is not None for row in rows)
    head = ("", "fastinfogan", *(f"of {peer}" for peer in peers), *["of the roofline"] * shares)
    return table(
        head,
        [
            (
                row.name,
                duration(row.seconds["fastinfogan"].median),
                *(_spread(row.ratios[peer]) if peer in row.ratios else "" for peer in peers),
                *[f"{row.share:.2f}" if row.share is not None else ""] * shares,
            )
            for row in rows
        ],
    )


def _spread(spread: Spread) -> str:
    return f"{spread.median:.3f} ({spread.low:.3f} to {spread.high:.3f})"


def iteration() -> str:
    """Whole iterations against loops in PyTorch."""
    return _by_machine("iteration", _measured)


def blocks() -> str:
    """Trunks and generators, forward and backward."""
    return _by_machine("blocks", _measured)


def data() -> str:
    """Decoding and the cache."""
    return _by_machine("data", _measured)


def startup() -> str:
    """Importing and the first iteration."""
    return _by_machine("startup", _measured)


def ops() -> str:
    """Single operations: of each kind, the range over the experiments' shapes."""
    return _by_machine("ops", _ranges)


def _ranges(rows: list[Row]) -> str:
    kinds: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        kinds.setdefault((row.name.split(",")[0], row.precision or ""), []).append(row)
    peers = list(dict.fromkeys(peer for row in rows for peer in row.ratios))
    found = []
    for (kind, precision), each in sorted(kinds.items()):
        ranges = []
        for peer in peers:
            ratios = sorted(row.ratios[peer].median for row in each if peer in row.ratios)
            several = len(ratios) > 1
            ends = ratios[:1] + ratios[-1:] * several
            ranges.append(" to ".join(f"{ratio:.2f}" for ratio in ends))
        found.append((f"{kind}{', ' if precision else ''}{precision}", str(len(each)), *ranges))
    return table(("", "shapes", *(f"of {peer}" for peer in peers)), found)


def counts() -> str:
    """What one iteration asks of a GPU."""
    found = _read("scaling.json")["iterations"]
    rows = [
        ("launches", *(f"{each['launches']}" for each in found.values())),
        (
            "of them the trunk's in the D step, there and back",
            *(f"{each['trunk_launches']}" for each in found.values()),
        ),
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


def parity() -> str:
    """Write the engine's trajectories and the reference's, and the verdict."""
    found = _read("parity/parity.json")
    settings, rows = found["settings"], []
    for d in found["whole"]:
        difference = f"{d['difference']:+.3f} ({d['low']:+.3f} to {d['high']:+.3f})"
        early = next(
            e["ratio"]
            for e in found["early"]
            if e["quantity"] == d["quantity"] and e["precision"] == settings["precision"]
        )
        numbers = (f"{d[config]:.3f}" for config in ("reference", "engine"))
        rows.append((d["quantity"], *numbers, difference, f"{d['detectable']:.3f}", f"{early:.2f}"))
    head = (
        "nats, mean of the run", "reference", "engine", "difference (95 %)", "detectable from",
        "early, of rounding",
    )  # fmt: skip
    summary = (
        f"{settings['experiment']} in {settings['precision']}, {len(settings['seeds'])} seeds of "
        f"{settings['iterations']:,} iterations; verdict: {found['verdict']}."
    )
    return f"{table(head, rows)}\n\n{summary}"


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


def demo() -> str:
    """What a minute's training tells."""
    found = _read(f"{LEARNED.name}/demo.json")["evaluation"]
    told, most = found["information"]["c1"], found["entropy"]["c1"]
    return (
        f"After {found['iteration']} iterations, a minute on two CPU cores with AMX, c1 carries "
        f"{told:.2f} of at most {most:.2f}\nnats, and some of its columns are digits already; "
        "after 5,000 most are (see Measured)."
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
    "machines": machines,
    "iteration": iteration,
    "blocks": blocks,
    "ops": ops,
    "data": data,
    "startup": startup,
    "exponents": exponents,
    "model": model,
    "parity": parity,
    "demo": demo,
    "learned": learned,
    "figure1": figure1,
    "faces": faces,
}
