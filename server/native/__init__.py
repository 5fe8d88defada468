"""Sluice's own CPU kernels: products, attention, norms. Everything works without them, slower.

`kernels` finds the compiled module, `reference` says in torch what each kernel computes, the other modules are what
the engines call. Knows tensors only: neither models nor engines.
"""
