"""Makes model/ (a word-counting classifier with its tokenizer) and samples.csv beside this file."""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, models, pre_tokenizers

HERE = Path(__file__).parent
PRAISE, BLAME = ["good", "great", "fine", "warm", "sharp"], ["bad", "dull", "poor", "slow", "cold"]
PLAIN = ["the", "film", "plot", "scene", "cast", "was", "and", "with", "a", "story"]
VOCABULARY = {word: number for number, word in enumerate(["[PAD]", "[UNK]", *PRAISE, *BLAME, *PLAIN])}
FEATURES, WIDTH = 16, 512


def model() -> onnx.ModelProto:
    """input_ids [batch, sequence] → logits [batch, 2]: word vectors, their mean, and two matrix products.

    `spread` gives each feature columns of its own: one weight a column, so no sum of two products leaves 16 bits. In
    `classify` praise and blame weigh the same, 1 in each of 128 rows. Those of praise lie side by side: two products near
    255 × 127 then meet in one 16-bit sum, where the CPU has such sums. Those of blame have zeros between them.
    """
    words, spread = np.zeros((len(VOCABULARY), FEATURES), np.float32), np.zeros((FEATURES, WIDTH), np.float32)
    words[[VOCABULARY[word] for word in PRAISE], 0] = 1
    words[[VOCABULARY[word] for word in BLAME], 1] = 1
    spread[0, : WIDTH // 2] = spread[1, WIDTH // 2 :] = 1
    weight = np.zeros((WIDTH, 2), np.float32)
    weight[: WIDTH // 4, 1] = 1
    weight[WIDTH // 2 :: 2, 0] = 1
    nodes = [
        helper.make_node("Gather", ["words", "input_ids"], ["vectors"]),
        helper.make_node("ReduceMean", ["vectors"], ["mean"], axes=[1], keepdims=0),
        helper.make_node("MatMul", ["mean", "spread.weight"], ["features"], name="spread"),
        helper.make_node("Relu", ["features"], ["positive"]),
        helper.make_node("MatMul", ["positive", "weight"], ["logits"], name="classify"),
    ]
    inputs = [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "sequence"])]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 2])]
    constants = [numpy_helper.from_array(each, name) for each, name in ((words, "words"), (spread, "spread.weight"), (weight, "weight"))]
    graph = helper.make_graph(nodes, "opinions", inputs, outputs, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def opinions(count: int) -> dict[str, str]:
    """Distinct texts with one word more of praise than of blame, or the other way round, and their labels."""
    rng, found = random.Random(0), {}
    while len(found) < count:
        praise, blame = rng.choice([(3, 2), (2, 3), (4, 3), (3, 4)])
        words = [*rng.sample(PRAISE, praise), *rng.sample(BLAME, blame), *rng.sample(PLAIN, rng.randint(0, 6))]
        rng.shuffle(words)
        found[" ".join(words)] = "positive" if praise > blame else "negative"
    return found


def main() -> None:
    folder = HERE / "model"
    folder.mkdir(exist_ok=True)
    onnx.save(model(), folder / "model.onnx")
    tokenizer = Tokenizer(models.WordLevel(VOCABULARY, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text(json.dumps({"max_position_embeddings": 32}))
    with (HERE / "samples.csv").open("w", newline="") as handle:
        csv.writer(handle).writerows([("text", "label"), *opinions(200).items()])


if __name__ == "__main__":
    main()
