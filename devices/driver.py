"""Executes an artifact's program with numpy and onnxruntime only (tokenizers for text, Pillow for images).

The bundle's `run.py` and the device agent both use this file, so what is validated is what ships. It never
imports edgepipe. A folder it opens holds `artifact.json`, `<role>/…` and `assets/…`. Programs of several components or
with state have a file of their own beside this one: `stream.py`, `ocr.py`.
"""

import importlib.util
import json
import os

import numpy as np

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # onnxruntime's wheels (1.32) report to their maker otherwise

DTYPES = {
    "float32": np.float32, "float16": np.float16, "float64": np.float64, "int64": np.int64, "int32": np.int32,
    "int16": np.int16, "int8": np.int8, "uint8": np.uint8, "bool": np.bool_,
}  # fmt: skip


# What the runtime's optimiser fuses or rewrites; it passes over names that it does not have.
REWRITES = (
    "AttentionFusion", "BiasDropoutFusion", "BiasGeluFusion", "BiasSkipLayerNormFusion", "BiasSoftmaxFusion", "CastChainElimination",
    "CastElimination", "ClipQuantRewrite", "CommonSubexpressionElimination", "ConstantFolding", "ConstantSharing", "ConvActivationFusion",
    "ConvAddActivationFusion", "ConvAddFusion", "ConvBNFusion", "ConvMulFusion", "DivMulFusion", "DQMatMulNBitsFusion",
    "DynamicQuantizeMatMulFusion", "EmbedLayerNormFusion", "ExpandElimination", "FastGeluFusion", "FuseReluClip", "GatherSliceToSplitFusion",
    "GatherToSliceFusion", "GeluFusionL1", "GeluFusionL2", "GemmActivationFusion", "GemmSumFusion", "GemmTransposeFusion",
    "GroupQueryAttentionFusion", "LabelEncoderFusion", "LayerNormFusionL1", "LayerNormFusionL2", "MatMulActivationFusion", "MatMulAddFusion",
    "MatMulIntegerToFloatFusion", "MatMulNBitsFusion", "MatMulScaleFusion", "MatMul_BatchNormalization_Fusion", "MatmulTransposeFusion",
    "NhwcTransformer", "NoopElimination", "NotWhereFusion", "Pad_Fusion", "PreShapeNodeElimination", "QDQFinalCleanupTransformer",
    "QDQPropagationTransformer", "QDQSelectorActionTransformer", "QuickGeluFusion", "ReluQuantRewrite", "ReshapeFusion",
    "SimplifiedLayerNormFusion", "SkipLayerNormFusion", "SliceConcatToSpaceToDepthFusion", "SwiGluFusion", "TransposeOptimizer",
    "UnsqueezeElimination",
)  # fmt: skip


def open_session(path, threads=1, disabled_optimizers=(), optimise=True, exact=False):
    """An ONNX Runtime session on the CPU. Spinning is off: it steals time from whatever else the device does.

    `optimise=False` gives the plain session that every other one is compared with. `exact` has x86 without VNNI sum int8
    products in 32 bits, slower, as the CPUs do that it stands in for; its own kernels sum pairs in 16 bits first.
    """
    import onnxruntime

    options, disabled = session_options(threads, disabled_optimizers, optimise, exact)
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"], disabled_optimizers=disabled)


