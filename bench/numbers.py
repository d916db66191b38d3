"""Write the numbers of the documentation's pages, each from a file of bench/results/.

    python -m bench.numbers            # write them
    python -m bench.numbers --check    # or list pages that are not up to date

A part between `<!-- numbers: NAME -->` and `<!-- end of NAME -->` is what the writer of that name
makes of the results; the rest of a page is left alone.
"""

import argparse
import json
import math
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

from bench.learned import FOLDER as LEARNED
from bench.timing.rows import RESULTS, Row, heading_and_cells, read
from fastinfogan import experiments
from fastinfogan.errors import InputError

ROOT = Path(__file__).parents[1]
PAGES = (
    "README.md",
    "docs/benchmarks.md",
    "docs/experiments.md",
    "docs/scaling.md",
    "docs/training.md",
)
"""Pages with numbers, from the root of the repository."""


@cache
def _read(name: str) -> Any:  # noqa: ANN401
    file = RESULTS / name
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{file}: not to be read: {error}") from error


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Write a Markdown table; all columns but the first are aligned to the right."""
    rule = ["---", *("---:" for _ in head[1:])]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, rule, *rows))


def _machines() -> list[tuple[dict[str, Any], list[Row]]]:
    found = []
    for file in sorted(RESULTS.glob("*.json")):
        document = json.loads(file.read_text())
        if "roofline" in document:
            found.append((document, read(file)))
    return found


def _named(document: dict[str, Any]) -> str:
    """Name the machine in a few words."""
    hardware, roofline = document["hardware"], document["roofline"]
    if roofline["device"] == "cuda":
        return str(hardware["gpu"].split(", ")[0])
    kind = hardware["cpu bf16"]
    return f"{hardware['threads']} threads of a CPU" + (f" with {kind}" if kind != "none" else "")


def machines() -> str:
    lines = []
    for document, _ in _machines():
        roofline, versions = document["roofline"], document["versions"]
        rates = [f"{rate / 1e12:.3g} TFLOP/s in {k}" for k, rate in roofline["flops"].items()]
        lines.append(
            f"- {_named(document)}, torch {versions['torch']}: a large product runs at "
            f"{', '.join(rates)}, a large copy at {roofline['copy'] / 1e9:.3g} GB/s"
        )
    return "\n".join(lines)


def _by_machine(group: str, write: Callable[[list[Row]], str]) -> str:
    found, parts = _machines(), []
    for document, rows in found:
        if chosen := [row for row in rows if row.group == group]:
            parts += [f"On {_named(document)}:"] * (len(found) > 1)
            parts.append(write(sorted(chosen, key=_order)))
    return "\n\n".join(parts)


def _order(row: Row) -> tuple[int, str, str, int]:
    names = list(experiments.EXPERIMENTS)
    where = names.index(row.experiment) if row.experiment in names else len(names)
    return where, row.precision or "", row.name.split(",")[0], row.batch or 0


def _measured(rows: list[Row]) -> str:
    """Write a line a row: the median, and the ratio to each baseline's time."""
    heading, cells = heading_and_cells(rows)
    return table(["", *heading], cells)


def _baselines(rows: Iterable[Row]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row.ratios))


def iteration_short() -> str:
    """Give the ratio of iterations in bf16 at the default batch to each baseline, and no more."""

    def write(rows: list[Row]) -> str:
        found = sorted(
            (row for row in rows if row.precision == "bf16"),
            key=lambda row: row.batch == 128,  # which replaces other batches below
        )
        by_name = {str(row.experiment): row for row in found}
        chosen = [by_name[name] for name in experiments.EXPERIMENTS if name in by_name]
        names = _baselines(chosen)
        cells = [
            (
                f"{row.experiment}, batch {row.batch}",
                *(f"{row.ratios[n].median:.2f}" if n in row.ratios else "" for n in names),
            )
            for row in chosen
        ]
        return table(("bf16", *(f"of {name}" for name in names)), cells)

    return _by_machine("iteration", write)


