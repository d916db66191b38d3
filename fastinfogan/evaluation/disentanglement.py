"""Disentanglement: the most informative code of each known factor, and the mutual information gap.

Mutual information is in nats, after continuous codes and factors are discretized (a categorical
code is its most likely class, a continuous one Q's mean). The dependence of the factor and its most
informative code is scored by the measure for their kinds:

- "spearman": |rank correlation|, of a continuous code and a continuous factor;
- "circular": the correlation of a code with an angle, sqrt of the R^2 of a regression on its sine
  and cosine (Mardia 1976, "Linear-circular correlation coefficients and rhythmometry"). A code that
  is linear in the angle has sqrt(6) / pi = 0.78, because of its jump after one turn;
- "nmi": mutual information over the mean of the two entropies, where either has classes.

MIG (Chen et al. 2018, "Isolating sources of disentanglement in variational autoencoders") is the
mean over the factors of the difference in mutual information between the best and the second best
code, divided by the factor's entropy; with 20 bins and at most 10,000 images, as in Locatello et
al. 2019.
"""

from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from fastinfogan.data import ImageSet
from fastinfogan.data.image_set import Factors
from fastinfogan.data.subset import subset_indices
from fastinfogan.errors import require
from fastinfogan.model import Model

BINS: Final = 20
MAX_IMAGES: Final = 10_000

Measure = Literal["spearman", "circular", "nmi"]
Values = NDArray[np.float64]


@dataclass(frozen=True)
class FactorScore:
    """How well a factor is represented by one code.

    Attributes:
        code: the most informative code.
        information: its mutual information with the factor, in nats.
        entropy: of the factor, in nats; the largest possible information.
        measure: of `score`, see the docstring of this module.
        score: dependence of code and factor, 0 to 1.
        gap: difference of information to the second best code, divided by the entropy; None where
            there is no other code.
    """

    code: str
    information: float
    entropy: float
    measure: Measure
    score: float
    gap: float | None


@dataclass(frozen=True)
class Disentanglement:
    """The scores of all factors of a set.

    Attributes:
        factors: by name; a factor that does not vary in these images is left out.
        mig: the mutual information gap; None where there is only one code, or no factor.
        images: number of images measured.
        held_out: whether they are not from the training set.
    """

    factors: dict[str, FactorScore]
    mig: float | None
    images: int
    held_out: bool


def measure_disentanglement(model: Model, source: ImageSet) -> Disentanglement | None:
    """Score a model's codes on images with known factors, from the set's test part if it has one.

    Returns:
        None where no factors are known, or for fewer than 2 images.
    """
    test = source.test
    held_out = test is not None and test.factors is not None and len(test) > 1
    part = test if held_out else source
    if part is None or part.factors is None or len(part) < 2:
        return None
    chosen = subset_indices(len(part), MAX_IMAGES)
    output = model.read(torch.from_numpy(part.images[chosen])).double().cpu().numpy()
    spec = model.experiment.latents
    classes = [output[:, columns].argmax(axis=1) for columns in spec.logit_slices]
    means = output[:, spec.mean_slice].T
    codes = dict(zip(spec.names, [*classes, *means], strict=True))
    known = part.factors
    factors = Factors(known.names, known.values[chosen], known.classes, known.periods)
    return score_factors(codes, len(classes), factors, held_out=held_out)


def score_factors(
    codes: dict[str, NDArray[np.generic]], categorical: int, factors: Factors, *, held_out: bool
) -> Disentanglement:
    """Score codes against the factors of their images.

    Args:
        codes: by name, (N,) each.
        categorical: number of categorical codes, which come first and are class indices.
        factors: of the N images.
        held_out: whether the images are not from the training set.

    Raises:
        MissingPackageError: scikit-learn is not installed.
    """
    metrics = require("sklearn.metrics", extra="eval", purpose="scoring codes against factors")
    mutual_info_score = metrics.mutual_info_score
    discrete_codes = {
        name: np.asarray(code) if i < categorical else discretize(np.asarray(code, np.float64))
        for i, (name, code) in enumerate(codes.items())
    }
    names = list(codes)
    found: dict[str, FactorScore] = {}
    for i, factor in enumerate(factors.names):
        values = factors.values[:, i].astype(np.float64)
        classes = values if factors.classes[i] is not None else discretize(values)
        entropy = float(mutual_info_score(classes, classes))
        if len(np.unique(classes)) < 2:
            continue
        information = [
            max(float(mutual_info_score(discrete_codes[n], classes)), 0.0) for n in names
        ]
        order = np.argsort(information, kind="stable")[::-1]
        best = int(order[0])
        code = np.asarray(codes[names[best]], np.float64)
        measure: Measure
        period = factors.periods[i]
        if best < categorical or factors.classes[i] is not None:
            measure = "nmi"
            score = float(
                metrics.normalized_mutual_info_score(discrete_codes[names[best]], classes)
            )
        elif period is not None:
            measure, score = "circular", circular_correlation(code, values * (2 * np.pi / period))
        else:
            measure, score = "spearman", rank_correlation(code, values)
        gap = (information[best] - information[order[1]]) / entropy if len(names) > 1 else None
        found[factor] = FactorScore(names[best], information[best], entropy, measure, score, gap)
    gaps = [each.gap for each in found.values() if each.gap is not None]
    mig = float(np.mean(gaps)) if gaps else None
    return Disentanglement(found, mig, len(factors.values), held_out)


def discretize(values: Values) -> NDArray[np.int64]:
    """Return the index of each value's bin, of `BINS` equal bins over the range: int64 (N,).

    Values that are not finite are in one more bin.
    """
    bins = np.full(len(values), BINS, np.int64)
    finite = np.isfinite(values)
    if finite.any():
        within = values[finite]
        low, span = within.min(), np.ptp(within)
        scaled = (within - low) / span * BINS if span > 0 else np.zeros_like(within)
        bins[finite] = np.minimum(scaled.astype(np.int64), BINS - 1)
    return bins


def rank_correlation(code: Values, factor: Values) -> float:
    """Return Spearman's |rho|; 0 where either does not vary or is not finite."""
    from scipy.stats import spearmanr

    if not _vary(code, factor):
        return 0.0
    return abs(float(spearmanr(code, factor).statistic))


def circular_correlation(code: Values, angle: Values) -> float:
    """Return Mardia's linear-circular correlation, 0 to 1; 0 where either does not vary.

    Args:
        code: (N,).
        angle: (N,), in radians.
    """
    cosine, sine = np.cos(angle), np.sin(angle)
    if not _vary(code, cosine, sine):
        return 0.0
    design = np.stack([np.ones_like(angle), cosine, sine], axis=1)
    centred = code - code.mean()
    fitted = design @ np.linalg.lstsq(design, centred, rcond=None)[0]
    explained = float(fitted @ fitted) / float(centred @ centred)
    return float(np.sqrt(min(max(explained, 0.0), 1.0)))


def _vary(*arrays: Values) -> bool:
    return all(np.isfinite(a).all() and np.ptp(a) > 0 for a in arrays)