def session_options(threads, disabled_optimizers, optimise, exact):
    """The options of such a session, and the optimizers that are left out."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if exact:
        options.add_session_config_entry("session.x64quantprecision", "1")
    if not optimise and exact:  # weights become unsigned by a rewrite of the runtime's, so all others are left out by name
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        disabled_optimizers = REWRITES
    elif not optimise:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return options, list(disabled_optimizers)


class TextEncoder:
    """Text → input_ids, attention_mask, token_type_ids of shape [1, seq] (or [batch, seq], padded)."""

    def __init__(self, folder, settings, input_names):
        from tokenizers import Tokenizer

        path = os.path.join(folder, settings["tokenizer"])
        with open(path, encoding="utf-8") as handle:  # a device's locale may not be UTF-8
            self.tokenizer = Tokenizer.from_str(handle.read())
        self.tokenizer.no_padding()  # the file may ask for a fixed length, which wastes time on a device
        self.tokenizer.enable_truncation(max_length=settings["max_length"])
        self.pad_id = settings.get("pad_id", 0)
        self.length = settings.get("length", 0)  # of a graph that takes this length only
        self.dtype = DTYPES[settings.get("dtype", "int64")]
        self.split_words = settings.get("split_words", False)
        self.twin = settings.get("twin", False)
        self.input_names = input_names

    def parts(self, sample):
        """The encodings of one sample: two of them where a task compares two texts."""
        if self.split_words:
            return [self.tokenizer.encode(sample["tokens"], is_pretokenized=True)]
        if self.twin:
            return [self.tokenizer.encode(sample["text"]), self.tokenizer.encode(sample["text_pair"])]
        return [self.tokenizer.encode(sample["text"], sample.get("text_pair"))]

    def word_starts(self, sample):
        """Where each word's first piece stands in the sequence; words that were cut off have none.

        A word that the normaliser leaves nothing of (a zero-width space) shares the place of the next.
        """
        starts = []
        for index, word in enumerate(self.parts(sample)[0].word_ids):
            if word is not None:
                starts += [index] * (word + 1 - len(starts))
        return starts

    def feeds(self, encodings, length=None):
        width = max([length or 0, self.length] + [len(e.ids) for e in encodings])
        columns = {
            "input_ids": ([e.ids for e in encodings], self.pad_id),
            "attention_mask": ([e.attention_mask for e in encodings], 0),
            "token_type_ids": ([e.type_ids for e in encodings], 0),
        }
        result = {}
        for name in self.input_names:
            rows, fill = columns[name]
            result[name] = np.array([list(row) + [fill] * (width - len(row)) for row in rows], dtype=self.dtype)
        return result


class ImageEncoder:
    """Image file → pixel_values [1, channels, height, width] as `preprocessor_config.json` says."""

    def __init__(self, folder, settings, input_names):
        self.settings = settings
        self.input_name = input_names[0]

    def parts(self, sample):
        from PIL import Image

        config = self.settings
        channels = config.get("channels", 3)
        with Image.open(sample["image"]) as opened:
            image = opened.convert("RGB" if channels == 3 else "L")
        size = config.get("size", {})
        if config.get("do_resize", True) and size:
            image = image.resize(_target_size(image.size, size), config.get("resample", 2))
        if config.get("do_center_crop") and config.get("crop_size"):
            image = _center_crop(image, config["crop_size"])
        pixels = np.asarray(image, dtype=np.float32)
        pixels = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
        if config.get("do_rescale", True):
            pixels = pixels * np.float32(config.get("rescale_factor", 1 / 255))
        if config.get("do_normalize"):
            mean = np.array(config["image_mean"], dtype=np.float32)[:, None, None]
            std = np.array(config["image_std"], dtype=np.float32)[:, None, None]
            pixels = (pixels - mean) / std
        return [pixels]

    def feeds(self, encodings, length=None):
        return {self.input_name: np.stack(encodings).astype(np.float32)}


def _target_size(current, size):
    width, height = current
    if "shortest_edge" in size:  # the longer edge is rounded down, as transformers does
        wanted, shorter = size["shortest_edge"], min(width, height)
        return int(wanted * width / shorter), int(wanted * height / shorter)
    if "longest_edge" in size:
        scale = size["longest_edge"] / max(width, height)
        return int(width * scale), int(height * scale)
    return size["width"], size["height"]


def _center_crop(image, size):
    wide = size if isinstance(size, int) else size.get("width", size.get("shortest_edge"))
    high = size if isinstance(size, int) else size.get("height", size.get("shortest_edge"))
    left, top = (image.width - wide) // 2, (image.height - high) // 2
    return image.crop((left, top, left + wide, top + high))


class TensorEncoder:
    """Samples that are already tensors: {name: array} as the model takes them."""

    def __init__(self, folder, settings, input_names):
        self.input_names = input_names

    def parts(self, sample):
        return [sample["tensors"]]

    def feeds(self, encodings, length=None):
        if len(encodings) == 1:
            return {name: encodings[0][name] for name in self.input_names}
        return {name: np.concatenate([e[name] for e in encodings]) for name in self.input_names}


class PixelEncoder:
    """Image file → pixels [height, width, 3] in 0 to 255, as they are."""

    def __init__(self, folder, settings, input_names):
        pass

    def parts(self, sample):
        from PIL import Image

        with Image.open(sample["image"]) as opened:
            return [np.asarray(opened.convert("RGB"))]

    def feeds(self, encodings, length=None):
        return {"pixels": encodings[0]}


class AudioEncoder(TensorEncoder):
    """Audio file → {input: [steps, 1, context + chunk]}, what each step of a stream takes; tensors have these already."""

    def __init__(self, folder, settings, input_names):
        self.settings = settings
        self.input_names = input_names

    def parts(self, sample):
        if "tensors" in sample:
            return [sample["tensors"]]
        stream = neighbour("stream")
        return [{self.input_names[0]: stream.chunks(stream.read_audio(sample["audio"], self.settings["rate"]), self.settings)}]


ENCODERS = {"text": TextEncoder, "image": ImageEncoder, "tensors": TensorEncoder, "pixels": PixelEncoder, "audio": AudioEncoder}


def neighbour(name):
    """Another file of this folder as a module: this one may have been loaded by its path, without a place to import from."""
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), name + ".py")
    spec = importlib.util.spec_from_file_location("edgepipe_device_" + name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Single:
    """One model that a sample runs once, or once for each of its parts."""

    def __init__(self, program, sessions, folder, components):
        self.session = sessions[program["component"]]
        self.input_names = [i.name for i in self.session.get_inputs()]
        self.output_names = [o.name for o in self.session.get_outputs()]

    def run(self, feeds):
        return dict(zip(self.output_names, self.session.run(self.output_names, feeds)))


class Driver:
    """One opened artifact: `predict(sample)` from raw sample to outputs, `run(feeds)` for the model alone."""

    def __init__(self, folder, threads=None, optimise=True, exact=False):
        """`threads`: default as many as the bundle was validated with."""
        with open(os.path.join(folder, "artifact.json"), encoding="utf-8") as handle:
            artifact = json.load(handle)
        self.program = artifact["program"]
        threads = threads or artifact.get("threads", 1)
        stages = self.program.get("stages") or [self.program]
        sessions = {stage["component"]: self._open(folder, artifact, stage, threads, optimise, exact) for stage in stages}
        makers = {"single": lambda: Single, "stream": lambda: neighbour("stream").Stream, "pipeline": lambda: neighbour("ocr").Ocr}
        if self.program["kind"] not in makers:
            raise ValueError("this driver executes programs of kind " + ", ".join(makers) + ", not " + self.program["kind"])
        assets = os.path.join(folder, "assets")
        self.executor = makers[self.program["kind"]]()(self.program, sessions, assets, artifact["components"])
        settings = self.program["preprocess"]
        self.encoder = ENCODERS[settings["kind"]](assets, settings, self.executor.input_names)

    @staticmethod
    def _open(folder, artifact, stage, threads, optimise, exact):
        path = os.path.join(folder, stage["component"], artifact["components"][stage["component"]]["files"][0]["path"])
        return open_session(path, threads, stage.get("session", {}).get("disabled_optimizers", ()), optimise, exact)

    def encode(self, sample):
        """The feeds of one sample, a dict of arrays per run of the model."""
        return [self.encoder.feeds([part]) for part in self.encoder.parts(sample)]

    def encode_batch(self, samples, length=None):
        """One feed for several samples, padded to the longest or to `length`."""
        return self.encoder.feeds([part for sample in samples for part in self.encoder.parts(sample)], length)

    def run(self, feeds):
        return self.executor.run(feeds)

    def predict(self, sample):
        return [self.run(feeds) for feeds in self.encode(sample)]

    def answer(self, sample):
        """What a person wants to read: label and probability, a similarity, or the raw outputs."""
        outputs = self.predict(sample)
        if hasattr(self.executor, "answer"):
            return self.executor.answer(outputs[0])
        name, first = next(iter(outputs[0].items()))
        labels = self.program.get("labels")
        if len(outputs) == 2:
            a, b = (np.asarray(o[name], dtype=np.float64).ravel() for o in outputs)
            return {"similarity": float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b) + 1e-12))}
        if labels and first.ndim == 2:
            p = softmax(first[0])
            return {"label": labels[int(p.argmax())], "score": float(p.max())}
        if labels and first.ndim == 3:
            best = first[0].argmax(-1)
            starts = self.encoder.word_starts(sample)
            return {"tags": [[word, labels[int(best[i])]] for word, i in zip(sample["tokens"], starts)]}
        return {name: np.asarray(value).tolist() for name, value in outputs[0].items()}


def softmax(values):
    e = np.exp(values - values.max())
    return e / e.sum()
