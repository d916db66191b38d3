"""`fastinfogan train`: start a run, or go on with one."""

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from fastinfogan import experiments
from fastinfogan.errors import InputError

if TYPE_CHECKING:
    from fastinfogan.engine import RunDirectory, Trainer
    from fastinfogan.engine.config import Device
    from fastinfogan.engine.session import Session, TrainingImages


def optional(kind: str, default: str, name: str | None = None) -> Any:  # noqa: ANN401 - tyro's own type is private
    """Describe an option whose default is None: its metavar, and its default for --help."""
    return tyro.conf.arg(name=name, metavar=kind, help_behavior_hint=f"(default: {default})")


@dataclass(frozen=True)
class Train:
    """Train InfoGAN, then evaluate it and draw its samples and traversals."""

    experiment: Annotated[
        str | None,
        tyro.conf.Positional,
        tyro.conf.arg(
            metavar="EXPERIMENT",
            help=f"One of {', '.join(experiments.EXPERIMENTS)}.",
            help_behavior_hint="(or --resume)",
        ),
    ] = None
    iterations: Annotated[int | None, optional("INT", "as many as the published run")] = None
    """Train until this many iterations are done."""
    batch_size: Annotated[int | None, optional("INT", "128")] = None
    """Real and generated images in a step."""
    seed: Annotated[int | None, optional("INT", "0")] = None
    """Seed of weights, codes, data order and augmentation."""
    #: MNIST IDX files, SVHN's train_32x32.mat, CelebA's img_align_celeba, rendered chairs,
    #: dSprites, 3D Shapes, MPI3D, WebDataset tars, an .npz or a folder of images. Without it,
    #: mnist takes its 5,000 embedded digits; for faces, chairs and sprites, images are rendered.
    data: Annotated[Path | None, optional("PATH", "embedded digits, or rendered")] = None
    out: Annotated[Path | None, optional("PATH", "a new folder in runs/")] = None
    """Folder of the run."""
    variant: Annotated[
        tyro.conf.UseAppendAction[tuple[str, ...]],
        optional("NAME", "the paper's; research for faces and chairs"),
    ] = ()
    """A named departure from the paper, as `info` lists them; may be given again."""
    #: Continue this run exactly where its newest checkpoint was written, up to the iterations it
    #: was started for or --iterations in all; seed, batch size, data and the like are the run's.
    resume: Annotated[Path | None, optional("RUN", "start a new run")] = None
    init_from: Annotated[Path | None, optional("RUN", "random weights")] = None
    """Start a new run from this run's weights."""
    precision: Annotated[
        Literal["auto", "fp32", "tf32", "bf16", "fp16"] | None,
        optional("{auto,fp32,tf32,bf16,fp16}", "auto: bf16 where the hardware has it"),
    ] = None
    """Number format of convolutions and matrix products; with fp16, losses are scaled."""
    augment: Annotated[
        Literal["none", "affine"] | None,
        optional("{none,affine}", "affine for the embedded digits alone"),
    ] = None
    """Small random shifts, rotations, shears and scalings of the real images."""
    #: maximise is InfoGAN; observe is a GAN with Q observing (Figure 1): D and Q are trained as in
    #: InfoGAN, the generator gets no gradient of the bound.
    information: Annotated[
        Literal["maximise", "observe"] | None, optional("{maximise,observe}", "maximise")
    ] = None
    #: Execution mode; all give the same numbers. auto replays CUDA graphs on a GPU and is eager on
    #: a CPU; compiled runs torch.compile's program.
    execution: Literal["auto", "eager", "compiled", "graph"] = "auto"
    #: With several ranks, started by torchrun: synchronised takes the statistics of the whole
    #: batch, so that the run is the same for any number of ranks.
    batch_norm: Annotated[
        Literal["synchronised", "per-rank"] | None,
        optional("{synchronised,per-rank}", "synchronised"),
    ] = None
    #: Where decoded images are cached: in GPU memory, in host memory, in a file that later runs
    #: map, or not at all. auto takes GPU memory if they fit, and also writes the file.
    cache: Annotated[
        Literal["auto", "device", "host", "file", "off"] | None,
        optional("{auto,device,host,file,off}", "auto: by size"),
    ] = None
    decoder: Annotated[
        Literal["auto", "dali", "pillow"] | None,
        optional("{auto,dali,pillow}", "auto: DALI where it works"),
    ] = None
    """Decoder of image files."""
    #: What to do with an image that cannot be decoded: skip lists it in the run's
    #: bad_images.jsonl and puts the next one in its place; more than 1 % are an error.
    on_bad_image: Annotated[Literal["fail", "skip"] | None, optional("{fail,skip}", "fail")] = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train; auto takes the GPU if there is one."""
    log_every: Annotated[int | None, optional("INT", "10")] = None
    """Iterations between two lines of metrics, each a mean over them."""
    checkpoint_every: Annotated[int | None, optional("INT", "500")] = None
    """Iterations between two checkpoints."""
    pictures_every: Annotated[int | None, optional("INT", "500")] = None
    """Iterations between two sets of pictures; 0 for the end alone."""

    def run(self) -> int:
        """Run the command; return the exit code."""
        from fastinfogan.cli.progress import RENDERING, ProgressBar
        from fastinfogan.distributed import process_group
        from fastinfogan.engine import RunDirectory
        from fastinfogan.engine.config import choose_device
        from fastinfogan.engine.session import Session

        if self.resume and self.init_from:
            raise InputError("--resume continues a run, --init-from starts one; name one")
        device: Device = "cuda" if choose_device(self.device).type == "cuda" else "cpu"
        options = {
            name: getattr(self, name)
            for name in (
                "iterations", "checkpoint_every", "pictures_every", "cache", "decoder",
                "on_bad_image",
            )
            if getattr(self, name) is not None
        }  # fmt: skip
        with process_group(device) as distributed:
            with ProgressBar(RENDERING) as progress:
                session = Session(self.execution, distributed, progress)
                if self.resume:
                    run = RunDirectory.open(self.resume)
                    self._require_same(run)
                    changed = replace(run.options, device=device, **options)
                    trainer, images = session.resume(run, changed, self.data)
                else:
                    trainer, images = self._start(session, device, options)
            return train_and_evaluate(trainer, images, new=not self.resume)

    def _require_same(self, run: "RunDirectory") -> None:
        """Refuse options that would make a resumed run another one."""
        name, config = run.experiment.name, run.config
        if self.experiment not in (None, name):
            raise InputError(f"{run.path} is a run of {name}, not of {self.experiment}")
        if self.out is not None:
            raise InputError("--out starts a new folder, --resume continues in the run's; name one")
        asked = experiments.get(name, experiments.to_train(name, self.variant))
        if self.variant and asked.variants != run.experiment.variants:
            have = " ".join(run.experiment.variants) or "paper"
            raise InputError(f"{run.path} was started with --variant {have}")
        given: dict[str, Any] = {
            "batch-size": (self.batch_size, config.batch_size),
            "seed": (self.seed, config.seed),
            "augment": (self.augment, config.augmentation),
            "information": (self.information, config.information),
            "batch-norm": (self.batch_norm, config.batch_norm),
            "log-every": (self.log_every, config.log_every),
            "precision": (None if self.precision == "auto" else self.precision, config.precision),
        }
        for option, (value, has) in given.items():
            if value not in (None, has):
                raise InputError(
                    f"{run.path} was started with --{option} {has}; it cannot go on with {value}"
                )

    def _start(
        self, session: "Session", device: "Device", options: dict[str, Any]
    ) -> "tuple[Trainer, TrainingImages]":
        from fastinfogan import checkpoint
        from fastinfogan.engine import InitialWeights, RunDirectory, RunOptions
        from fastinfogan.engine.session import free_path, new_config

        if self.experiment is None:
            raise InputError(f"name an experiment to train: {', '.join(experiments.EXPERIMENTS)}")
        variants = experiments.to_train(self.experiment, self.variant)
        experiment = experiments.get(self.experiment, variants)
        if self.batch_size is not None:
            experiment = replace(experiment, batch_size=self.batch_size)
        run_options = RunOptions(
            **{"iterations": experiment.iterations, "device": device, **options}
        )
        weights = None
        if self.init_from:
            weights = RunDirectory.open(self.init_from).read_checkpoint()
            identity = checkpoint.identity(weights.folder)
            origin = InitialWeights(str(self.init_from.absolute()), weights.folder.name, identity)
            run_options = replace(run_options, init_from=origin)
        config = new_config(
            experiment,
            self.data,
            device,
            seed=self.seed or 0,
            precision=self.precision or "auto",
            augmentation=self.augment,
            information=self.information or "maximise",
            log_every=10 if self.log_every is None else self.log_every,
            batch_norm=self.batch_norm or "synchronised",
        )
        path = self.out or free_path(self.experiment)
        run, images = session.open_new(path, experiment, config, run_options)
        return session.start(run, images, weights), images


def train_and_evaluate(
    trainer: "Trainer", images: "TrainingImages", *, new: bool, resume_with: str | None = None
) -> int:
    """Train as the run's options say, showing metrics; then evaluate and draw.

    Args:
        trainer: at its first or at a later iteration.
        images: its images.
        new: whether the run's folder was made just now; it goes if not one iteration fits.
        resume_with: the command that resumes a stopped run; None for `train --resume`.

    Returns:
        The exit code.
    """
    from rich.console import Console
    from rich.markup import escape

    from fastinfogan.cli.evaluate import print_evaluation
    from fastinfogan.cli.progress import ProgressBar
    from fastinfogan.data import ImageSet
    from fastinfogan.engine import Schedule
    from fastinfogan.engine.session import Signals, annotated_images
    from fastinfogan.errors import reporting_out_of_memory
    from fastinfogan.evaluation import evaluate
    from fastinfogan.figures import draw_all
    from fastinfogan.model import Model

    is_main, run = trainer.distributed.is_main, trainer.run
    console = Console(highlight=False, quiet=not is_main)
    goal = run.options.iterations
    count = len(images if isinstance(images, ImageSet) else images.image_set)
    console.print(
        f"[bold]{run.experiment.name}[/bold] in {run.path}: iterations {trainer.step} to {goal}, "
        f"batch {run.config.batch_size}, {run.config.precision} on {trainer.iteration.device}, "
        f"{count} images"
    )
    console.print(f"images {trainer.loader.description}", soft_wrap=True)
    bar = ProgressBar("iteration", goal, console=console)

    def show(line: dict[str, float]) -> None:
        if "seconds_to_first_iteration" in line:
            seconds = line["seconds_to_first_iteration"]
            console.print(f"first iteration done {seconds:.1f} s after the start of training")
        bar.update(
            int(line["iteration"]),
            text=f"D {line['d_loss']:.2f}  G {line['g_loss']:.2f}  MI {line['mi_bound']:.2f} nats  "
            f"{line['images_per_second']:,.0f} images/s",
        )

    def draw() -> None:
        with Model.borrowed(run.experiment, trainer.networks, trainer.step) as model:
            draw_all(model, run.pictures)

    with bar, Signals.handled() as signals:
        schedule = Schedule(
            checkpoint_every=run.options.checkpoint_every,
            pictures_every=run.options.pictures_every,
            on_metrics=show,
            on_pictures=draw,
            on_warning=lambda text: console.print(f"[yellow]{escape(text)}[/yellow]"),
            stop=signals.stop,
            save_now=signals.save,
        )
        try:
            with reporting_out_of_memory("take a smaller --batch-size"):
                trainer.train(goal, schedule)
        except InputError:
            if new and trainer.step == 0 and is_main:
                shutil.rmtree(run.path, ignore_errors=True)
            raise
        code = signals.exit_code(trainer.distributed)
    if code:
        command = resume_with or f"fastinfogan train --resume {run.path} --iterations {goal}"
        console.print(
            f"stopped after {trainer.step} of {goal} iterations; go on with: {command}",
            soft_wrap=True,
        )
        return code
    if not is_main:
        return 0
    with Model.borrowed(run.experiment, trainer.networks, trainer.step) as model:
        known = annotated_images(images, run.options, lambda text: console.print(escape(text)))
        print_evaluation(console, evaluate(model, known))
    console.print(f"pictures     {run.pictures}")
    for file in sorted(run.pictures.glob("*.png")):
        console.print(f"             {file.name}")
    return 0
