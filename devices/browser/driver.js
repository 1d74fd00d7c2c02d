// Executes an artifact's program in a browser with onnxruntime-web, and tokenizers.js for text: the twin of driver.py.
//
// The bundle's page and the browser runner both use this file, so what is validated is what ships. A folder it opens
// holds `artifact.json`, `<role>/…` and `assets/…`. Images are not read here: they come as tensors.

import * as ort from "./ort.wasm.bundle.min.mjs";
import { Tokenizer } from "./tokenizers.min.mjs";

const ARRAYS = {
  float32: Float32Array, float64: Float64Array, int64: BigInt64Array, int32: Int32Array, int16: Int16Array,
  int8: Int8Array, uint8: Uint8Array, bool: Uint8Array, float16: globalThis.Float16Array ?? Uint16Array,
};

// A session on the CPU. Threads belong to the page, not the session, and spin while a model runs; they are told to stop
// when it has. `optimise: false` gives the plain session that every other one is compared with.
function sessionOptions(disabledOptimizers, optimise) {
  const extra = { session: { force_spinning_stop: "1" } };
  if (disabledOptimizers.length) extra.optimization = { disable_specified_optimizers: disabledOptimizers.join(";") };
  return { executionProviders: ["wasm"], graphOptimizationLevel: optimise ? "all" : "disabled", logSeverityLevel: 3, extra };
}

// Text → input_ids, attention_mask, token_type_ids of shape [1, seq] (or [batch, seq], padded).
export class TextEncoder {
  constructor(tokenizer, settings, inputNames) {
    this.layout = layoutOf(tokenizer.post_processor);
    this.tokenizer = new Tokenizer({ ...tokenizer, post_processor: null }, {});
    this.maxLength = settings.max_length;
    this.padId = settings.pad_id ?? 0;
    this.length = settings.length ?? 0; // of a graph that takes this length only
    this.dtype = settings.dtype ?? "int64";
    this.splitWords = settings.split_words ?? false;
    this.twin = settings.twin ?? false;
    this.inputNames = inputNames;
  }

  // The encodings of one sample: two of them where a task compares two texts.
  parts(sample) {
    if (this.splitWords) return [this.encodeWords(sample.tokens)];
    if (this.twin) return [this.encode(sample.text), this.encode(sample.text_pair)];
    return [this.encode(sample.text, sample.text_pair)];
  }

  encode(text, pair = null) {
    return this.assemble(this.ids(text).map((id) => [id, null]), pair === null ? null : this.ids(pair).map((id) => [id, null]));
  }

  encodeWords(words) {
    return this.assemble(words.flatMap((word, index) => this.ids(word).map((id) => [id, index])), null);
  }

  ids(text) {
    return this.tokenizer.encode(text, { add_special_tokens: false }).ids;
  }

  // Cut to the length that is left beside special tokens, the longer of two texts first; then special tokens put in.
  assemble(first, second) {
    const layout = second === null ? this.layout.single : this.layout.pair;
    const room = Math.max(0, this.maxLength - layout.filter((piece) => piece.special !== undefined).length);
    const [keptFirst, keptSecond] = truncated(first.length, second === null ? null : second.length, room);
    const sequences = { A: first.slice(0, keptFirst), B: second === null ? [] : second.slice(0, keptSecond) };
    const encoding = { ids: [], typeIds: [], wordIds: [] };
    for (const { special, sequence, type } of layout) {
      for (const [id, word] of special === undefined ? sequences[sequence] : [[special, null]]) {
        encoding.ids.push(id);
        encoding.typeIds.push(type);
        encoding.wordIds.push(word);
      }
    }
    return encoding;
  }

  // Where each word's first piece stands in the sequence; words that were cut off have none. A word that the
  // normaliser leaves nothing of (a zero-width space) shares the place of the next.
  wordStarts(sample) {
    const starts = [];
    this.parts(sample)[0].wordIds.forEach((word, index) => {
      while (word !== null && starts.length <= word) starts.push(index);
    });
    return starts;
  }

