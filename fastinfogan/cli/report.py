"""How an evaluation is told to a person."""

from rich.console import Console

from fastinfogan.evaluation import Evaluation, FactorScores


def print_evaluation(console: Console, found: Evaluation) -> None:
    """Print what a run has learned, a line per fact."""
    whole = sum(found.information.values())
    console.print(
        f"MI bound     {whole:.3f} nats on fresh codes, after {found.iteration} iterations"
    )
    for name, bound in found.information.items():
        limit = f" of {found.entropy[name]:.3f}" if name in found.classification else ""
        console.print(f"             {name}: {bound:.3f}{limit}")
    for name, code in found.classification.items():
        console.print(
            f"error        {name} as a classifier, no labels used in training: "
            f"{code.matching_error:.1%} by matching, {code.majority_error:.1%} by majority "
            f"(fitted on {code.fitted_on}, scored on {code.scored_on} other images)"
        )
    if found.factors:
        _print_factors(console, found.factors)
    if found.unscored:
        console.print(f"factors      not scored: {found.unscored}", soft_wrap=True, markup=False)
    if found.unclassified:
        console.print(f"error        not measured: {found.unclassified}", soft_wrap=True)


_MEASURES = {
    "spearman": "|rank correlation|",
    "circular": "correlation with the angle",
    "nmi": "normalised information",
}


def _print_factors(console: Console, found: FactorScores) -> None:
    """Print which code follows which factor, and how well."""
    gap = "" if found.mig is None else f"MIG {found.mig:.3f}, "
    kept = "held-out images" if found.held_out else "images of the training set"
    console.print(f"factors      {gap}on {found.images} {kept}")
    for name, each in found.factors.items():
        console.print(
            f"             {name}: {each.code}, {_MEASURES[each.measure]} {each.score:.3f}, "
            f"{each.information:.3f} of {each.entropy:.3f} nats"
        )
