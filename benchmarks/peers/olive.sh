#!/usr/bin/env bash
# Olive 0.13: conversion → transformer fusion → dynamic int8 of a model folder, in an environment of its own.
# Usage: olive.sh MODEL_DIR OUT_DIR [TASK]. Prints one JSON line: wall_s, peak_rss_bytes, bytes, model.
set -euo pipefail
model=$(realpath "$1") out=$(mkdir -p "$2" && realpath "$2") task=${3:-feature-extraction}
home=${EDGEPIPE_CACHE:-$HOME/.cache/edgepipe}/peers/olive
if [ ! -f "$home/.ready" ]; then
  mkdir -p "$home"
  python3 -m venv "$home/venv"
  "$home/venv/bin/pip" install -q olive-ai==0.13.0 torch==2.13.0 transformers==4.57.6 onnxruntime==1.32.0 onnxscript datasets requests >&2
  touch "$home/.ready"
fi
rm -rf "${out:?}"/* "$home/cache"
cat > "$home/run.json" <<JSON
{
  "input_model": {"type": "HfModel", "model_path": "$model", "task": "$task"},
  "systems": {"local": {"type": "LocalSystem", "accelerators": [{"device": "cpu", "execution_providers": ["CPUExecutionProvider"]}]}},
  "passes": {
    "conversion": {"type": "OnnxConversion", "target_opset": 17, "use_dynamo_exporter": false},
    "fusion": {"type": "OrtTransformersOptimization", "model_type": "bert", "opt_level": 0, "num_heads": 12, "hidden_size": 384},
    "quantization": {"type": "OnnxDynamicQuantization", "weight_type": "QInt8"}
  },
  "host": "local", "target": "local", "output_dir": "$out", "cache_dir": "$home/cache", "no_artifacts": true, "evaluate_input_model": false
}
JSON
cd "$home"
HF_HUB_OFFLINE=1 python3 - "$home" "$out" <<'PY'
import glob, json, os, resource, subprocess, sys, time
home, out = sys.argv[1:]
start = time.time()
done = subprocess.run([f"{home}/venv/bin/olive", "run", "--config", f"{home}/run.json"], capture_output=True, text=True)
wall = time.time() - start
models = glob.glob(f"{out}/**/*.onnx", recursive=True)
if done.returncode or not models:
    sys.exit("olive failed:\n" + done.stderr[-2000:])
print(json.dumps({"wall_s": round(wall, 1), "peak_rss_bytes": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024,
                  "bytes": os.path.getsize(models[0]), "model": models[0]}))
PY
