"""ONNX Runtime in a Python program: the seconds of the median run with one row.  python alone.py FILE SECONDS"""

import statistics
import sys
import time

import numpy as np

from onnx_session import session

path, seconds = sys.argv[1:]
model = session(path)
(tensor,) = model.get_inputs()
values = {tensor.name: np.full([1, *tensor.shape[1:]], 0.5, np.float32)}
names, times = [output.name for output in model.get_outputs()], []
end = time.perf_counter() + float(seconds)
while (started := time.perf_counter()) < end:
    model.run(names, values)
    times.append(time.perf_counter() - started)
print(statistics.median(times))
