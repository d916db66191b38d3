"""The run that is published: 5,000 iterations of MNIST, its wall time and what it has learned."""

import statistics
import time
from collections.abc import Mapping
from typing import Any

from bench.gpu_report.context import Context
from bench.gpu_report.stages import PICTURE
from bench.gpu_report.workload import config, experiment
from fastinfogan.data.open import embedded_digits
from fastinfogan.engine import RunDirectory, Schedule, Trainer, choose_precision
from fastinfogan.errors import InputError
from fastinfogan.evaluation import classify
from fastinfogan.evaluation.summary import fresh_information
from fastinfogan.model import Model

_CURVE = ("iteration", "d_loss", "g_loss", "mi_c1", "mi_c2", "mi_c3", "images_per_second")


def mnist(context: Context) -> None:
    """Run the stage: three seeds, as one run's quality is partly luck."""
    for seed in (1,) if context.dry else (1, 2, 3):
        context.run(f"seed {seed}", _train, context, seed, limit=120.0)


def _train(context: Context, seed: int) -> Mapping[str, Any]:
    digits, e = embedded_digits(), experiment("mnist", dry=context.dry)
    iterations = 20 if context.dry else e.iterations
    precision, _ = choose_precision("auto", context.device)
    how = config(
        e, precision.name, seed=seed, data_fingerprint=digits.fingerprint,
        log_every=max(iterations // 50, 1),
    )  # fmt: skip
    run = RunDirectory.create(context.work / f"mnist-{seed}", e, how)
    curve: list[dict[str, float]] = []
    begun = time.monotonic()
    trainer = Trainer(run, digits, context.device)
    trainer.train(iterations, Schedule(checkpoint_every=iterations, on_metrics=curve.append))
    context.synchronize()
    seconds = time.monotonic() - begun
    rate = statistics.median(line["images_per_second"] for line in curve[1:])
    numbers: dict[str, Any] = {
        "iterations": iterations,
        "precision": precision.name,
        "seconds": round(seconds, 3),
        "seconds to first": round(trainer.seconds_to_first or 0.0, 3),
        "images/s": round(rate),
        "us an iteration": round(1e6 * e.batch_size / rate, 1),
        "L_I of c1": round(curve[-1]["mi_c1"], 4),
        "skipped": sum(line["skipped"] for line in curve),
    }
    with Model.borrowed(e, trainer.networks, iterations) as model:
        numbers["L_I, fresh"] = fresh_information(model, seed=0)
        try:
            score = classify(model, digits)["c1"]
            numbers["error of c1"] = round(score.matching_error, 4)
            numbers["error of c1, by majority"] = round(score.majority_error, 4)
            if seed == 1:
                from fastinfogan.figures.pictures import draw_traversal

                draw_traversal(model, "c1", context.out / PICTURE)
        except (
            ImportError,
            InputError,
        ) as error:  # optional packages, which the environment stage names
            numbers["left out"] = str(error)
    if seed == 1:
        context.fact(curve=[{name: line.get(name) for name in _CURVE} for line in curve])
    return numbers