  feeds(encodings, length = 0) {
    const width = Math.max(length ?? 0, this.length, ...encodings.map((encoding) => encoding.ids.length));
    const columns = {
      input_ids: [(encoding) => encoding.ids, this.padId],
      attention_mask: [(encoding) => encoding.ids.map(() => 1), 0],
      token_type_ids: [(encoding) => encoding.typeIds, 0],
    };
    const result = {};
    for (const name of this.inputNames) {
      const [column, fill] = columns[name];
      const values = encodings.flatMap((encoding) => {
        const row = column(encoding);
        return row.concat(new Array(width - row.length).fill(fill));
      });
      result[name] = tensorOf(this.dtype, values, [encodings.length, width]);
    }
    return result;
  }
}

// How many of each sequence's tokens are kept, as the tokenizers library cuts: the longer first.
function truncated(first, second, room) {
  if (second === null) return [Math.min(first, room), null];
  if (first + second <= room) return [first, second];
  let [shorter, longer] = first > second ? [second, first] : [first, second];
  longer = shorter > room ? shorter : Math.max(shorter, room - shorter);
  if (shorter + longer > room) {
    shorter = Math.floor(room / 2);
    longer = shorter + (room % 2);
  }
  return first > second ? [longer, shorter] : [shorter, longer];
}

// Where special tokens and the sequences A and B go, for one text and for two: [{special: id, type}, {sequence, type}].
function layoutOf(processor) {
  const A = { sequence: "A", type: 0 };
  const B = { sequence: "B", type: 1 };
  if (!processor || processor.type === "ByteLevel") return { single: [A], pair: [A, B] };
  if (processor.type === "Sequence") {
    const telling = processor.processors.filter((one) => one.type !== "ByteLevel");
    if (telling.length > 1) throw new Error("the tokenizer's post-processor is a sequence that this driver does not know");
    return layoutOf(telling[0]);
  }
  if (processor.type === "TemplateProcessing") {
    const piece = (one) =>
      one.Sequence
        ? [{ sequence: one.Sequence.id, type: one.Sequence.type_id }]
        : processor.special_tokens[one.SpecialToken.id].ids.map((id) => ({ special: id, type: one.SpecialToken.type_id }));
    return { single: processor.single.flatMap(piece), pair: processor.pair.flatMap(piece) };
  }
  const cls = { special: processor.cls?.[1], type: 0 };
  const sep = { special: processor.sep?.[1], type: 0 };
  if (processor.type === "BertProcessing") return { single: [cls, A, sep], pair: [cls, A, sep, B, { ...sep, type: 1 }] };
  if (processor.type === "RobertaProcessing") return { single: [cls, A, sep], pair: [cls, A, sep, sep, { ...B, type: 0 }, sep] };
  throw new Error(`the tokenizer's post-processor is ${processor.type}, which this driver does not know`);
}

// Samples that are already tensors: {name: tensor} as the model takes them.
class TensorEncoder {
  constructor(inputNames) {
    this.inputNames = inputNames;
  }

  parts(sample) {
    return [sample.tensors];
  }

  feeds(encodings) {
    if (encodings.length > 1) throw new Error("tensors go one sample at a time");
    return Object.fromEntries(this.inputNames.map((name) => [name, encodings[0][name]]));
  }
}

export function tensorOf(dtype, values, dims) {
  const Kind = ARRAYS[dtype];
  if (!Kind) throw new Error(`no ${dtype} tensors in a browser`);
  return new ort.Tensor(dtype, Kind === BigInt64Array ? BigInt64Array.from(values, BigInt) : Kind.from(values), dims);
}

export function tensorFromBytes(dtype, bytes, dims) {
  const Kind = ARRAYS[dtype];
  if (!Kind) throw new Error(`no ${dtype} tensors in a browser`);
  return new ort.Tensor(dtype, new Kind(bytes.buffer, bytes.byteOffset, bytes.byteLength / Kind.BYTES_PER_ELEMENT), dims);
}

