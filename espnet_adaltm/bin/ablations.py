"""Run a recipe once per point of an ablation, and compare all points in ABLATIONS.md.

What is done is skipped, by the stages of the recipe: the same command again goes on after an
interruption. A point that fails does not keep the others from running.
"""

import argparse
import logging
import shlex
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from espnet_adaltm.bin import cli
from espnet_adaltm.bin.report import without_places
from espnet_adaltm.bin.run_item import rotate
from espnet_adaltm.errors import UserError
from espnet_adaltm.files import write_json, write_text
from espnet_adaltm.jobs import kill_group, log_tail, stop_on_signals
from espnet_adaltm.scoring.ablation_plot import axis_plot, overview_plot
from espnet_adaltm.scoring.ablation_records import read_records
from espnet_adaltm.scoring.ablation_results import (
    RECORD,
    RESULTS,
    Outcome,
    as_json,
    document,
    read_outcome,
    record_environment,
    set_names,
)
from espnet_adaltm.scoring.ablations import (
    Ablations,
    changed_row,
    load_ablations,
    point_command,
)
from espnet_adaltm.scoring.environment import environment

LOG = "run.log"
DATA = "ablations.json"
_PATIENCE = 30.0  # seconds in which an interrupted recipe has to end
EXAMPLE = """
example, from a recipe's folder and after `. ./path.sh`:
  python -m espnet_adaltm.bin.ablations --config conf/ablations.yaml --dry_run -- ./run.sh
  python -m espnet_adaltm.bin.ablations --config conf/ablations.yaml -- ./run.sh --size full
  python -m espnet_adaltm.bin.ablations --config conf/ablations.yaml --axes granularity \\
      --points learning_rate/0.1 -- ./run.sh --size full

Points that are not run keep what ablations.json tells of them, also when exp/ was deleted.
"""

NO_RECORD = "none"


def get_parser() -> argparse.ArgumentParser:
    """Arguments of this program."""
    parser = cli.parser(__doc__ + EXAMPLE)
    parser.add_argument(
        "--config", type=Path, required=True, help="axes and points, see scoring/ablations.py"
    )
    parser.add_argument("--axes", nargs="+", default=[], help="only run the points of these")
    parser.add_argument("--points", nargs="+", default=[], help="only run these (too): axis/point")
    parser.add_argument(
        "--results_dir",
        type=Path,
        default=Path("exp/ablations"),
        help="gets <axis>/<point>/ with log and results.json of each run; one for each size",
    )
    parser.add_argument(
        "--out_dir", type=Path, default=Path(), help="gets ABLATIONS.md, ablations.json and plots/"
    )
    parser.add_argument(
        "--recorded",
        metavar="FILE",
        help="an earlier ablations.json: what it tells of points without a run in --results_dir "
        "stands in the tables as well (default: the one in --out_dir, if it is of the same "
        f"command; {NO_RECORD}: begin anew)",
    )
    parser.add_argument("--recipe", help="heading of ABLATIONS.md (default: the recipe's folder)")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--dry_run", action="store_true", help="only print the commands")
    what.add_argument(
        "--report_only", action="store_true", help="run nothing, compare what is done"
    )
    parser.add_argument("command", nargs="+", help="after --: the recipe's command for all points")
    return parser


def _main(args: argparse.Namespace) -> None:
    config = load_ablations(args.config)
    chosen = config.select(args.axes, args.points)
    rows = {point.key: config.hashes_of(point) for point in config.points}
    commands = {
        point.key: point_command(
            args.command, config.references, point, args.results_dir / point.key
        )
        for point in config.points
    }
    if args.dry_run:
        for point in chosen:
            print(f"# {point.key}\n{shlex.join(commands[point.key])}")
        return
    recorded = _recorded(args, config)
    failed = []
    for number, point in enumerate([] if args.report_only else chosen, start=1):
        where = f"[{number}/{len(chosen)} {point.key}]"
        folder = args.results_dir / point.key
        if run_point(commands[point.key], folder, rows[point.key], where) != 0:
            failed.append(point.key)
    outcomes = {
        point.key: read_outcome(
            point, commands[point.key], args.results_dir / point.key, rows[point.key]
        )
        for point in config.points
    }
    for key, outcome in recorded.items():
        # A record that does not tell its rows may be of those that the run had, not of today's.
        changed = changed_row(outcomes[key].row_hashes, rows[key]) is not None
        if outcomes[key].state and (outcome.row_hashes or not changed):
            outcomes[key] = outcome
    write_report(args, config, outcomes)
    if failed:
        raise UserError(
            f"{len(failed)} of {len(chosen)} points failed ({', '.join(failed)}): see their "
            f"{LOG} in {args.results_dir}; the same command again goes on with them"
        )


