"""Choosing how each layer is quantized: what it costs on the target, what it loses, and what the budgets allow."""
