"""`fastinfogan figure1`: the paper's Figure 1."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from fastinfogan.engine.settings import Information


@dataclass(frozen=True)
class Figure1:
    """Train InfoGAN and a plain GAN with an observing Q on c ~ Cat(10), and draw L_I of both."""

    iterations: int = 1000
    """Of each of the two runs."""
    seed: int = 0
    """Of both runs."""
    data: Path | None = None
    """As for train (default: the embedded digits)."""
    out: Path = Path("runs/figure1")
    """Folder for the two runs and figure1.png; new or empty."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train."""

    def run(self) -> int:
        """Do it; the exit code."""
        from fastinfogan import experiments
        from fastinfogan.cli import training
        from fastinfogan.engine import Schedule, Trainer
        from fastinfogan.engine.environment import choose_device
        from fastinfogan.errors import InputError
        from fastinfogan.figures import draw_figure1

        if self.iterations < 1:
            raise InputError(f"--iterations must be 1 or more, not {self.iterations}")
        if self.out.exists() and any(self.out.iterdir()):
            raise InputError(f"{self.out}: holds files already; name another --out")
        runs = {}
        kinds: dict[str, Information] = {"infogan": "maximise", "gan": "observe"}
        for name, information in kinds.items():
            run, source = training.new_run(
                experiments.get("mnist", ["categorical-only"]),
                out=self.out / name,
                data=self.data,
                seed=self.seed,
                precision="auto",
                augment=None,
                information=information,
                device=self.device,
                log_every=1,
            )
            trainer = Trainer(run, source, choose_device(self.device))
            code = training.train_with_progress(trainer, source, self.iterations, Schedule())
            if code:
                return code
            runs[name] = run
        print(draw_figure1(runs["infogan"], runs["gan"], self.out / "figure1.png"))
        return 0
