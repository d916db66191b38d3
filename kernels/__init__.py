"""The operations, one file each. Installed as `fastinfogan.kernels`."""
