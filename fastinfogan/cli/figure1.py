"""`fastinfogan figure1`: the paper's Figure 1."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from fastinfogan.engine.config import Device, Information

_PICTURE = "figure1.png"


@dataclass(frozen=True)
class Figure1:
    """Train InfoGAN and a GAN with Q observing on c ~ Cat(10) alone, and draw L_I of both.

    In both, D and Q are trained as in InfoGAN; only InfoGAN's generator gets the gradient of L_I.
    Where --out holds these two runs already, they are resumed, or drawn again if they are done.
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
        """Run the command; return the exit code."""
        from fastinfogan import experiments
        from fastinfogan.checkpoint import difference
        from fastinfogan.cli.train import train_and_evaluate
        from fastinfogan.engine import RunDirectory, RunOptions
        from fastinfogan.engine.config import choose_device
        from fastinfogan.engine.session import Session, free_path, new_config
        from fastinfogan.errors import InputError
        from fastinfogan.figures import draw_figure1

        if self.iterations < 1:
            raise InputError(f"--iterations must be 1 or more, not {self.iterations}")
        out = self.out or free_path("figure1")
        kinds: dict[str, Information] = {"infogan": "maximise", "gan": "observe"}
        if out.exists() and not out.is_dir():
            raise InputError(f"{out}: a file, where a folder is needed; name another --out")
        if out.exists() and not {p.name for p in out.iterdir()} <= {*kinds, _PICTURE}:
            raise InputError(f"{out}: holds files already; name another --out")
        experiment = experiments.get("mnist", ["categorical-only"])
        device: Device = "cuda" if choose_device(self.device).type == "cuda" else "cpu"
        options = RunOptions(self.iterations, device=device)
        session = Session()
        todo = []
        for name, information in kinds.items():
            config = new_config(
                experiment,
                self.data,
                device,
                seed=self.seed,
                information=information,
                log_every=1,
            )
            exists = (out / name / "config.json").exists()
            run, images = session.open_new(
                out / name, experiment, config, options, require_free=not exists
            )
            if exists:
                found = RunDirectory.open(out / name)
                if differs := difference(found.identity(), run.identity()):
                    raise InputError(f"{out / name}: a run of other settings; {differs}")
                run = found
            todo.append((run, images, exists))
        again = f"fastinfogan figure1 --out {out} --iterations {self.iterations}"
        again += f" --seed {self.seed}" + (f" --data {self.data}" if self.data else "")
        for run, images, exists in todo:
            if exists:
                trainer, _ = session.resume(run, options, self.data)
                if trainer.step == self.iterations:
                    trainer.loader.close()
                    continue
            else:
                trainer = session.start(run, images)
            code = train_and_evaluate(trainer, images, new=not exists, resume_with=again)
            if code:
                return code
        infogan, gan = (run for run, *_ in todo)
        print(draw_figure1(infogan, gan, out / _PICTURE))
        return 0
