"""Quantization: what can be quantized in a graph, on which grid, and what the graph becomes."""