def variants() -> str:
    """List every experiment's variants, each with its source."""
    parts = []
    for name, entry in experiments.EXPERIMENTS.items():
        rows = [(f"`{variant}`", what.about) for variant, what in entry.variants.items()]
        notes = (
            [f"Default: {', '.join(f'`{d}`' for d in entry.defaults)}."] if entry.defaults else []
        )
        if entry.training_defaults:
            added = ", ".join(f"`{each}`" for each in entry.training_defaults)
            notes.append(f"`train` adds {added} unless `paper` is named.")
        if entry.about:
            notes.append(f"Not from a published source: {entry.about}.")
        parts.append(
            "\n\n".join([f"### {name}", *notes, table(("variant", "what it changes"), rows)])
        )
    return "\n\n".join(parts).replace("---:", "---")


def _ranges(rows: list[Row]) -> str:
    """Write of each kind of operation the range over the experiments' shapes."""
    kinds: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        kinds.setdefault((row.name.split(",")[0], row.precision or ""), []).append(row)
    names, found = _baselines(rows), []
    for (kind, precision), each in sorted(kinds.items()):
        ranges = []
        for name in names:
            ratios = sorted(row.ratios[name].median for row in each if name in row.ratios)
            several = len(ratios) > 1
            ends = ratios[:1] + ratios[-1:] * several
            ranges.append(" to ".join(f"{ratio:.2f}" for ratio in ends))
        found.append((f"{kind}{', ' if precision else ''}{precision}", str(len(each)), *ranges))
    return table(("", "shapes", *(f"of {name}" for name in names)), found)


def counts() -> str:
    found = _read("scaling.json")["iterations"]
    cells: dict[str, Callable[[dict[str, Any]], object]] = {
        "launches": lambda c: c["launches"],
        "of them the trunk's in the D step, forward and backward": lambda c: c["trunk_launches"],
        "bytes moved, of the minimum": lambda c: f"{c['bytes'] / c['bytes_minimum']:.2f}",
        "FLOPs": lambda c: f"{c['flops'] / 1e9:.3g} G",
        "host waits": lambda c: c["host_syncs"],
        "allocations": lambda c: c["allocations"],
    }
    rows = [(name, *(str(cell(each)) for each in found.values())) for name, cell in cells.items()]
    return table(("", *found), rows)


def exponents() -> str:
    """Write how launches, bytes, FLOPs and seconds grow."""
    found, rows = _read("scaling.json"), []
    for kind, note in (("counted", ""), ("timed", ", timed")):
        for axis, each in found[kind].items():
            sizes = each["sizes"]
            along = f"{axis}, {sizes[0]:g} to {sizes[-1]:g}"
            for cost, e in each["exponents"].items():
                margin = "" if math.isnan(e["margin"]) else f" ± {e['margin']:.2f}"
                overall = f"{e['overall']:.2f}{margin}"
                rows.append((f"{cost}{note}", along, overall, f"{e['last']:.2f}"))
    return table(("cost", "along", "exponent", "at the large end"), rows)