def _recorded(args: argparse.Namespace, config: Ablations) -> dict[str, Outcome]:
    own = args.out_dir / DATA
    if args.recorded == NO_RECORD or (args.recorded is None and not own.exists()):
        return {}
    if args.recorded is None:
        return read_records(own, config, _shared_command(args))
    return read_records(args.recorded, config)


def _shared_command(args: argparse.Namespace) -> list[str]:
    return shlex.split(without_places(shlex.join(args.command)))


def run_point(command: Sequence[str], folder: Path, rows: Mapping[str, str], where: str) -> int:
    """Run the recipe for one point, with a log, and record how it ended.

    Args:
        command: Program and arguments.
        folder: For log and record; a record of an earlier run is removed first.
        rows: From `Ablations.hashes_of`, for the record.
        where: What messages begin with.

    Returns:
        Exit status.

    Raises:
        UserError: The program cannot be started.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RECORD).unlink(missing_ok=True)
    log = folder / LOG
    rotate(log)
    facts = environment()  # of what runs now, whatever changes in the meantime
    print(f"{where} ... (log: {log})", flush=True)
    start = time.monotonic()
    with open(log, "wb") as handle:
        handle.write(f"# {shlex.join(command)}\n".encode())
        handle.flush()
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=handle,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            raise UserError(f"cannot run {command[0]}: {error.strerror}") from error
        with stop_on_signals(lambda: kill_group(process, _PATIENCE)):
            code = process.wait()
    if code == 0 and not (folder / RESULTS).is_file():
        logging.error("%s ended well but left no %s", command[0], folder / RESULTS)
        code = 1
    if code == 0:
        record_environment(folder, facts)
    record = {"command": list(command), "code": code, "row_hashes": dict(rows)}
    write_json(folder / RECORD, record)
    seconds = time.monotonic() - start
    print(f"{where} {'done' if code == 0 else f'failed ({code})'} in {seconds:.0f} s", flush=True)
    if code != 0:
        logging.error("%s ends with\n%s", log, log_tail(log, 10))
    return code


def write_report(args: argparse.Namespace, config: Ablations, outcomes: dict[str, Outcome]) -> None:
    """Write ``ABLATIONS.md``, ``ablations.json`` and the pictures of all axes and of each."""
    facts = environment()  # before files of the repository change: it tells whether it was clean
    pictures = {}
    for part in set_names(outcomes.values()):
        path = args.out_dir / "plots" / f"ablations_{part}.png"
        if overview_plot(path, config, outcomes, part) is not None:
            pictures[part] = path
    for axis in config.axes:
        mine = [outcomes[point.key] for point in axis.points]
        for part in set_names(mine):
            path = args.out_dir / "plots" / f"ablation_{axis.name}_{part}.png"
            if axis_plot(path, axis, mine, config.references, part) is not None:
                pictures[f"{axis.name}/{part}"] = path
            else:
                path.unlink(missing_ok=True)  # of an earlier report
    call = ["python", "-m", "espnet_adaltm.bin.ablations", "--config", str(args.config)]
    typed = without_places(shlex.join([*call, "--", *args.command]))
    text = document(
        config,
        outcomes,
        args.recipe or Path.cwd().parent.name,
        [". ./path.sh", typed],
        facts,
        pictures,
        args.out_dir,
    )
    write_json(args.out_dir / DATA, as_json(config, outcomes, _shared_command(args)))
    write_text(args.out_dir / "ABLATIONS.md", text)
    done = sum(not outcome.state for outcome in outcomes.values())
    print(f"{done} of {len(outcomes)} points in {args.out_dir / 'ABLATIONS.md'}")


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    cli.run(_main, get_parser(), argv)


if __name__ == "__main__":
    main()
