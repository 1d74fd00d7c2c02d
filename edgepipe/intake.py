"""Models in: looks at what the user names (folder, ONNX file, hub name) and makes the artifact that enters a build."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgepipe.artifact import Artifact, Component, FileRef, safe_relative, sha256_file
from edgepipe.errors import DeviceError, ModelError, UsageError
from edgepipe.preprocess import preprocessing
from edgepipe.streams import with_state
from edgepipe.weights import check_finite, check_onnx_finite, load_onnx, onnx_component, read_json, safetensors_header

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgepipe.config import Data
    from edgepipe.parts import Stream
    from edgepipe.tasks import TaskSpec

ASSETS = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "preprocessor_config.json", "generation_config.json")


@dataclass(frozen=True, slots=True)
class Source:
    """What the user named, found on disk."""

    folder: Path
    onnx: str | None  # name of the ONNX file in `folder`; None for a torch model
    config: dict[str, Any]

    @property
    def labels(self) -> tuple[str, ...]:
        """Label names in output order, when the config of a model with a head says them."""
        names = self.config.get("id2label") or {}
        headed = any("Classification" in name for name in self.config.get("architectures") or ())
        if not headed:
            return ()
        try:
            return tuple(str(names[key]) for key in sorted(names, key=int))
        except (TypeError, ValueError):
            raise ModelError(
                '"id2label" does not number the labels', where=str(self.folder / "config.json"), fix='write it as {"0": "first label", …}'
            ) from None


def find_source(model: str) -> Source:
    """Find what `model` names. Raises `ModelError` saying what was looked for and not found."""
    path = _from_hub(model) if model.startswith("hf://") else Path(model)
    if not path.exists():
        raise ModelError("no such model", where=model, fix="name a model folder or an ONNX file")
    if path.is_file():
        if path.suffix != ".onnx":
            raise ModelError(
                f'a "{path.suffix}" file alone is no model',
                where=model,
                fix="name the folder that holds config.json and the weights, or an .onnx file",
            )
        return Source(path.parent, path.name, _config(path.parent))
    if (path / "config.json").is_file() and weight_files(path):
        return Source(path, None, _config(path))
    graphs = sorted(path.glob("*.onnx"))
    if len(graphs) == 1:
        return Source(path, graphs[0].name, _config(path))
    if graphs:
        raise ModelError(f"the folder holds {len(graphs)} ONNX files", where=model, fix=f"name one: {', '.join(g.name for g in graphs)}")
    if (path / "adapter_config.json").is_file():
        raise ModelError(
            "the folder is an adapter, not a model", where=model, fix="name its base as the model and this folder with --adapter"
        )
    if (path / "config.json").is_file():
        raise ModelError(_no_weights(path), where=model, fix="save it again with safetensors: model.save_pretrained(folder)")
    raise ModelError(
        "the folder holds neither config.json with weights nor an ONNX file", where=model, fix="name the folder that save_pretrained wrote"
    )


def _no_weights(path: Path) -> str:
    pickles = [p.name for p in path.iterdir() if p.suffix in (".pkl", ".pickle", ".pt", ".pth")]
    if pickles:
        return f"the weights are pickled ({', '.join(sorted(pickles))}), which edgepipe never opens: unpickling runs code"
    return "the folder has config.json but no weights (model.safetensors or pytorch_model.bin)"


def weight_files(folder: Path) -> list[str]:
    """Names of the weight files, safetensors before .bin, shards by their index."""
    for index, single in (("model.safetensors.index.json", "model.safetensors"), ("pytorch_model.bin.index.json", "pytorch_model.bin")):
        if (folder / index).is_file():
            shards = _shards(folder / index)
            missing = [shard for shard in shards if not (folder / shard).is_file()]
            if missing:
                raise ModelError(
                    f"shards of the weights are missing: {', '.join(missing)}", where=str(folder), fix="download the folder again"
                )
            return [index, *shards]
        if (folder / single).is_file():
            return [single]
    return []


def _shards(index: Path) -> list[str]:
    """The files a weights index names, sorted; all in its folder."""
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
        raise ModelError('"weight_map" does not name a file for each tensor', where=str(index), fix="copy or download the file again")
    return sorted({safe_relative(name) for name in places.values()})


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    return read_json(path) if path.is_file() else {}


def _from_hub(name: str) -> Path:
    """`hf://org/name@revision` into EDGEPIPE_CACHE/downloads/hf, once; offline afterwards."""
    from edgepipe.store import cache_root

    repository, _, revision = name.removeprefix("hf://").partition("@")
    if not revision or repository.count("/") != 1:
        raise UsageError(
            "a hub model needs its revision", where=name, fix="write hf://org/name@revision, so that the build can be repeated"
        )
    target = cache_root() / "downloads" / "hf" / repository / revision
    if target.is_dir():
        return target
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise UsageError("hub models need huggingface_hub", where=name, fix="pip install 'edgepipe[torch]'") from None
    part = target.with_name(target.name + ".part")
    try:
        snapshot_download(repository, revision=revision, local_dir=part, ignore_patterns=["*.h5", "*.msgpack", "*.ot", "*.py"])
    except Exception as error:  # the hub client has dozens of exception types; all mean the same to the user
        raise DeviceError(
            f"the hub did not give the model: {str(error).splitlines()[0]}", where=name, fix="check the name, the revision and the network"
        ) from None
    part.rename(target)
    return target


def make_artifact(
    source: Source,
    adapters: Sequence[str],
    task: TaskSpec,
    labels: tuple[str, ...],
    data: Data,
    factory: str | None,
    stream: Stream | None = None,
) -> Artifact:
    """The artifact that enters the build. Its files still lie where the user has them."""
    component = _onnx(source, task, labels) if source.onnx else _torch(source, task, labels, factory)
    components = {"model": component}
    for number, adapter in enumerate(adapters):
        components["adapter" if number == 0 else f"adapter_{number:03d}"] = _adapter(Path(adapter))
    assets = [FileRef.of(source.folder, name) for name in ASSETS if (source.folder / name).is_file()]
    preprocess, extra = preprocessing(source.folder, source.config, component, task, data)
    program: dict[str, Any] = {"kind": "single", "component": "model", "task": task.name, "preprocess": preprocess}
    if source.onnx and preprocess["kind"] == "tensors":
        components["model"], program = with_state(component, program, stream, data)
    if labels:
        program["labels"] = list(labels)
    if source.config.get("model_type"):
        program["family"] = source.config["model_type"]
    if factory:
        file, _, function = factory.rpartition(":")
        if not Path(file).is_file() or not function:
            raise UsageError(
                "the model factory is not FILE.py:function", where=factory, fix="for example --model-factory build.py:make_model"
            )
        program["factory"] = {"file": file, "function": function, "sha256": sha256_file(Path(file))}
    artifact = Artifact(components, tuple(assets + extra), program)
    if source.onnx and preprocess["kind"] == "image":
        _check_image_size(artifact)
    return artifact


def _check_image_size(artifact: Artifact) -> None:
    """The preprocessor must make images of the size that the graph is fixed to, where it is."""
    from edgepipe.probes import image_shape

    entry, made = artifact.model.signature["inputs"][0], image_shape(artifact, 1)
    size = artifact.program["preprocess"].get("size") or {}
    known = 4 if "height" in size or artifact.program["preprocess"].get("do_center_crop") else 2  # a shortest edge leaves the other open
    pairs = zip(entry["shape"][1:known], made[1:known], strict=False)
    if len(entry["shape"]) != 4 or any(want != have for want, have in pairs if isinstance(want, int)):
        raise ModelError(
            f'"{entry["name"]}" is {entry["shape"]}, but the preprocessor makes {list(made)}',
            where=str(artifact.model.main_file),
            fix="set size, crop_size and the channels of image_mean in preprocessor_config.json as the model was exported",
        )


def _onnx(source: Source, task: TaskSpec, labels: tuple[str, ...]) -> Component:
    assert source.onnx is not None
    path = source.folder / source.onnx
    check_onnx_finite(load_onnx(path), path)
    component: Component = onnx_component(source.folder, source.onnx)
    shape = component.signature["outputs"][0]["shape"] if component.signature["outputs"] else []
    if labels and task.name.endswith("classification") and shape and isinstance(shape[-1], int) and shape[-1] != len(labels):
        raise UsageError(
            f"{len(labels)} labels are named, but the model has {shape[-1]} outputs",
            where=str(path),
            fix="name one label an output, in their order, with [task] labels",
        )
    return component


def _torch(source: Source, task: TaskSpec, labels: tuple[str, ...], factory: str | None) -> Component:
    names = ["config.json", *weight_files(source.folder)]
    names += [
        n for n in ("structure.json", "modules.json", "sentence_bert_config.json", "1_Pooling/config.json") if (source.folder / n).is_file()
    ]
    parameters = 0
    for name in names:
        if name.endswith(".safetensors"):
            infos = safetensors_header(source.folder / name)
            if not infos:
                raise ModelError("the weights file holds no tensors", where=str(source.folder / name), fix="save the model again")
            check_finite(source.folder / name, infos)
            parameters += sum(info.parameters for info in infos)
    config = source.config
    if not config.get("model_type") and not factory:
        raise ModelError(
            'config.json names no "model_type"',
            where=str(source.folder / "config.json"),
            fix="an architecture of your own needs --model-factory FILE.py:function",
        )
    return Component("torch", tuple(FileRef.of(source.folder, name) for name in names), _torch_signature(source, task, labels), parameters)


def _torch_signature(source: Source, task: TaskSpec, labels: tuple[str, ...]) -> dict[str, Any]:
    config = source.config
    if task.name == "image-classification" or ("vocab_size" not in config and (source.folder / "preprocessor_config.json").is_file()):
        return {
            "inputs": [{"name": "pixel_values", "dtype": "float32", "shape": ["batch", "channels", "height", "width"]}],
            "outputs": [{"name": "logits", "dtype": "float32", "shape": ["batch", len(labels)]}],
        }
    names = ["input_ids", "attention_mask"]
    if config.get("type_vocab_size", 0) > 1:  # RoBERTa-like models have one type only and do without
        names.append("token_type_ids")
    output = {
        "text-classification": ("logits", ["batch", len(labels)]),
        "token-classification": ("logits", ["batch", "sequence", len(labels)]),
        "sentence-similarity": ("sentence_embedding", ["batch", config.get("hidden_size", "?")]),
    }
    name, shape = output.get(task.name, ("output", ["batch", "?"]))
    return {
        "inputs": [{"name": n, "dtype": "int64", "shape": ["batch", "sequence"]} for n in names],
        "outputs": [{"name": name, "dtype": "float32", "shape": shape}],
    }


def _adapter(folder: Path) -> Component:
    config = folder / "adapter_config.json"
    if not config.is_file():
        raise ModelError(
            "the folder holds no adapter_config.json", where=str(folder), fix="name the folder that peft's save_pretrained wrote"
        )
    weights = folder / "adapter_model.safetensors"
    if not weights.is_file():
        pickled = (folder / "adapter_model.bin").is_file()
        what = "the adapter's weights are pickled (adapter_model.bin)" if pickled else "the adapter has no adapter_model.safetensors"
        raise ModelError(what, where=str(folder), fix="save it again with peft's save_pretrained (safetensors)")
    kind = read_json(config).get("peft_type", "")
    if kind != "LORA":
        raise ModelError(f'adapters of type "{kind}" cannot be merged', where=str(config), fix="LoRA adapters (with DoRA, rsLoRA) can")
    infos = safetensors_header(weights)
    check_finite(weights, infos)
    files = (FileRef.of(folder, "adapter_config.json"), FileRef.of(folder, "adapter_model.safetensors"))
    return Component("peft", files, {"inputs": [], "outputs": []}, sum(info.parameters for info in infos))
