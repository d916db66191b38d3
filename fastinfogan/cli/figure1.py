"""`fastinfogan figure1`: the paper's Figure 1."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from fastinfogan.cli.train import optional

if TYPE_CHECKING:
    from fastinfogan.engine.config import Device, Information

_PICTURE = "figure1.png"


@dataclass(frozen=True)
class Figure1:
    """Draw L_I of an InfoGAN and of a GAN with Q observing, on c ~ Cat(10) alone.

    Both train D and Q; only InfoGAN trains its generator on L_I.
    """

    iterations: int = 1000
    """Iterations of each of the two runs."""
    seed: int = 0
    """Seed of both runs."""
    data: Annotated[Path | None, optional("PATH", "the embedded digits")] = None
    """Images, as for train."""
    #: Folder for the two runs and figure1.png. Runs that it holds already are resumed, or drawn
    #: again if they are done.
    out: Annotated[Path | None, optional("PATH", "a new one, runs/figure1-001, ...")] = None
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
