"""Kernel costs: what operators cost on a machine, and the arithmetic a model does."""