def model() -> str:
    """Write predicted iterations on one GPU, one node and a hundred."""
    rows = [
        (
            m["experiment"],
            f"{m['gpus']} x {m['rows']}",
            m["batch_norm"],
            m["bound"],
            *(f"{1e6 * m[k]:,.0f}" for k in ("computing", "launching", "communicating", "seconds")),
            f"{m['efficiency']:.2f}",
            f"{m['images_per_second'] / 1e6:.2f} M",
        )
        for m in _read("scaling.json")["model"]
    ]
    head = (
        "experiment", "GPUs x rows", "batch norm", "bound by", "computing, us", "launching",
        "communicating", "iteration", "efficiency", "images/s",
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
    """Write what 5,000 iterations learn, by seed."""
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
    """Write what a minute's training learns."""
    found = _read(f"{LEARNED.name}/demo.json")["evaluation"]
    carried, most = found["information"]["c1"], found["entropy"]["c1"]
    return (
        f"`make demo` trains for {found['iteration']} iterations, about a minute on two CPU cores "
        f"with AMX; `c1` then\ncarries {carried:.2f} of at most {most:.2f} nats. The picture above "
        "took 5,000."
    )


def figure1() -> str:
    """Write the two bounds of the paper's Figure 1."""
    infogan, gan = (_read(f"{LEARNED.name}/figure1-{which}.json") for which in ("infogan", "gan"))
    at = {step: bounds["mi_bound"] for step, bounds in infogan["bounds"].items()}
    return (
        f"With InfoGAN the bound climbs to H(c), {at['25']:.2f} nats at 25 iterations and "
        f"{at['100']:.2f} at\n100; with a plain GAN, whose generator does not learn from Q, it "
        f"peaks at\n{gan['highest']:.2f} and decays to "
        f"{gan['bounds']['1000']['mi_bound']:.2f}."
    )


def faces() -> str:
    """Write which factors the codes of the heads follow."""
    factors = _read(f"{LEARNED.name}/faces-seed-1.json")["evaluation"]["factors"]
    found = factors["factors"]
    rows = [
        (name, each["code"], f"{each['score']:.2f}", f"{each['information']:.2f}")
        for name, each in found.items()
    ]
    head = ("factor", "most informative code", "rank correlation", "information, nats")
    return (
        f"{table(head, rows)}\n\nMIG {factors['mig']:.3f}, {factors['images']:,} held-out images."
    )


WRITERS: dict[str, Callable[[], str]] = {
    "machines": machines,
    "iteration": partial(_by_machine, "iteration", _measured),
    "iteration-short": iteration_short,
    "blocks": partial(_by_machine, "blocks", _measured),
    "ops": partial(_by_machine, "ops", _ranges),
    "data": partial(_by_machine, "data", _measured),
    "startup": partial(_by_machine, "startup", _measured),
    "variants": variants,
    "counts": counts,
    "exponents": exponents,
    "model": model,
    "parity": parity,
    "demo": demo,
    "learned": learned,
    "figure1": figure1,
    "faces": faces,
}


def filled(text: str, writers: Mapping[str, Callable[[], str]]) -> str:
    """Fill in a page's numbers.

    Args:
        text: of the page.
        writers: by name.

    Raises:
        InputError: the page asks for unknown numbers, or does not end a part.
    """
    begun = re.findall(r"<!-- numbers: (.+?) -->", text)
    ended = re.findall(r"<!-- end of (.+?) -->", text)
    if begun != ended:
        raise InputError(f"parts {begun} are begun, {ended} are ended")
    for name in begun:
        if name not in writers:
            raise InputError(f"no numbers {name!r}; there are {', '.join(sorted(writers))}")
        first, last = f"<!-- numbers: {name} -->\n", f"<!-- end of {name} -->"
        before, _, rest = text.partition(first)
        _, _, after = rest.partition(last)
        text = f"{before}{first}\n{writers[name]().strip()}\n\n{last}{after}"
    return text


def main(arguments: list[str] | None = None) -> int:
    """Run the command; the exit code, 1 if --check finds old numbers."""
    parser = argparse.ArgumentParser(prog="python -m bench.numbers", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing")
    options = parser.parse_args(arguments)
    old = 0
    for page in PAGES:
        text = (ROOT / page).read_text()
        try:
            new = filled(text, WRITERS)
        except InputError as error:
            print(f"{page}: {error}", file=sys.stderr)
            return 2
        if new == text:
            continue
        old += 1
        if options.check:
            print(f"{page}: not the numbers of bench/results/; run python -m bench.numbers")
        else:
            (ROOT / page).write_text(new)
            print(page)
    return 1 if options.check and old else 0


if __name__ == "__main__":
    sys.exit(main())
