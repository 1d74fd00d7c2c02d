"""The device agent: opens artifacts, runs samples and reports times. One request a line on stdin, one answer on
stdout, as JSON; arrays as {dtype, shape, data (base64)}. numpy and onnxruntime only; never imports edgepipe.

Requests: {"do": "open", folder, threads, optimise, exact} · {"do": "predict", samples} (encoding, model and total time
per sample) · {"do": "batch", samples, length} · {"do": "repeat", feeds, times} · {"do": "memory"}. It ends with its stdin.
"""

import base64
import io
import json
import os
import sys
import time

import numpy as np
from driver import DTYPES, Driver


def pack(array):
    shape = list(array.shape)  # before ascontiguousarray, which makes scalars one-dimensional
    data = base64.b64encode(np.ascontiguousarray(array).tobytes()).decode("ascii")
    return {"dtype": array.dtype.name, "shape": shape, "data": data}


def unpack(entry):
    return np.frombuffer(base64.b64decode(entry["data"]), dtype=DTYPES[entry["dtype"]]).reshape(entry["shape"])


def unpack_sample(sample):
    if "tensors" in sample:
        return {**sample, "tensors": {name: unpack(entry) for name, entry in sample["tensors"].items()}}
    for kind in ("image", "audio"):
        if kind + "_data" in sample:  # of a file that is not on this device
            return {**sample, kind: io.BytesIO(base64.b64decode(sample[kind + "_data"]))}
    return sample


def peak_bytes():
    """Peak resident memory of this process."""
    try:
        with open("/proc/self/status", encoding="ascii") as handle:
            for line in handle:
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def predict(driver, samples):
    results = []
    for sample in samples:
        sample = unpack_sample(sample)
        start = time.perf_counter_ns()
        feeds = driver.encode(sample)
        encoded = time.perf_counter_ns()
        outputs = [driver.run(one) for one in feeds]
        end = time.perf_counter_ns()
        result = {
            "outputs": [{name: pack(value) for name, value in one.items()} for one in outputs],
            "model_ns": end - encoded,
            "total_ns": end - start,
        }
        if "tokens" in sample:
            result["word_starts"] = driver.encoder.word_starts(sample)
        if "audio" in sample:
            result["step_seconds"] = driver.program["preprocess"]["chunk"] / driver.program["preprocess"]["rate"]
        results.append(result)
    return results


def repeat(driver, feeds, times):
    taken = []
    for _ in range(times):
        start = time.perf_counter_ns()
        driver.run(feeds)
        taken.append(time.perf_counter_ns() - start)
    return taken


def main():
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever a library prints must not come between the answers
    driver = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            do = request["do"]
            answer = {}
            if do == "open":
                driver = Driver(request["folder"], request["threads"], request["optimise"], request["exact"])
            elif do == "predict":
                answer = {"results": predict(driver, request["samples"])}
            elif do == "batch":
                feeds = driver.encode_batch([unpack_sample(s) for s in request["samples"]], request.get("length"))
                answer = {"outputs": {name: pack(value) for name, value in driver.run(feeds).items()}}
            elif do == "repeat":
                answer = {"times_ns": repeat(driver, {n: unpack(e) for n, e in request["feeds"].items()}, request["times"])}
            elif do == "memory":
                answer = {"peak_bytes": peak_bytes(), "cpu_s": time.process_time()}
        except Exception as error:  # the far side decides what to do about it
            answer = {"error": type(error).__name__ + ": " + str(error)}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
