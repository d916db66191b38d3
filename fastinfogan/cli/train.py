"""`fastinfogan train`: start a run, or go on with one."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from fastinfogan import experiments
from fastinfogan.errors import InputError

if TYPE_CHECKING:
    from fastinfogan.data import ImageSet
    from fastinfogan.data.decoders.base import Decoder
    from fastinfogan.distributed import Distributed
    from fastinfogan.engine import RunDirectory, Trainer
    from fastinfogan.engine.config import Device


def _open(kind: str, default: str) -> Any:  # noqa: ANN401 - tyro's own type is private
    """An option that may be left open, as --help shows it."""
    return tyro.conf.arg(metavar=kind, help_behavior_hint=f"(default: {default})")


@dataclass(frozen=True)
class Train:
    """Train InfoGAN, then evaluate it and draw its samples and traversals.

    With --resume, a run goes on exactly where its newest checkpoint was written, up to the
    iterations it was started for or --iterations in all; what decides its numbers (seed, batch
    size, data, ...) is the run's own.
    """

    experiment: Annotated[
        str | None,
        tyro.conf.Positional,
        tyro.conf.arg(metavar="EXPERIMENT", help_behavior_hint="(or --resume)"),
    ] = None
    """One of mnist, svhn, celeba, faces, chairs, sprites."""
    iterations: Annotated[int | None, _open("INT", "as many as the published run")] = None
    """Train until this many iterations are done."""
    batch_size: Annotated[int | None, _open("INT", "128")] = None
    """Real and generated images in a step."""
    seed: Annotated[int | None, _open("INT", "0")] = None
    """Of weights, codes, data order and augmentation."""
    data: Annotated[Path | None, _open("PATH", "embedded digits, or rendered")] = None
    """MNIST IDX files, SVHN's train_32x32.mat, CelebA's img_align_celeba, rendered chairs,
    dSprites, 3D Shapes, MPI3D, WebDataset tars, an .npz or a folder of pictures. Without it, mnist
    takes its 5,000 embedded digits; for faces, chairs and sprites, images are rendered."""
    out: Annotated[Path | None, _open("PATH", "a new folder in runs/")] = None
    """Where to keep the run."""
    variant: Annotated[
        tyro.conf.UseAppendAction[tuple[str, ...]],
        _open("NAME", "the paper's; research for faces and chairs"),
    ] = ()
    """A named departure from the paper, as `info` lists them; may be given again."""
    resume: Annotated[Path | None, _open("RUN", "start a new run")] = None
    """Go on with this run."""
    init_from: Annotated[Path | None, _open("RUN", "random weights")] = None
    """Start a new run from this run's weights."""
    precision: Annotated[
        Literal["auto", "fp32", "tf32", "bf16", "fp16"] | None,
        _open("{auto,fp32,tf32,bf16,fp16}", "auto: bf16 where the hardware has it"),
    ] = None
    """Of convolutions and matrix products; with fp16, losses are scaled."""
    augment: Annotated[
        Literal["none", "affine"] | None,
        _open("{none,affine}", "affine for the embedded digits alone"),
    ] = None
    """Small random shifts, rotations, shears and scalings of the real images."""
    information: Annotated[
        Literal["maximise", "observe"] | None, _open("{maximise,observe}", "maximise")
    ] = None
    """maximise is InfoGAN; observe is a GAN with Q observing (Figure 1): D and Q are trained as in
    InfoGAN, the generator is not told what Q can read."""
    execution: Literal["auto", "eager", "compiled", "graph"] = "auto"
    """Who drives the iteration, with the same numbers: auto replays CUDA graphs on a GPU and is
    eager on a CPU; compiled runs torch.compile's program."""
    batch_norm: Annotated[
        Literal["synchronised", "per-rank"] | None,
        _open("{synchronised,per-rank}", "synchronised"),
    ] = None
    """Of several ranks, started by torchrun: synchronised takes the statistics of the whole batch,
    so that the run is the same for any number of them."""
    cache: Annotated[
        Literal["auto", "device", "host", "file", "off"] | None,
        _open("{auto,device,host,file,off}", "auto: by size"),
    ] = None
    """Where pictures are kept once they are decoded: in GPU memory, in memory, in a file that later
    runs map and never decode again, or not at all. auto takes GPU memory if it has room, and
    leaves a file."""
    decoder: Annotated[
        Literal["auto", "dali", "pillow"] | None,
        _open("{auto,dali,pillow}", "auto: DALI where it works"),
    ] = None
    """Who decodes pictures."""
    on_bad_image: Annotated[Literal["fail", "skip"] | None, _open("{fail,skip}", "fail")] = None
    """What to do about a picture that cannot be decoded: skip lists it in the run's
    bad_images.jsonl, and the next one stands in for it; more than 1 % are too many."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train; auto takes the GPU if there is one."""
    log_every: Annotated[int | None, _open("INT", "10")] = None
    """Iterations between two lines of metrics, each a mean over them."""
    checkpoint_every: Annotated[int | None, _open("INT", "500")] = None
    """Iterations between two checkpoints."""
    pictures_every: Annotated[int | None, _open("INT", "500")] = None
    """Iterations between two sets of pictures; 0 for the end alone."""

    def run(self) -> int:
        """Do it; the exit code."""
        from fastinfogan.cli import training
        from fastinfogan.distributed import process_group
        from fastinfogan.engine import RunDirectory
        from fastinfogan.engine.environment import choose_device

        if self.resume and self.init_from:
            raise InputError("--resume goes on with a run, --init-from starts one; name one")
        device: Device = "cuda" if choose_device(self.device).type == "cuda" else "cpu"
        asked = {
            "iterations": self.iterations,
            "checkpoint_every": self.checkpoint_every,
            "pictures_every": self.pictures_every,
            "cache": self.cache,
            "decoder": self.decoder,
            "on_bad_image": self.on_bad_image,
        }
        given: dict[str, Any] = {name: n for name, n in asked.items() if n is not None}
        with process_group(device) as distributed:
            if self.resume:
                run = RunDirectory.open(self.resume)
                self._agree_with(run)
                plan = replace(run.options, device=device, **given)
                trainer, source = training.go_on(run, plan, self.data, self.execution, distributed)
            else:
                trainer, source = self._start(device, given, distributed)
            return training.train_with_progress(trainer, source, new=not self.resume)

    def _agree_with(self, run: "RunDirectory") -> None:
        """Refuse options that would make a resumed run another one."""
        name, settings = run.experiment.name, run.config
        if self.experiment not in (None, name):
            raise InputError(f"{run.path} is a run of {name}, not of {self.experiment}")
        if self.out is not None:
            raise InputError("--out starts a new folder, --resume goes on in the run's; name one")
        asked = experiments.get(name, experiments.to_train(name, self.variant))
        if self.variant and asked.variants != run.experiment.variants:
            have = " ".join(run.experiment.variants) or "paper"
            raise InputError(f"{run.path} was started with --variant {have}")
        given: dict[str, Any] = {
            "batch-size": (self.batch_size, settings.batch_size),
            "seed": (self.seed, settings.seed),
            "augment": (self.augment, settings.augmentation),
            "information": (self.information, settings.information),
            "batch-norm": (self.batch_norm, settings.batch_norm),
            "log-every": (self.log_every, settings.log_every),
            "precision": (
                None if self.precision == "auto" else self.precision,
                settings.precision,
            ),
        }
        for option, (asked, has) in given.items():
            if asked not in (None, has):
                raise InputError(
                    f"{run.path} was started with --{option} {has}; it cannot go on with {asked}"
                )

    def _start(
        self, device: "Device", given: dict[str, Any], distributed: "Distributed"
    ) -> "tuple[Trainer, ImageSet | Decoder]":
        from fastinfogan import checkpoint
        from fastinfogan.cli import training
        from fastinfogan.engine import Origin, RunDirectory, RunOptions

        if self.experiment is None:
            raise InputError(f"name an experiment to train: {', '.join(experiments.BASES)}")
        variants = experiments.to_train(self.experiment, self.variant)
        experiment = experiments.get(self.experiment, variants)
        if self.batch_size is not None:
            experiment = replace(experiment, batch_size=self.batch_size)
        plan = RunOptions(**{"iterations": experiment.iterations, "device": device, **given})
        weights = None
        if self.init_from:
            weights = RunDirectory.open(self.init_from).read_checkpoint()
            where = str(self.init_from.absolute())
            origin = Origin(where, weights.folder.name, checkpoint.identity(weights.folder))
            plan = replace(plan, init_from=origin)
        run, source = training.describe_run(
            experiment,
            plan,
            out=self.out,
            data=self.data,
            seed=self.seed or 0,
            precision=self.precision or "auto",
            augment=self.augment,
            information=self.information or "maximise",
            log_every=10 if self.log_every is None else self.log_every,
            batch_norm=self.batch_norm or "synchronised",
            distributed=distributed,
        )
        return training.start(run, source, weights, self.execution, distributed), source
