"""fastinfogan: a performance engine for InfoGAN (Chen et al. 2016).

The public names are imported on first use, so that `import fastinfogan` takes milliseconds.

Layers, whose imports only go down: cli; evaluation, figures; model; engine; data, checkpoint;
networks, objective; experiments; nn, optim; and fastinfogan_kernels, a package that imports nothing
of this one. Aside stands `reference`, the same InfoGAN in plain PyTorch, which everything is tested
against.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastinfogan import nn, optim
    from fastinfogan.errors import InputError, TrainingError
    from fastinfogan.experiments import Experiment
    from fastinfogan.model import Model
    from fastinfogan_kernels.latents import Categorical, Continuous, LatentSpec, Noise

__version__ = "0.2.0"

__all__ = [
    "Categorical",
    "Continuous",
    "Experiment",
    "InputError",
    "LatentSpec",
    "Model",
    "Noise",
    "TrainingError",
    "__version__",
    "nn",
    "optim",
]

_MODULES = {
    "Categorical": "fastinfogan_kernels.latents",
    "Continuous": "fastinfogan_kernels.latents",
    "Experiment": "fastinfogan.experiments",
    "InputError": "fastinfogan.errors",
    "LatentSpec": "fastinfogan_kernels.latents",
    "Model": "fastinfogan.model",
    "Noise": "fastinfogan_kernels.latents",
    "TrainingError": "fastinfogan.errors",
}

if not TYPE_CHECKING:  # type checkers see the imports above, and complain of other names

    def __getattr__(name: str) -> object:
        if name in _MODULES:
            return getattr(import_module(_MODULES[name]), name)
        if name in __all__:
            return import_module(f"fastinfogan.{name}")
        raise AttributeError(f"module 'fastinfogan' has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