export class Driver {
  // Open the artifact that lies under the URL `base`. `threads`: default as many as the bundle was validated with, and
  // no more than this machine has; without cross-origin isolation there is one. `progress(done, total)` counts bytes.
  static async open(base, { threads = null, optimise = true, progress = () => {} } = {}) {
    const artifact = await (await get(new URL("artifact.json", base))).json();
    const program = artifact.program;
    if (program.kind !== "single") throw new Error(`this driver executes programs of kind single, not ${program.kind}`);
    const component = artifact.components[program.component];
    const settings = program.preprocess;
    const driver = new Driver();
    driver.program = program;
    driver.threads = globalThis.crossOriginIsolated ? threads || Math.min(artifact.threads ?? 1, navigator.hardwareConcurrency) : 1;
    ort.env.wasm.numThreads = driver.threads;
    ort.env.logLevel = "error";
    const total = component.files.reduce((sum, file) => sum + file.bytes, 0);
    driver.bytes = total;
    let done = 0;
    const files = [];
    for (const file of component.files) {
      files.push(await download(new URL(`${program.component}/${file.path}`, base), file.bytes, (bytes) => progress((done += bytes), total)));
    }
    const options = sessionOptions(program.session?.disabled_optimizers ?? [], optimise);
    if (files.length > 1) {
      options.externalData = files.slice(1).map((data, index) => ({ path: component.files[index + 1].path, data }));
    }
    driver.session = await ort.InferenceSession.create(files[0], options);
    driver.inputNames = [...driver.session.inputNames];
    driver.outputNames = [...driver.session.outputNames];
    if (settings.kind === "text") {
      const tokenizer = await (await get(new URL(`assets/${settings.tokenizer}`, base))).json();
      driver.encoder = new TextEncoder(tokenizer, settings, driver.inputNames);
    } else {
      driver.encoder = new TensorEncoder(driver.inputNames);
    }
    return driver;
  }

  // The feeds of one sample, one per run of the model.
  encode(sample) {
    return this.encoder.parts(sample).map((part) => this.encoder.feeds([part]));
  }

  // One feed for several samples, padded to the longest or to `length`.
  encodeBatch(samples, length) {
    return this.encoder.feeds(samples.flatMap((sample) => this.encoder.parts(sample)), length);
  }

  async run(feeds) {
    return await this.session.run(feeds);
  }

  async predict(sample) {
    const outputs = [];
    for (const feeds of this.encode(sample)) outputs.push(await this.run(feeds));
    return outputs;
  }

  // What a person wants to read: label and probability, a similarity, or the raw outputs.
  async answer(sample) {
    const outputs = await this.predict(sample);
    const first = outputs[0][this.outputNames[0]];
    const labels = this.program.labels;
    if (outputs.length === 2) return { similarity: cosine(first.data, outputs[1][this.outputNames[0]].data) };
    if (labels && first.dims.length === 2) {
      const scores = softmax(first.data);
      const best = argmax(scores);
      return { label: labels[best], score: scores[best], scores: Object.fromEntries(labels.map((label, index) => [label, scores[index]])) };
    }
    if (labels && first.dims.length === 3) {
      const width = first.dims[2];
      const starts = this.encoder.wordStarts(sample);
      return { tags: starts.map((at, index) => [sample.tokens[index], labels[argmax(first.data.subarray(at * width, (at + 1) * width))]]) };
    }
    return Object.fromEntries(Object.entries(outputs[0]).map(([name, value]) => [name, Array.from(value.data, Number)]));
  }
}

async function get(url) {
  const response = await fetch(url);
  if (!response.ok) throw new Error(`${url.pathname} cannot be read: ${response.status}`);
  return response;
}

async function download(url, bytes, count) {
  const whole = new Uint8Array(bytes);
  let at = 0;
  const reader = (await get(url)).body.getReader();
  for (;;) {
    const { done, value } = await reader.read();
    if (done) break;
    if (at + value.length > bytes) throw new Error(`${url.pathname} is longer than artifact.json says`);
    whole.set(value, at);
    at += value.length;
    count(value.length);
  }
  if (at !== bytes) throw new Error(`${url.pathname} is cut off`);
  return whole;
}

function softmax(values) {
  const highest = values.reduce((a, b) => Math.max(a, b), -Infinity);
  const powers = Array.from(values, (value) => Math.exp(value - highest));
  const sum = powers.reduce((a, b) => a + b, 0);
  return powers.map((power) => power / sum);
}

function argmax(values) {
  return values.reduce((best, value, index) => (value > values[best] ? index : best), 0);
}

function cosine(a, b) {
  let [dot, aa, bb] = [0, 0, 0];
  for (let i = 0; i < a.length; i++) {
    dot += a[i] * b[i];
    aa += a[i] * a[i];
    bb += b[i] * b[i];
  }
  return dot / (Math.sqrt(aa) * Math.sqrt(bb) + 1e-12);
}
