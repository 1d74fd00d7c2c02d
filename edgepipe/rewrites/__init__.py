"""Rewrites of a float32 graph that change nothing in its results: fewer nodes, less arithmetic. One file each."""
