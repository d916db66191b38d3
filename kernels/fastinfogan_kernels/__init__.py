"""Operations of fastinfogan: Triton kernels, C++ twins and plain PyTorch references."""
