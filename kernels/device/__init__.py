"""What runs on the GPU: the Triton functions, each told by its formula and its index map.

The files beside this folder are what runs on the host.
"""
