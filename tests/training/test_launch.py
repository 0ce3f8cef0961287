"""What holds while a training program runs."""

import os
import subprocess
import sys

PROBE = """
import torch
from espnet_adaltm.training import launch

def denormals():
    return int((torch.full((2**22,), 1e-39) * 1.0).count_nonzero())

class Task:
    @staticmethod
    def get_parser():
        print(torch.get_num_threads(), denormals())
        raise SystemExit

try:
    launch.run(Task, [])
finally:
    torch.set_num_threads(1)
    print(denormals())
"""


def test_denormals_are_zero_in_all_threads_of_a_training_and_not_after_it():
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    done = subprocess.run(
        [sys.executable, "-c", PROBE], env=environment, capture_output=True, text=True, check=True
    )
    said = done.stdout.splitlines()[-2:]  # after what ESPnet prints on being imported
    assert said == ["2 0", str(2**22)]
