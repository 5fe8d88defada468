"""Sluice's own CUDA kernels, in Triton, which comes with torch's CUDA builds: attention over pages of a cache.

`kernels` says whether they can run on a device, `attention` and `place` are what the engines call, and their
`*_kernels` hold what runs on the device. What they compute is written in torch in `server.native.reference` and in
`TorchNativeAttention`. Knows tensors only: neither models nor engines.
"""
