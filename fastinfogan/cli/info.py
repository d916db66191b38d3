"""`fastinfogan info`: versions, hardware, and what training will use on this machine."""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from fastinfogan.errors import InputError

_BACKENDS = {
    "triton": "Triton kernels",
    "native": "ATen's convolutions; epilogues, objective and Adam in C++",
    "reference": "plain torch: fastinfogan_kernels._native was not compiled",
}


@dataclass(frozen=True)
class Info:
    """Show versions, hardware, what training will use on this machine and why, and the variants."""

    def run(self) -> int:
        """Run the command; the exit code."""
        from fastinfogan.data.cache.storage import cache_folder
        from fastinfogan.engine import choose_execution, choose_precision, config
        from fastinfogan.experiments import EXPERIMENTS
        from fastinfogan.files import cache_directory, compiled_folders
        from fastinfogan_kernels.runtime.launch import choose

        device = config.choose_device("auto")
        precision, why = choose_precision("auto", device)
        execution, reason = choose_execution("auto", device)
        facts = {
            **config.versions(),
            **config.hardware(),
            "device": device.type,
            "precision": f"{precision.name}: {why}",
            "execution": f"{execution.name}: {reason}",
            "backend": _BACKENDS[choose("auto", device)],
            "cache": str(cache_directory()),
            "compiled programs": ", ".join(map(str, compiled_folders())),
            "decoder": _decoder(device.type),
            "decoded images": _decoded_sets(cache_folder()),
            "tensorboard": "events are written" if find_spec("tensorboard") else "not installed",
        }
        for name, fact in facts.items():
            print(f"{name:16} {fact}")
        for name, entry in EXPERIMENTS.items():
            print(f"\n{name}: --variant")
            default = "the default"
            if entry.training_defaults:
                added = ", ".join(entry.training_defaults)
                default = f"the paper's tables; train takes {added} unless this is named"
            print(f"  {'paper':20} {default}{f'; {entry.about}' if entry.about else ''}")
            for variant, what in entry.variants.items():
                print(f"  {variant:20} {what.about}")
        return 0


def _decoder(device: str) -> str:
    from fastinfogan.data.decoders.dali import import_dali

    try:
        version = import_dali().__version__
    except InputError as error:
        return f"Pillow: {error}"
    return f"DALI {version} on {'a GPU' if device == 'cuda' else 'the CPU'}: it is installed"


def _decoded_sets(folder: Path) -> str:
    from fastinfogan.data.cache.policy import available_disk, format_size

    sets = [each for each in folder.glob("*.u8") if each.with_suffix(".json").exists()]
    size = sum(each.stat().st_size for each in sets)
    return (
        f"{len(sets)} sets, {format_size(size)}, in {folder}; sets of up to "
        f"{format_size(available_disk(folder) // 2)} are written there by --cache auto"
    )
