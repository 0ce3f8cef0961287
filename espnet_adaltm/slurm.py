"""Job commands on a Slurm cluster: ``sbatch --wait`` with options from a ``slurm.conf``.

The batch script runs the local job command on its node, so that logs and exit status are the same
everywhere. See `espnet_adaltm.jobs` for the contract. A job that saved where it is because its time
runs out (`espnet_adaltm.stopping`) is submitted again, at most ``--max_resubmits`` times; a
training that cannot get any further fails instead.
"""

import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from espnet_adaltm.errors import UserError
from espnet_adaltm.jobs import Job, code_in_log, die_with_parent, stop_on_signals
from espnet_adaltm.stopping import CONTINUE

# What a job needs from the submitting shell even where a cluster does not pass everything on.
ENVIRONMENT = re.compile(
    r"^(PATH|PYTHONPATH|LD_LIBRARY_PATH|HOME|USER|LANG|LC_ALL|(OMP|MKL)_NUM_THREADS|HF_\w+|WANDB_\w+"
    r"|ADALTM_\w+|NCCL_\w+|GLOO_\w+|TORCH_\w+|PYTHON\w+|NLTK_DATA|SSL_CERT_FILE|SLURM_CONF"
    r"|(https?|HTTPS?|no|NO|all|ALL|ftp|FTP)_(proxy|PROXY))$"
)
MAX_RESUBMITS = "100"
_POLL_SECONDS = 10.0
# States of a job that is not at its end, and of one that had no chance to say how it ended.
_ACTIVE = {"PENDING", "CONFIGURING", "RUNNING", "SUSPENDED", "COMPLETING", "REQUEUED", "RESIZING"}
_KILLED = {"CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "OUT_OF_MEMORY", "DEADLINE"}


@dataclass
class SlurmConf:
    """Rules of a Kaldi-style ``slurm.conf``: how options of a job command become sbatch's."""

    command: list[str]
    rules: list[tuple[str, str, list[str]]]
    defaults: dict[str, str]

    def arguments(self, options: Mapping[str, str]) -> list[str]:
        """Arguments for ``sbatch``; of two rules the exact one wins over ``=*``.

        Raises:
            UserError: An option that no rule knows.
        """
        merged = {**self.defaults, **options}
        words: list[str] = []
        for name, value in merged.items():
            exact = [rule for rule in self.rules if rule[:2] == (name, value)]
            wild = [rule for rule in self.rules if rule[:2] == (name, "*")]
            if not exact and not wild:
                raise UserError(f"slurm.conf has no line `option {name}=* ...` for {value!r}")
            template = (exact or wild)[0][2]
            words += [word.replace("$0", value) for word in template]
        return words


def read_slurm_conf(path: str | Path) -> SlurmConf:
    """Read ``command``, ``option name=value words`` and ``default name=value`` lines.

    Raises:
        UserError: A line of another kind; the message has its number.
    """
    ours = [("max_jobs_run", "*", []), ("max_resubmits", "*", [])]
    conf = SlurmConf(["sbatch"], ours, {"max_resubmits": MAX_RESUBMITS})
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    for number, line in enumerate(lines, 1):
        words = shlex.split(line, comments=True)
        if not words:
            continue
        if words[0] == "command" and len(words) > 1:
            conf.command = words[1:]
        elif words[0] == "option" and len(words) > 1 and "=" in words[1]:
            name, _, value = words[1].partition("=")
            conf.rules.append((name.replace("-", "_"), value, words[2:]))
        elif words[0] == "default" and len(words) == 2 and "=" in words[1]:
            name, _, value = words[1].partition("=")
            conf.defaults[name.replace("-", "_")] = value
        else:
            raise UserError(f"{path}:{number}: expected command, option or default, got {line!r}")
    return conf


def slurm_command(
    job: Job, conf: SlurmConf, script: Path, indices: Iterable[int] | None = None
) -> list[str]:
    """The ``sbatch`` call for a job whose script is ``script``; of an array, all or some jobs."""
    options = dict(job.options)
    options.pop("config", None)
    at_once = options.pop("max_jobs_run", None)
    options.setdefault("name", re.sub(r"[^\w.-]", "_", Path(job.log).stem))
    words = [*conf.command, *conf.arguments(options)]
    if job.array:
        limit = f"%{at_once}" if at_once else ""
        span = f"{job.first}-{job.last}" if indices is None else ",".join(map(str, indices))
        words += [f"--array={span}{limit}"]
    return [*_with_environment(words), "--parsable", "--wait", str(script)]


def _with_environment(words: list[str]) -> list[str]:
    """Pass everything on, or add what jobs need to the names that the cluster lets through."""
    names = sorted(name for name in os.environ if ENVIRONMENT.match(name))
    given = [word for word in words if word.startswith("--export=")]
    if not given or given[-1] == "--export=ALL":
        return [word for word in words if word not in given] + ["--export=ALL"]
    listed = [] if given[-1] == "--export=NONE" else given[-1].partition("=")[2].split(",")
    wanted = ",".join(dict.fromkeys([*listed, *names]))
    return [word for word in words if word not in given] + [f"--export={wanted}"]


def run_slurm(job: Job, tell: Callable[[str], None] = lambda line: None) -> dict[int, int]:
    """Submit and wait, again where a job asks for it; options from ``--config`` (conf/slurm.conf).

    Args:
        job: What to run.
        tell: Gets a line about what Slurm did with it, if that is out of the ordinary.

    Returns:
        Exit status of each job that told one.

    Raises:
        UserError: The configuration is wrong, or Slurm refuses the job.
    """
    conf = read_slurm_conf(job.options.get("config", "conf/slurm.conf"))
    allowed = _whole_number(conf, job.options, "max_resubmits")
    script = _write_script(job)
    codes: dict[int, int] = {}
    waiting = list(job.indices())
    die_with_parent()
    for resubmits in range(allowed + 1):
        for index in waiting:
            job.log_of(index).unlink(missing_ok=True)
            codes.pop(index, None)
        some = waiting if len(waiting) < len(job.indices()) else None
        number, state = _submit(slurm_command(job, conf, script, some))
        codes |= _collect(job, waiting, patience=2.0 if state in _KILLED else 30.0)
        if any(index not in codes for index in waiting):
            tell(f"Slurm job {number}: {state or 'no longer known'}")
        waiting = [index for index in waiting if codes.get(index) == CONTINUE]
        if not waiting or resubmits == allowed:
            break
        for index in waiting:
            log = job.log_of(index)
            log.replace(log.with_suffix(f".job{number}{log.suffix}"))
        tell(
            f"Slurm job {number}: time is up, all is saved; submitted again "
            f"({resubmits + 1} of at most {allowed})"
        )
    return codes


def _whole_number(conf: SlurmConf, options: Mapping[str, str], name: str) -> int:
    value = {**conf.defaults, **options}[name]
    if not value.isdecimal():
        raise UserError(f"--{name} is a whole number, not {value!r}")
    return int(value)


def _submit(command: list[str]) -> tuple[str, str]:
    """Call ``sbatch`` and wait for the job's end, whatever becomes of the connection to Slurm.

    Returns:
        The job's number, and Slurm's name of the state in which it ended, if that is known.

    Raises:
        UserError: There is no ``sbatch``, or it refuses.
    """
    submitted: list[str] = []

    def stop() -> None:
        for number in submitted:
            subprocess.run(["scancel", number], check=False)
        process.terminate()

    try:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    except OSError as error:
        raise UserError(f"cannot run {command[0]}: {error.strerror}") from error
    with stop_on_signals(stop):
        assert process.stdout is not None
        for line in process.stdout:
            # --parsable: "id" or "id;cluster".
            submitted += [line.strip().partition(";")[0]] if line.strip() else []
        code = process.wait()
        if code != 0 and not submitted:
            raise UserError(f"sbatch refused the job with status {code}: {shlex.join(command)}")
        state = ""
        while code != 0 and (state := job_state(submitted[0])) in _ACTIVE:
            time.sleep(_POLL_SECONDS)
    return submitted[0], state


def job_state(number: str) -> str:
    """What Slurm says about a job, the least finished of an array: ``RUNNING``, ``TIMEOUT``, ...

    An empty string if it knows nothing of it any more, or cannot be asked.
    """
    try:
        asked = subprocess.run(
            ["scontrol", "--oneliner", "show", "job", number],
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError:
        return ""
    states = re.findall(r"\bJobState=(\w+)", asked.stdout)
    unfinished = [state for state in states if state in _ACTIVE]
    killed = [state for state in states if state in _KILLED]
    return (unfinished + killed + states + [""])[0]


def _write_script(job: Job) -> Path:
    """The batch script runs the local job command on its node: log and status stay the same.

    A warning that comes before that command hears it must not kill it.
    """
    folder = job.log_of("all").parent / "q"
    folder.mkdir(parents=True, exist_ok=True)
    script = folder / f"{job.log_of('all').stem}.sh"
    index = "${SLURM_ARRAY_TASK_ID}"
    array = f"{job.array}={index}" if job.array else ""
    words = " ".join(shlex.quote(word) for word in [job.log, *job.command])
    package = Path(__file__).resolve().parents[1]
    script.write_text(
        "#!/usr/bin/env bash\n"
        f"#SBATCH --output={folder}/slurm-%j.out\n"
        f"cd {shlex.quote(os.getcwd())} || exit 1\n"
        f"export PYTHONPATH={shlex.quote(str(package))}:${{PYTHONPATH:-}}\n"
        "trap '' USR1\n"
        f"exec {shlex.quote(sys.executable)} -m espnet_adaltm.bin.run_job local {array} {words}\n",
        encoding="utf-8",
    )
    return script


def _collect(job: Job, indices: Iterable[int], patience: float) -> dict[int, int]:
    """Exit status of jobs from their logs, allowing for a slow network file system."""
    end = time.monotonic() + patience
    codes: dict[int, int] = {}
    missing = list(indices)
    while True:
        codes |= {i: code for i in missing if (code := code_in_log(job.log_of(i))) is not None}
        missing = [index for index in missing if index not in codes]
        if not missing or time.monotonic() > end:
            return codes
        time.sleep(0.5)
