"""Time and memory of whole programs."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from espnet_adaltm.errors import UserError

# A process starts with the peak of the one that it was forked from (Linux keeps it over exec), so
# a program is started by a Python that has imported next to nothing. Anonymous memory, which
# excludes mapped files, has no peak of its own in Linux and is sampled.
_STARTER = """
import json, os, resource, sys, time
log, limit = open(sys.argv[1], "wb"), int(sys.argv[2])
if limit:
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
start = time.monotonic()
child = os.posix_spawn(sys.argv[3], sys.argv[3:], os.environ, file_actions=[
    (os.POSIX_SPAWN_DUP2, log.fileno(), 1), (os.POSIX_SPAWN_DUP2, log.fileno(), 2)])
anonymous = 0
while True:
    done, status, usage = os.wait4(child, os.WNOHANG)
    if done:
        break
    try:
        with open(f"/proc/{child}/status") as lines:
            found = [line.split()[1] for line in lines if line.startswith("RssAnon")]
        anonymous = max(anonymous, int(found[0]) if found else 0)
    except (OSError, ValueError):
        pass
    time.sleep(0.01)
print(json.dumps({
    "seconds": time.monotonic() - start, "peak_mb": usage.ru_maxrss / 1024,
    "peak_anonymous_mb": anonymous / 1024, "cpu_seconds": usage.ru_utime + usage.ru_stime,
    "status": os.waitstatus_to_exitcode(status)}))
"""


@dataclass(frozen=True)
class Run:
    """One run of a program.

    Attributes:
        seconds: From start to end, interpreter and imports included.
        cpu_seconds: Of all its threads.
        peak_mb: Largest resident memory in MiB; pages of mapped files count.
        peak_anonymous_mb: The same without files, sampled every 10 ms.
    """

    seconds: float
    cpu_seconds: float
    peak_mb: float
    peak_anonymous_mb: float


def run_program(
    command: Sequence[str],
    log: Path,
    environment: Mapping[str, str] | None = None,
    limit_mb: float = 0,
) -> Run:
    """Run a program to its end.

    Args:
        command: First an absolute path.
        log: Takes what it prints.
        environment: Variables to set.
        limit_mb: Memory that the program may reserve for itself, in MiB, mapped files apart; more
            is refused to it. 0: no limit.

    Raises:
        UserError: It failed; the end of what it printed is in the message.
    """
    variables = {**os.environ, **(environment or {})}
    words = [str(log), str(int(limit_mb * 2**20)), *map(str, command)]
    starter = [sys.executable, "-I", "-S", "-c", _STARTER, *words]
    done = subprocess.run(starter, env=variables, capture_output=True, text=True, check=True)
    facts = json.loads(done.stdout)
    if facts.pop("status"):
        said = log.read_text(encoding="utf-8", errors="replace")[-2000:]
        raise UserError(f"{' '.join(map(str, command))} failed:\n{said}")
    return Run(**facts)
