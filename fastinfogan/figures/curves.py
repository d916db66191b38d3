"""The paper's Figure 1, from the metrics of two runs."""

from pathlib import Path

from fastinfogan.engine import RunDirectory

_COLOURS = {"InfoGAN": "#1f5fa8", "GAN with an observing Q": "#c65a11"}


def draw_figure1(infogan: RunDirectory, gan: RunDirectory, file: Path) -> Path:
    """Plot L_I over the iterations of InfoGAN and of a plain GAN, beside H(c).

    Args:
        infogan: a run on the categorical code alone.
        gan: the same with Q observing.
        file: the PNG to write.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.add_subplot()
    for (label, colour), run in zip(_COLOURS.items(), (infogan, gan), strict=True):
        lines = [line for line in run.metrics() if "mi_bound" in line]
        axes.plot(
            [line["iteration"] for line in lines],
            [line["mi_bound"] for line in lines],
            label=label,
            color=colour,
            linewidth=1.4,
        )
    entropy = sum(infogan.experiment.latents.entropies)
    axes.axhline(entropy, color="0.55", linewidth=0.9, linestyle="--", label="H(c)")
    axes.set(xlabel="iteration", ylabel="$L_I$ (nats)", xlim=(0, None), ylim=(-0.1, entropy * 1.08))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=140)
    return file
