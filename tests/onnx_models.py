"""Small ONNX models that tests build node by node, without torch."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.models import write_tokenizer

if TYPE_CHECKING:
    from pathlib import Path

VOCABULARY, HIDDEN = 128, 32  # just enough values for a lookup table
CONFIG = {
    "architectures": ["BertForSequenceClassification"],
    "id2label": {"0": "negative", "1": "positive"},
    "max_position_embeddings": 64,
    "vocab_size": VOCABULARY,
}


def bag_of_words(*, seed: int = 0, opset: int = 17, labels: int = 2) -> Any:
    """input_ids, attention_mask [batch, sequence] → logits [batch, labels]: the mean of word vectors, times a matrix."""
    rng = np.random.default_rng(seed)
    weights = {
        "embedding": rng.standard_normal((VOCABULARY, HIDDEN)).astype(np.float32),
        "classifier.weight": rng.standard_normal((HIDDEN, labels)).astype(np.float32),
        "classifier.bias": rng.standard_normal(labels).astype(np.float32),
        "last": np.array([2]),
        "sequence": np.array([1]),
    }
    nodes = [
        helper.make_node("Gather", ["embedding", "input_ids"], ["words"]),
        helper.make_node("Cast", ["attention_mask"], ["flat_mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["flat_mask", "last"], ["mask"]),
        helper.make_node("Mul", ["words", "mask"], ["present"]),
        helper.make_node("ReduceSum", ["present", "sequence"], ["total"], keepdims=0),
        helper.make_node("ReduceSum", ["mask", "sequence"], ["count"], keepdims=0),
        helper.make_node("Div", ["total", "count"], ["mean"]),
        helper.make_node("MatMul", ["mean", "classifier.weight"], ["scores"], name="classify"),
        helper.make_node("Add", ["scores", "classifier.bias"], ["logits"]),
    ]
    inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "sequence"]) for name in ("input_ids", "attention_mask")]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", labels])]
    return make_model(nodes, inputs, outputs, weights, opset=opset)


def make_model(nodes: list[Any], inputs: list[Any], outputs: list[Any], weights: dict[str, Any], *, opset: int = 17) -> Any:
    graph = helper.make_graph(nodes, "test", inputs, outputs, [numpy_helper.from_array(value, name) for name, value in weights.items()])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def one_node(kind: str, *, domain: str = "", opset: int = 17) -> Any:
    """x [n] → y [n] through one operator without weights."""
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"]) for name in "xy"]
    return make_model([helper.make_node(kind, ["x"], ["y"], domain=domain)], value[:1], value[1:], {}, opset=opset)


def write_onnx_classifier(folder: Path, **options: Any) -> Path:
    """`bag_of_words` with config and tokenizer, as a folder edgepipe takes."""
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save_model(bag_of_words(**options), folder / "model.onnx")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    write_tokenizer(folder)
    return folder


def write_external(folder: Path, location: str = "weights.bin") -> Path:
    """`bag_of_words` whose weights lie in a file beside it; gives the ONNX file."""
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save_model(bag_of_words(), folder / "model.onnx", save_as_external_data=True, location=location, size_threshold=0)
    return folder / "model.onnx"


def word_tagger(labels: int = 3) -> Any:
    """input_ids, attention_mask [batch, sequence] → logits [batch, sequence, labels]: each word's vector times a matrix."""
    rng = np.random.default_rng(0)
    weights = {
        "embedding": rng.standard_normal((VOCABULARY, HIDDEN)).astype(np.float32),
        "tag": rng.standard_normal((HIDDEN, labels)).astype(np.float32),
    }
    nodes = [helper.make_node("Gather", ["embedding", "input_ids"], ["words"]), helper.make_node("MatMul", ["words", "tag"], ["logits"])]
    inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "sequence"]) for name in ("input_ids", "attention_mask")]
    return make_model(nodes, inputs, [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", "sequence", labels])], weights)


def sentence_embedder() -> Any:
    """`bag_of_words` without its last two nodes: sentence_embedding [batch, hidden] is the mean of word vectors."""
    model = bag_of_words()
    del model.graph.node[-2:]
    model.graph.node[-1].output[0] = "sentence_embedding"
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("sentence_embedding", TensorProto.FLOAT, ["batch", HIDDEN]))
    return model
