"""Marks one inference for the instruction-counting plugin, inside the emulated Python (numpy and onnxruntime only).

    python count_nodes.py MODEL FEEDS.npz PROFILE_PREFIX [--optimised FILE] [DISABLED_OPTIMIZER …]

Two measured runs: with the runtime's profiler, whose clock reads are the borders of nodes, then without it, for a
total free of the profiler's own work. Prints the path of the profile; the graph that the runtime made of the model goes
to FILE. Only together with `emulation/count.c`.
"""

import os
import sys

MARK_FD = 31415  # as in emulation/count.c: the plugin sees the call, the kernel refuses it
WARM, BEGIN, END = 1, 2, 3


def mark(code):
    try:
        os.write(MARK_FD, b"x" * code)
    except OSError:
        pass


def open_profiled(model, prefix, optimised, disabled_optimizers):
    import onnxruntime

    options = onnxruntime.SessionOptions()  # as `open_session` of driver.py, on one thread
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.enable_profiling = True
    options.profile_file_prefix = prefix
    if optimised:
        options.optimized_model_filepath = optimised
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"], disabled_optimizers=list(disabled_optimizers))


def main(model, feeds_path, prefix, *disabled_optimizers):
    import numpy as np

    with np.load(feeds_path) as stored:
        feeds = {name[1:]: stored[name] for name in stored.files}
    optimised = ""
    if disabled_optimizers[:1] == ("--optimised",):
        optimised, *disabled_optimizers = disabled_optimizers[1:]
    session = open_profiled(model, prefix, optimised, disabled_optimizers)
    mark(WARM)
    session.run(None, feeds)  # the first run allocates and fills the caches
    mark(BEGIN)
    session.run(None, feeds)
    mark(END)
    print(session.end_profiling())
    session.run(None, feeds)
    mark(BEGIN)
    session.run(None, feeds)
    mark(END)


if __name__ == "__main__":
    main(*sys.argv[1:])
