"""The phases of gpu_check.py; each module's `run` is one."""
