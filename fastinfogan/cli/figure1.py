"""`fastinfogan figure1`: the paper's Figure 1."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from fastinfogan.engine.config import Information

_PICTURE = "figure1.png"


@dataclass(frozen=True)
class Figure1:
    """Train InfoGAN and a GAN with Q observing on c ~ Cat(10) alone, and draw L_I of both.

    In both, D and Q are trained as in InfoGAN; only InfoGAN's generator is told what Q can read.
    Where --out holds these two runs already, they go on, or are drawn again if they are done.
    """

    iterations: int = 1000
    """Of each of the two runs."""
    seed: int = 0
    """Of both runs."""
    data: Path | None = None
    """As for train (default: the embedded digits)."""
    out: Path | None = None
    """Folder for the two runs and figure1.png (default: a new one, runs/figure1-001, ...)."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train."""

    def run(self) -> int:
        """Do it; the exit code."""
        from fastinfogan import experiments
        from fastinfogan.checkpoint import difference
        from fastinfogan.cli import training
        from fastinfogan.engine import RunDirectory, RunOptions
        from fastinfogan.engine.environment import choose_device
        from fastinfogan.errors import InputError
        from fastinfogan.figures import draw_figure1

        if self.iterations < 1:
            raise InputError(f"--iterations must be 1 or more, not {self.iterations}")
        out = self.out or training.free_name("figure1")
        kinds: dict[str, Information] = {"infogan": "maximise", "gan": "observe"}
        if out.exists() and not out.is_dir():
            raise InputError(f"{out}: a file, where a folder is needed; name another --out")
        if out.exists() and not {p.name for p in out.iterdir()} <= {*kinds, _PICTURE}:
            raise InputError(f"{out}: holds files already; name another --out")
        experiment = experiments.get("mnist", ["categorical-only"])
        device = choose_device(self.device)
        plan = RunOptions(self.iterations, device="cuda" if device.type == "cuda" else "cpu")
        todo = []
        for name, information in kinds.items():
            there = (out / name / "config.json").exists()
            run, source = training.describe_run(
                experiment,
                plan,
                out=out / name,
                data=self.data,
                seed=self.seed,
                precision="auto",
                augment=None,
                information=information,
                log_every=1,
                free=not there,
            )
            if there:
                found = RunDirectory.open(out / name)
                if differs := difference(found.identity(), run.identity()):
                    raise InputError(f"{out / name}: a run of other settings; {differs}")
                run = found
            todo.append((run, source, there))
        again = f"fastinfogan figure1 --out {out} --iterations {self.iterations}"
        again += f" --seed {self.seed}" + (f" --data {self.data}" if self.data else "")
        for run, source, there in todo:
            if there:
                trainer, _ = training.go_on(run, plan, self.data)
                if trainer.done == self.iterations:
                    trainer.feed.close()
                    continue
            else:
                trainer = training.start(run, source)
            code = training.train_with_progress(trainer, source, new=not there, go_on_with=again)
            if code:
                return code
        infogan, gan = (run for run, *_ in todo)
        print(draw_figure1(infogan, gan, out / _PICTURE))
        return 0
