"""Times small graphs against each other in this process: `python time_graphs.py FOLDER THREADS RUNS SECONDS`.

FOLDER holds `plan.json` ({groups: lists of numbers of graphs that are variants of each other, disabled_optimizers}), and
for every number `N.onnx` and `N.npz`. Variants take turns, so that what else the machine does meets all of them; on one
thread, only what the thread itself ran counts. Prints {number: nanoseconds of each run} as JSON. numpy and onnxruntime
only; never imports edgepipe.
"""

import json
import os
import sys
import time

import numpy as np
from driver import open_session

WARM = 3


def main(folder, threads, runs, seconds):
    with open(os.path.join(folder, "plan.json"), encoding="utf-8") as handle:
        plan = json.load(handle)
    clock = time.thread_time_ns if threads == 1 else time.perf_counter_ns
    found = {}
    for group in plan["groups"]:
        opened = [(number, *opened_graph(folder, number, threads, plan["disabled_optimizers"])) for number in group]
        times = {number: [] for number in group}
        end = time.perf_counter() + seconds * len(group)
        turn = 0
        while turn < runs + WARM or (time.perf_counter() < end and turn < 10 * runs):
            for number, session, feeds in opened:
                start = clock()
                session.run(None, feeds)
                if turn >= WARM:  # the first runs allocate
                    times[number].append(clock() - start)
            turn += 1
        found.update(times)
    print(json.dumps(found))


def opened_graph(folder, number, threads, disabled_optimizers):
    path = os.path.join(folder, str(number))
    with np.load(path + ".npz") as stored:
        feeds = {name[1:]: stored[name] for name in stored.files}
    try:
        return open_session(path + ".onnx", threads, disabled_optimizers), feeds
    except Exception as error:
        sys.exit(f"graph {number}: {error}")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]))
