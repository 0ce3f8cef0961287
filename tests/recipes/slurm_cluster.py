"""A real Slurm of two nodes on this machine, on the loopback address, in a temporary folder."""

import getpass
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from waiting import wait_for

PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "srun")
NODES = 2
CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock
CredType=cred/munge
SlurmUser={user}
SlurmdUser={user}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmctldPort={ports[0]}
ReturnToService=2
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
KillWait=10
MinJobAge=3600
NodeName=DEFAULT CPUs=2 State=UNKNOWN
NodeName=n[1-2] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{ports[1]}-{ports[2]}]
PartitionName=cpu Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str:
    """What of Slurm is not installed, or an empty string."""
    return " ".join(name for name in PROGRAMS if shutil.which(name, path=PATH) is None)


def free_ports(count: int) -> list[int]:
    """Neighbouring ports that nobody listens on."""
    for first in range(20_000 + os.getpid() % 10_000, 60_000, count):
        sockets = [socket.socket() for _ in range(count)]
        try:
            for offset, one in enumerate(sockets):
                one.bind(("127.0.0.1", first + offset))
            return [first + offset for offset in range(count)]
        except OSError:
            continue
        finally:
            for one in sockets:
                one.close()
    raise OSError("no free ports")


@contextmanager
def cluster(folder: Path) -> Iterator[dict[str, str]]:
    """Run munged, slurmctld and two slurmd; gives the environment that reaches them."""
    folder.mkdir(parents=True)
    folder.chmod(0o755)
    (folder / "state").mkdir()
    key = folder / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o600)
    conf = folder / "slurm.conf"
    host, user = socket.gethostname(), getpass.getuser()
    conf.write_text(CONF.format(host=host, user=user, folder=folder, ports=free_ports(1 + NODES)))
    environment = {**os.environ, "PATH": PATH, "SLURM_CONF": str(conf)}
    names = {"key-file": "key", "socket": "sock", "pid-file": "pid", "log-file": "log"}
    munge = [f"--{option}={folder}/munge.{end}" for option, end in names.items()]
    commands = [["munged", "--foreground", "--force", *munge, f"--seed-file={folder}/seed"]]
    commands += [["slurmctld", "-D"], *(["slurmd", "-D", "-N", f"n{i + 1}"] for i in range(NODES))]
    daemons = []
    try:
        for number, command in enumerate(commands):
            with open(folder / f"{command[0]}{number}.out", "w") as out:
                daemons.append(subprocess.Popen(command, env=environment, stdout=out, stderr=out))
            if number == 0:
                wait_for(lambda: (folder / "munge.sock").exists(), "munged")
        idle = f"{NODES} idle"
        up = lambda: ask(environment, "sinfo", "-h", "-o", "%D %t") == idle  # noqa: E731
        wait_for(lambda: up() or _dead(daemons), "nodes")
        assert not _dead(daemons), "".join(path.read_text() for path in folder.glob("*.out"))
        yield environment
    finally:
        subprocess.run(["scancel", "-u", user], env=environment, capture_output=True)
        wait_for(lambda: not ask(environment, "squeue", "-h"), "the end of all jobs", firm=False)
        for daemon in reversed(daemons):
            daemon.terminate()
        for daemon in daemons:
            daemon.wait(20)


def _dead(daemons: list[subprocess.Popen]) -> bool:
    return any(daemon.poll() is not None for daemon in daemons)


def ask(environment: dict[str, str], *command: str) -> str:
    """What a command of Slurm answers."""
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    return done.stdout.strip()


def running(environment: dict[str, str]) -> dict[str, str]:
    """Job to name, of the jobs that run."""
    lines = ask(environment, "squeue", "-h", "-t", "R", "-o", "%A %j").splitlines()
    return dict(line.split(maxsplit=1) for line in lines)


def job_states(environment: dict[str, str]) -> list[dict[str, str]]:
    """All jobs so far: id, name, state, exit code, nodes."""
    found = []
    for line in ask(environment, "scontrol", "-o", "show", "job").splitlines():
        entries = dict(word.split("=", 1) for word in line.split() if "=" in word)
        found.append(
            {
                name: entries.get(name, "")
                for name in (
                    "JobId",
                    "ArrayJobId",
                    "ArrayTaskId",
                    "JobName",
                    "JobState",
                    "ExitCode",
                    "NodeList",
                    "StartTime",
                    "EndTime",
                    "TimeLimit",
                )
            }
        )
    return found
