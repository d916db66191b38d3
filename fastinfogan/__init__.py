"""fastinfogan: a performance engine for InfoGAN (Chen et al. 2016).

Floors, imports only going down: cli; evaluation, figures; engine; data, checkpoint; networks,
objective; nn; kernels; experiments, latents. Aside stands `reference`, the same InfoGAN in plain
PyTorch, against which everything is tested.
"""

__version__ = "0.1.0"
