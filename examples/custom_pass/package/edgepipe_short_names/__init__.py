"""A pass of one's own: give every node and inner tensor of the graph a short name; the file shrinks, nothing else changes."""

from pathlib import Path

import onnx

import edgepipe


class ShortNames(edgepipe.PassOptions):
    prefix: str = "t"


@edgepipe.register_pass(
    "short-names",
    takes={"model": "onnx"},
    gives={"model": "onnx"},
    options=ShortNames,
    after=("export-onnx", "optimize-graph", "quantize-dynamic"),
    checks=(edgepipe.Check("equal-outputs", 0.0), edgepipe.Check("same-signature")),
)
def short_names(artifact, options, ctx):
    """Give nodes and inner tensors short names."""
    graph = (model := onnx.load(artifact.model.main_file)).graph
    kept = {value.name for value in (*graph.input, *graph.output)} | {""}
    names = {}
    for name in [*(t.name for t in graph.initializer), *(out for node in graph.node for out in node.output)]:
        names.setdefault(name, name if name in kept else f"{options.prefix}{len(names)}")
    for tensor in graph.initializer:
        tensor.name = names[tensor.name]
    for node in graph.node:
        node.name = node.doc_string = ""
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names[name] for name in node.output]
    del graph.value_info[:]
    (folder := Path(ctx.workdir, "model")).mkdir()
    onnx.save(model, folder / "model.onnx")
    return artifact.with_component("model", edgepipe.onnx_component(folder))
