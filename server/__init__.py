"""Sluice: an HTTP server for fine-tuned language models."""

__version__ = "0.2.0"
