"""Runs one network once warm and once counted, inside the emulated Python: for board_models.py.

python board_guest.py WHEELS ncnn NETWORK.param WIDTH,HEIGHT,CHANNELS
python board_guest.py WHEELS tflite-xnnpack|tflite-ruy MODEL.tflite
"""

import os
import sys

MARK_FD = 31415  # as in devices/emulation/count.c


def mark(code):
    try:
        os.write(MARK_FD, b"x" * code)
    except OSError:
        pass


def ncnn_run(param, shape):
    import ncnn

    net = ncnn.Net()
    net.opt.num_threads = 1
    net.opt.lightmode = True
    allocators = ncnn.UnlockedPoolAllocator(), ncnn.PoolAllocator()  # as benchncnn's
    net.opt.blob_allocator, net.opt.workspace_allocator = allocators
    net.load_param(param)
    net.load_model(ncnn.DataReaderFromEmpty())
    image = ncnn.Mat(*(int(size) for size in shape.split(",")))
    image.fill(0.01)

    def run():
        extractor = net.create_extractor()
        for name in net.input_names():
            extractor.input(name, image)
        return [extractor.extract(name) for name in net.output_names()], allocators  # which the network does not keep alive

    return run


def tflite_run(runtime, path):
    import numpy as np
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    plain = {} if runtime == "tflite-xnnpack" else {"experimental_op_resolver_type": OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES}
    interpreter = Interpreter(path, num_threads=1, **plain)
    interpreter.allocate_tensors()
    (wanted,) = interpreter.get_input_details()
    interpreter.set_tensor(wanted["index"], np.ones(wanted["shape"], wanted["dtype"]))
    return interpreter.invoke


def main(wheels, runtime, *arguments):
    sys.path.insert(0, wheels)
    run = ncnn_run(*arguments) if runtime == "ncnn" else tflite_run(runtime, *arguments)
    mark(1)
    run()
    run()
    mark(2)
    run()
    mark(3)


if __name__ == "__main__":
    main(*sys.argv[1:])
