"""Operations of fastinfogan: Triton kernels, C++ counterparts and plain PyTorch references."""
