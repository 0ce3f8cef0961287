"""What Slurm's ``srun`` does for a step of two tasks, on this machine.

    two_tasks.py --export=ALL COMMAND...

As where SLURM_KILL_BAD_EXIT is set, all tasks end when one fails; and none outlives this process.
"""

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Sequence

TASKS = 2


def start(rank: int, command: Sequence[str]) -> subprocess.Popen:
    """One task, which knows its place from the environment."""
    place = {
        "SLURM_NTASKS": TASKS,
        "SLURM_STEP_NUM_NODES": TASKS,
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_PROCID": rank,
        "SLURM_NODEID": rank,
        "SLURM_LOCALID": 0,
    }
    environment = {**os.environ, **{name: str(value) for name, value in place.items()}}
    prctl = ctypes.CDLL(None).prctl
    return subprocess.Popen(
        command,
        env=environment,
        preexec_fn=lambda: prctl(1, signal.SIGKILL),  # PR_SET_PDEATHSIG: die with the parent
    )


def main(words: Sequence[str]) -> int:
    """Run the tasks; the first bad exit status is that of all."""
    command = [word for word in words if word != "--export=ALL"]
    tasks = {task.pid: task for task in (start(rank, command) for rank in range(TASKS))}

    def pass_on(number: int, _frame: object) -> None:
        for task in tasks.values():
            task.send_signal(number)

    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, pass_on)
    code = 0
    while tasks:
        pid, status = os.wait()
        ended = os.waitstatus_to_exitcode(status)
        tasks.pop(pid).returncode = ended
        if ended != 0 and code == 0:
            code = ended if ended > 0 else 128 - ended
            for task in tasks.values():
                task.kill()
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
