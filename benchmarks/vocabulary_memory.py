"""Memory of scoring a large vocabulary: softmax over all of it, over a sample, and noise-contrastive estimation.

causal: a decoder of 4 layers, 256 wide, with GPT-2's vocabulary, batches of 8 × 128 tokens. masked-tokens: the demo's encoder,
32 × 128 tokens of which 15 % are hidden. Peak of a process of its own over three steps, above the loaded model with its gradients.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import time
from types import SimpleNamespace
from typing import Any

from demo import write_result

from edgepipe.store import cache_root

OUTPUTS: dict[str, dict[str, Any]] = {
    "full softmax": {},
    "softmax over 1,000": {"output_sampling": 1000},
    "NCE over 1,000": {"output_sampling": 1000, "output_estimate": "nce"},
}
OBJECTIVES = ("causal", "masked-tokens")
STEPS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--row", nargs=2, metavar=("OBJECTIVE", "OUTPUT"), help="measure this one, in this process")
    row = parser.parse_args().row
    if row:
        print(json.dumps(measured(row[0], OUTPUTS[row[1]])))
        return
    rows = []
    for objective in OBJECTIVES:
        for output in OUTPUTS:
            done = subprocess.run([sys.executable, __file__, "--row", objective, output], check=True, capture_output=True, text=True)
            rows.append({"objective": objective, "output": output, **json.loads(done.stdout.splitlines()[-1])})
    lines = ["| objective | output | positions × vocabulary | peak above the model, MB | CPU s a step |", "|---|---|---|---|---|"]
    for one in rows:
        size = f"{one['positions']:,} × {one['vocabulary']:,}"
        lines.append(
            f"| {one['objective']} | {one['output']} | {size} | {one['peak_bytes_above_model'] / 1e6:.0f} | {one['cpu_seconds']:.2f} |"
        )
    write_result("vocabulary_memory", "OMP_NUM_THREADS=1 python benchmarks/vocabulary_memory.py", "\n".join(lines), rows)


def measured(objective: str, output: dict[str, Any]) -> dict[str, Any]:
    import torch
    import transformers

    from edgepipe.training.language_head import LanguageHead, token_loss
    from edgepipe.training.masking import MaskTokens, masked
    from edgepipe.training.objectives.causal import next_tokens

    torch.manual_seed(0)
    causal = objective == "causal"
    if causal:
        model: Any = transformers.GPT2LMHeadModel(transformers.GPT2Config(n_embd=256, n_layer=4, n_head=4))
    else:
        model = transformers.AutoModel.from_pretrained(cache_root() / "downloads/sentiment/base")
    vocabulary = model.config.vocab_size
    tokens = torch.randint(1000, vocabulary, (8 if causal else 32, 128))
    options = SimpleNamespace(**{"output_sampling": None, "output_estimate": "softmax", **output})
    head = LanguageHead(model, objective)
    counts = SimpleNamespace(token_counts=lambda size: torch.bincount(tokens.flatten(), minlength=size))
    loss = token_loss(head, SimpleNamespace(options=options, train=counts))  # type: ignore[arg-type]
    inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    if causal:
        targets = next_tokens(inputs)
    else:
        known = MaskTokens(103, frozenset(), tuple(range(1000, vocabulary)))
        words = torch.arange(128).expand(len(tokens), -1)
        inputs["input_ids"], targets = masked(tokens, words, known, "random", 0.15, random.Random(0))
    for parameter in [*model.parameters(), *head.parameters("head").values()]:  # what stays through every step is there before
        parameter.grad = torch.zeros_like(parameter)
    before, started = peak_bytes(), time.process_time()
    for step in range(STEPS):
        vectors = head.vectors(inputs)
        loss(vectors[:, :-1] if causal else vectors, targets, torch.Generator().manual_seed(step)).mean().backward()
    return {
        "cpu_seconds": (time.process_time() - started) / STEPS,
        "peak_bytes_above_model": peak_bytes() - before,
        "vocabulary": vocabulary,
        "positions": int((targets >= 0).sum()),
    }


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main()
