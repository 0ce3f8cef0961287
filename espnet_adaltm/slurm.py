"""Job commands on a Slurm cluster: ``sbatch --wait`` with options from a ``slurm.conf``.

The batch script runs the local job command on its node, so that logs and exit status are the same
everywhere. See `espnet_adaltm.jobs` for the contract.
"""

import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from espnet_adaltm.errors import UserError
from espnet_adaltm.jobs import Job, code_in_log, die_with_parent, failure, stop_on_signals

# What a job needs from the submitting shell even where a cluster does not pass everything on.
ENVIRONMENT = re.compile(
    r"^(PATH|PYTHONPATH|LD_LIBRARY_PATH|HOME|USER|LANG|LC_ALL|OMP_NUM_THREADS|HF_\w+|WANDB_\w+"
    r"|ADALTM_\w+|NCCL_\w+|GLOO_\w+|PYTHON\w+|(https?|HTTPS?|no|NO|all|ALL|ftp|FTP)_(proxy|PROXY))$"
)


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
    conf = SlurmConf(["sbatch"], [("max_jobs_run", "*", [])], {})
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


def slurm_command(job: Job, conf: SlurmConf, script: Path) -> list[str]:
    """The ``sbatch`` call for a job whose script is ``script``."""
    options = dict(job.options)
    options.pop("config", None)
    at_once = options.pop("max_jobs_run", None)
    options.setdefault("name", re.sub(r"[^\w.-]", "_", Path(job.log).stem))
    words = [*conf.command, *conf.arguments(options)]
    if job.array:
        limit = f"%{at_once}" if at_once else ""
        words += [f"--array={job.first}-{job.last}{limit}"]
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


def run_slurm(job: Job) -> str:
    """Submit and wait; options from ``--config`` (conf/slurm.conf); returns `failure`."""
    conf = read_slurm_conf(job.options.get("config", "conf/slurm.conf"))
    script = _write_script(job)
    for index in job.indices():
        job.log_of(index).unlink(missing_ok=True)
    submitted: list[str] = []

    def stop() -> None:
        for number in submitted:
            subprocess.run(["scancel", number], check=False)
        process.terminate()

    die_with_parent()
    command = slurm_command(job, conf, script)
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
    return failure(job, _collect(job))


def _write_script(job: Job) -> Path:
    """The batch script runs the local job command on its node: log and status stay the same."""
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
        f"exec {shlex.quote(sys.executable)} -m espnet_adaltm.bin.run_job local {array} {words}\n",
        encoding="utf-8",
    )
    return script


def _collect(job: Job, patience: float = 30.0) -> dict[int, int]:
    """Exit status of every job from its log, allowing for a slow network file system."""
    end = time.monotonic() + patience
    codes: dict[int, int] = {}
    while True:
        for index in job.indices():
            code = code_in_log(job.log_of(index))
            if code is not None:
                codes[index] = code
        if len(codes) == len(job.indices()) or time.monotonic() > end:
            return codes
        time.sleep(0.5)
