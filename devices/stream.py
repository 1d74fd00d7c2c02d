"""A model with state, run step by step: what it gives as state goes in again at the next step.

The voice-activity programs of Silero VAD (github.com/snakers4/silero-vad, `OnnxWrapper`) are such streams: 512 samples a
step at 16 kHz, behind the last 64 of the step before. numpy and the standard library only.
"""

import wave

import numpy as np

SPEECH = 0.5  # probability from which a step counts as speech
DTYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64, "tensor(int64)": np.int64,
          "tensor(int32)": np.int32, "tensor(bool)": np.bool_}  # fmt: skip


def read_audio(source, rate):
    """Samples of a .wav file in -1 to 1, [n] float32: 16-bit PCM, one channel, at this rate; ValueError for anything else."""
    with open_audio(source, rate) as opened:
        data = opened.readframes(opened.getnframes())
    return np.frombuffer(data[: len(data) // 2 * 2], dtype="<i2").astype(np.float32) / np.float32(32768)


def open_audio(source, rate):
    """The .wav file, opened; ValueError where it is none that `read_audio` reads."""
    try:
        opened = wave.open(source if hasattr(source, "read") else str(source), "rb")  # noqa: SIM115  the caller closes it
    except (wave.Error, EOFError) as error:
        raise ValueError("not a readable .wav file of 16-bit PCM: " + (str(error) or "it ends too early")) from None
    channels, width, own = opened.getparams()[:3]
    problem = ""
    if channels != 1 or width != 2:
        problem = f"the audio has {channels} channels of {8 * width} bits; the model takes one of 16 bits"
    elif own != rate:
        problem = f"the audio has {own} samples a second, and the model takes {rate}: resample it"
    if problem:
        opened.close()
        raise ValueError(problem)
    return opened


def chunks(audio, settings):
    """[steps, 1, context + chunk]: the audio cut into chunks, each behind the end of the one before; silence where there is none."""
    chunk, context = settings["chunk"], settings.get("context", 0)
    steps = max(1, -(-len(audio) // chunk))
    padded = np.zeros(context + steps * chunk, dtype=np.float32)
    padded[context : context + len(audio)] = audio
    return np.stack([padded[step * chunk : step * chunk + context + chunk] for step in range(steps)])[:, None]


class Stream:
    """Runs one model over steps. Feeds have a leading time axis, [steps, …]; so have its outputs; the state starts anew."""

    def __init__(self, program, sessions, folder, components):
        self.role = program["component"]
        self.session = sessions[self.role]
        self.settings = program["preprocess"]
        self.observe = None  # called with (role, feeds) of every step: how inputs are recorded
        inputs = {entry.name: entry for entry in self.session.get_inputs()}
        state = components[self.role]["state"]
        self.pairs = [(entry["input"], entry["output"]) for entry in state]
        self.first = {entry["input"]: initial(inputs[entry["input"]], entry) for entry in state}
        constants = program.get("constants", {})
        self.fixed = {name: np.array(value, DTYPES[inputs[name].type]) for name, value in constants.items() if name in inputs}
        self.input_names = [name for name in inputs if name not in self.first and name not in self.fixed]
        self.all_outputs = [entry.name for entry in self.session.get_outputs()]
        carried = {output for _, output in self.pairs}
        self.output_names = [name for name in self.all_outputs if name not in carried]

    def run(self, feeds):
        steps = {len(value) for value in feeds.values()}
        if len(steps) != 1:
            raise ValueError(f"the inputs of a stream have unlike numbers of steps: {sorted(steps)}")
        state, found = dict(self.first), []
        for step in range(steps.pop()):
            given = {**{name: feeds[name][step] for name in self.input_names}, **self.fixed, **state}
            if self.observe:
                self.observe(self.role, given)
            outputs = dict(zip(self.all_outputs, self.session.run(self.all_outputs, given)))
            state = {source: outputs[output] for source, output in self.pairs}
            found.append(outputs)
        return {name: np.stack([outputs[name] for outputs in found]) for name in self.output_names}

    def answer(self, outputs):
        """Where there is speech, in seconds, of audio; else what every step gave."""
        if self.settings["kind"] != "audio" or len(outputs) != 1:
            return {name: value.tolist() for name, value in outputs.items()}
        values = next(iter(outputs.values()))
        if values.size != len(values):
            return {name: value.tolist() for name, value in outputs.items()}
        return {"speech": spans(values.ravel() >= SPEECH, self.settings["chunk"] / self.settings["rate"])}


def spans(active, seconds):
    """[[start, end], …] of the runs of active steps that last `seconds` each."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], active, [False]]).astype(np.int8)))
    return [[round(float(start * seconds), 3), round(float(end * seconds), 3)] for start, end in zip(edges[::2], edges[1::2])]


def initial(entry, state):
    """The state before the first step; a dimension without a size is 1, and 0 where the state grows."""
    shape = [size if isinstance(size, int) and size > 0 else 1 for size in entry.shape]
    if state.get("grows_along") is not None:
        shape[state["grows_along"]] = 0
    return np.full(shape, state.get("initial", 0), DTYPES[entry.type])
