// The device agent in a page: opens artifacts, runs samples and reports times, as agent.py does. The runner calls
// `agent.ask(request)`, which resolves to an answer; arrays are {dtype, shape, data (base64)}.
//
// Requests: {do: "open", base, threads, optimise} · {do: "predict", samples} (encoding, model and total time per sample) ·
// {do: "batch", samples, length} · {do: "repeat", feeds, times} · {do: "memory"}.

// The runtime does not show its memory; it is caught where it is made. WebAssembly memory never shrinks, so its size
// at any time is its peak so far.
const memories = [];
const PlainMemory = WebAssembly.Memory;
WebAssembly.Memory = class extends PlainMemory {
  constructor(descriptor) {
    super(descriptor);
    memories.push(this);
  }
};

const { Driver, tensorFromBytes } = await import("./driver.js");
let driver = null;

function pack(tensor) {
  const { buffer, byteOffset, byteLength } = tensor.data;
  const bytes = new Uint8Array(buffer, byteOffset, byteLength);
  let text = "";
  for (let at = 0; at < bytes.length; at += 0x8000) text += String.fromCharCode(...bytes.subarray(at, at + 0x8000));
  return { dtype: tensor.type, shape: tensor.dims, data: btoa(text) };
}

function unpack(entry) {
  return tensorFromBytes(entry.dtype, Uint8Array.from(atob(entry.data), (letter) => letter.charCodeAt(0)), entry.shape);
}

const each = (entries, change) => Object.fromEntries(Object.entries(entries).map(([name, value]) => [name, change(value)]));
const unpackSample = (sample) => (sample.tensors ? { ...sample, tensors: each(sample.tensors, unpack) } : sample);
const nanoseconds = (milliseconds) => Math.round(milliseconds * 1e6);

async function predict(sample) {
  sample = unpackSample(sample);
  const start = performance.now();
  const feeds = driver.encode(sample);
  const encoded = performance.now();
  const outputs = [];
  for (const one of feeds) outputs.push(await driver.run(one));
  const end = performance.now();
  const result = {
    outputs: outputs.map((one) => each(one, pack)),
    model_ns: nanoseconds(end - encoded),
    total_ns: nanoseconds(end - start),
  };
  if (sample.tokens) result.word_starts = driver.encoder.wordStarts(sample);
  return result;
}

const ANSWERS = {
  async open({ base, threads, optimise }) {
    if (!crossOriginIsolated) throw new Error("the page is not cross-origin isolated, so there would be no threads");
    driver = await Driver.open(new URL(base, location), { threads, optimise });
    return { threads: driver.threads };
  },
  async predict({ samples }) {
    const results = [];
    for (const sample of samples) results.push(await predict(sample));
    return { results };
  },
  async batch({ samples, length }) {
    return { outputs: each(await driver.run(driver.encodeBatch(samples.map(unpackSample), length)), pack) };
  },
  async repeat({ feeds, times }) {
    const unpacked = each(feeds, unpack);
    const taken = [];
    for (let i = 0; i < times; i++) {
      const start = performance.now();
      await driver.run(unpacked);
      taken.push(nanoseconds(performance.now() - start));
    }
    return { times_ns: taken };
  },
  async memory() {
    return { wasm_bytes: memories.reduce((sum, memory) => sum + memory.buffer.byteLength, 0) };
  },
};

globalThis.agent = {
  async ask(request) {
    try {
      return await ANSWERS[request.do](request);
    } catch (error) {
      return { error: `${error?.name ?? "Error"}: ${error?.message ?? error}` }; // the far side decides what to do about it
    }
  },
};
