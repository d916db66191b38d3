"""How codes follow what is known of images: the code that tells most of each factor, and MIG.

How much a code tells is their mutual information, in nats, after both are cut into bins (a
categorical code is its most likely class, a continuous one Q's mean). How the best code follows the
factor is told by the measure that suits the pair:

- "spearman": |rank correlation|, of a continuous code and a continuous factor;
- "circular": the correlation of a code with an angle, sqrt of the R^2 of a regression on its sine
  and cosine (Mardia 1976, "Linear-circular correlation coefficients and rhythmometry"). A code that
  grows evenly once round has sqrt(6) / pi = 0.78, as it must jump back somewhere;
- "nmi": mutual information over the mean of the two entropies, where either has classes.

MIG (Chen et al. 2018, "Isolating sources of disentanglement in variational autoencoders") is the
mean over the factors of how much more the best code tells of one than the next best, as a share of
the factor's entropy; by 20 bins and at most 10,000 images, as in Locatello et al. 2019.
"""

from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from fastinfogan.data import ImageSet
from fastinfogan.data.image_set import Factors
from fastinfogan.data.subset import subset_indices
from fastinfogan.model import Model
from fastinfogan.optional import require

BINS: Final = 20
MAX_IMAGES: Final = 10_000

Measure = Literal["spearman", "circular", "nmi"]
Values = NDArray[np.float64]


@dataclass(frozen=True)
class FollowedFactor:
    """How a factor is followed.

    Attributes:
        code: the code that tells most of it.
        information: how much that is, in nats.
        entropy: of the factor, in nats: as much as could be told.
        measure: what `score` is; see the head of this module.
        score: how well the code follows the factor, 0 to 1.
        gap: how much more it tells than the next best code, as a share of the entropy; None where
            there is no other code.
    """

    code: str
    information: float
    entropy: float
    measure: Measure
    score: float
    gap: float | None


@dataclass(frozen=True)
class FactorScores:
    """How codes follow the factors of a set.

    Attributes:
        factors: by name; a factor that does not vary in these images is left out.
        mig: the mutual information gap; None where there is one code alone, or no factor.
        images: how many it was measured on.
        held_out: whether training has not seen them.
    """

    factors: dict[str, FollowedFactor]
    mig: float | None
    images: int
    held_out: bool


def follow_factors(trained: Model, source: ImageSet) -> FactorScores | None:
    """Score a run's codes on images whose factors are known: the set's test part if it has one.

    Returns:
        None where no factors are known, or of fewer than 2 images.
    """
    test = source.test
    held_out = test is not None and test.factors is not None and len(test) > 1
    part = test if held_out else source
    if part is None or part.factors is None or len(part) < 2:
        return None
    chosen = subset_indices(len(part), MAX_IMAGES)
    output = trained.read(torch.from_numpy(part.images[chosen])).double().cpu().numpy()
    spec = trained.experiment.latents
    classes = [output[:, place].argmax(axis=1) for place in spec.logit_slices]
    means = output[:, spec.mean_slice].T
    codes = dict(zip(spec.names, [*classes, *means], strict=True))
    known = part.factors
    factors = Factors(known.names, known.values[chosen], known.classes, known.periods)
    return score_factors(codes, len(classes), factors, held_out=held_out)


def score_factors(
    codes: dict[str, NDArray[np.generic]], categorical: int, factors: Factors, *, held_out: bool
) -> FactorScores:
    """Score codes of images whose factors are known.

    Args:
        codes: by name, (N,) each.
        categorical: how many of them, the first ones, are numbers of classes.
        factors: of the N images.
        held_out: whether training has not seen the images.

    Raises:
        MissingPackageError: scikit-learn is not installed.
    """
    metrics = require("sklearn.metrics", extra="eval", purpose="scoring codes against factors")
    mutual_info_score = metrics.mutual_info_score
    cut_codes = {
        name: np.asarray(code) if i < categorical else cut(np.asarray(code, np.float64))
        for i, (name, code) in enumerate(codes.items())
    }
    names = list(codes)
    found: dict[str, FollowedFactor] = {}
    for i, factor in enumerate(factors.names):
        values = factors.values[:, i].astype(np.float64)
        classes = values if factors.classes[i] is not None else cut(values)
        entropy = float(mutual_info_score(classes, classes))
        if len(np.unique(classes)) < 2:
            continue
        told = [max(float(mutual_info_score(cut_codes[n], classes)), 0.0) for n in names]
        order = np.argsort(told, kind="stable")[::-1]
        best = int(order[0])
        code = np.asarray(codes[names[best]], np.float64)
        measure: Measure
        period = factors.periods[i]
        if best < categorical or factors.classes[i] is not None:
            measure = "nmi"
            score = float(metrics.normalized_mutual_info_score(cut_codes[names[best]], classes))
        elif period is not None:
            measure, score = "circular", circular_correlation(code, values * (2 * np.pi / period))
        else:
            measure, score = "spearman", rank_correlation(code, values)
        gap = (told[best] - told[order[1]]) / entropy if len(names) > 1 else None
        found[factor] = FollowedFactor(names[best], told[best], entropy, measure, score, gap)
    gaps = [each.gap for each in found.values() if each.gap is not None]
    mig = float(np.mean(gaps)) if gaps else None
    return FactorScores(found, mig, len(factors.values), held_out)


def cut(values: Values) -> NDArray[np.int64]:
    """Which of `BINS` equal parts of its range each value lies in: int64 (N,).

    What is not finite is in a part of its own.
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
    """Spearman's |rho|; 0 where either does not vary, or is not finite."""
    from scipy.stats import spearmanr

    if not _vary(code, factor):
        return 0.0
    return abs(float(spearmanr(code, factor).statistic))


def circular_correlation(code: Values, angle: Values) -> float:
    """Mardia's linear-circular correlation, 0 to 1; 0 where either does not vary.

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
