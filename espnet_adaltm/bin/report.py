"""Compare systems over their seeds: results.json, tables, pictures and a page to look at.

Writes RESULTS.md, results.json, results.csv, results.tex (booktabs), report.html and plots/.
With --results only report.html, from the results.json of an earlier run.
"""

import argparse
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from espnet_adaltm.bin import cli
from espnet_adaltm.bin.score import add_bootstrap_arguments, bootstrap_options
from espnet_adaltm.data.labels import load_labels
from espnet_adaltm.errors import UserError
from espnet_adaltm.files import read_json, taken_apart, write_json, write_text
from espnet_adaltm.scoring import tables
from espnet_adaltm.scoring.aggregate import aggregate, parse_comparisons, parse_systems
from espnet_adaltm.scoring.artefacts import coefficients_json, trainings_json
from espnet_adaltm.scoring.document import Story, results_document
from espnet_adaltm.scoring.environment import espnet_block
from espnet_adaltm.scoring.exports import csv_text, latex_text
from espnet_adaltm.scoring.memory_table import ablation_sections
from espnet_adaltm.scoring.pictures import draw_all
from espnet_adaltm.scoring.places import relative_place
from espnet_adaltm.scoring.readers import read_references
from espnet_adaltm.scoring.set_scores import SetScores, System
from espnet_adaltm.scoring.variants import labelled

MOST_CONFUSED = 20
# An absolute path at the beginning of a word, or after one of these characters; not of a URL.
_PATH = re.compile(r"""(?<![^\s=:,;'"({\[])/(?!/)[^\s=:,;'"(){}\[\]]+""")
EXAMPLE = """
example:
  python -m espnet_adaltm.bin.report --dumps dump/test --labels data/labels.json \\
      --systems "asr_expert=exp/asr_expert_x ser_expert=exp/ser_expert_x \\
          adaltm:1=exp/merge_adaltm_seed1 adaltm:2=exp/merge_adaltm_seed2" \\
      --compare "adaltm:ser_expert" --recipe mini_espeak --command "./run.sh" --out_dir .
"""


def get_parser() -> argparse.ArgumentParser:
    """Arguments of this program."""
    parser = cli.parser(__doc__ + EXAMPLE)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--systems", nargs="+", help="name=folder or name:seed=folder, in order")
    what.add_argument(
        "--results", type=Path, help="results.json of an earlier run: write report.html alone"
    )
    parser.add_argument("--dumps", nargs="+", default=[], help="test sets, e.g. dump/test")
    parser.add_argument("--labels", help="labels.json")
    parser.add_argument(
        "--compare", nargs="*", default=[], help="first:second, paired tests to highlight"
    )
    parser.add_argument("--out_dir", type=Path, default=Path(), help="gets RESULTS.md and the rest")
    parser.add_argument("--recipe", default="adaltm", help="heading of RESULTS.md")
    parser.add_argument("--command", action="append", default=[], help="what was typed; repeatable")
    parser.add_argument("--note", default="", help="text under the heading")
    parser.add_argument(
        "--base", type=Path, help="base encoder's folder, for its base.json and its training"
    )
    parser.add_argument(
        "--task_vectors",
        type=Path,
        nargs="+",
        default=[],
        help="folders with similarity.json, for the picture of their mean",
    )
    parser.add_argument(
        "--connectivity", type=Path, help="connectivity.json of bin/connectivity.py, for a picture"
    )
    parser.add_argument(
        "--plots", choices=("true", "false"), default="true", help="draw pictures or not"
    )
    parser.add_argument(
        "--html", choices=("true", "false"), default="true", help="write report.html or not"
    )
    parser.add_argument(
        "--confused",
        type=int,
        default=12,
        choices=range(MOST_CONFUSED + 1),
        metavar=f"0..{MOST_CONFUSED}",
        help="utterances to show in report.html, with what was said; 0: none",
    )
    parser.add_argument(
        "--audio",
        choices=("embed", "none"),
        default="embed",
        help="of these utterances in report.html; think of the licence of the corpus",
    )
    add_bootstrap_arguments(parser)
    return parser


def _main(args: argparse.Namespace) -> None:
    # Before results change, which may be files of the repository: it tells whether that was clean.
    environment = espnet_block()
    if args.results is not None:
        with taken_apart(args.results, "stage `score`"):
            _write_page(args, environment, read_json(args.results), {})
        return
    if not args.dumps or args.labels is None:
        raise UserError("--systems needs --dumps and --labels: what to score against")
    systems = parse_systems(_words(args.systems))
    systems, pairs = labelled(systems, parse_comparisons(_words(args.compare), systems))
    labels = load_labels(args.labels)
    options = bootstrap_options(args)
    dumps = _words(args.dumps)
    references = read_references(dumps, labels)
    result, scores, tests = aggregate(systems, references, labels, pairs, options)
    result["coefficients"] = coefficients_json(systems)
    result["training"] = trainings_json(systems, args.base)
    result["folders"] = _folders(args.out_dir, systems, dumps)
    ablations, result["ablations"] = ablation_sections(systems, scores, dumps, options)
    pictures = {}
    if args.plots == "true":
        folder = args.out_dir / "plots"
        pictures = draw_all(
            folder,
            systems,
            scores,
            labels.labels,
            args.task_vectors,
            args.base,
            args.connectivity,
        )
    document = results_document(
        _story(args),
        environment,
        systems,
        scores,
        tests,
        options,
        labels.labels,
        pictures,
        args.out_dir,
        ablations,
    )
    write_json(args.out_dir / "results.json", result)
    write_text(args.out_dir / "RESULTS.md", document)
    write_text(args.out_dir / "results.csv", csv_text(result))
    write_text(args.out_dir / "results.tex", latex_text(result, args.recipe))
    if args.html == "true":
        examples = _examples(args, result, systems, scores, dumps)
        _write_page(args, environment, result, examples)
    for score in scores:
        header, rows = tables.main_table(score, systems, options)
        print(f"\n{score.reference.name} (percent, ± half of the 95 % interval)\n")
        print(tables.plain(header, rows))
    print(f"\nwritten: {args.out_dir / 'RESULTS.md'}")


def _story(args: argparse.Namespace) -> Story:
    commands = [without_places(command) for command in args.command]
    return Story(args.recipe, commands, args.note, _base_facts(args.base))


def _folders(out_dir: Path, systems: Sequence[System], dumps: Sequence[str]) -> dict[str, Any]:
    """Where predictions and references are, seen from ``out_dir``, for later comparisons."""
    return {
        "systems": {
            system.name: {
                str(seed): relative_place(folder, out_dir)
                for seed, folder in system.folders.items()
            }
            for system in systems
        },
        "dumps": {Path(dump).name: relative_place(Path(dump), out_dir) for dump in dumps},
    }


def _examples(
    args: argparse.Namespace,
    result: Mapping[str, Any],
    systems: Sequence[System],
    scores: Sequence[SetScores],
    dumps: Sequence[str],
) -> dict[str, tuple[str, list[Any]]]:
    """Test set to the system whose mistakes are shown, and the utterances."""
    from espnet_adaltm.report.utterances import examples

    found = {}
    for score, dump in zip(scores, dumps, strict=True):
        values = score.get("macro_f1")
        # The mistakes on a pool are those on its sets.
        if not values or not args.confused or score.reference.parts:
            continue
        chosen = result["reference"]
        if chosen not in values:
            chosen = max(values, key=lambda name: values[name].mean)
        rows = examples(
            score,
            systems,
            result["labels"],
            chosen,
            Path(dump),
            count=args.confused,
            audio=args.audio == "embed",
        )
        found[score.reference.name] = chosen, rows
    return found


def _write_page(
    args: argparse.Namespace,
    environment: str,
    result: Mapping[str, Any],
    examples: Mapping[str, Any],
) -> None:
    from espnet_adaltm.report.audit import read_audit
    from espnet_adaltm.report.page import Extras, render_page

    story = _story(args)
    dumps = _words(args.dumps)
    extras = Extras(
        story.recipe,
        story.note,
        story.commands,
        environment,
        story.base or {},
        read_audit(dumps[0]) if dumps else None,
        examples,
    )
    write_text(args.out_dir / "report.html", render_page(result, extras))
    print(f"written: {args.out_dir / 'report.html'}")
    heard = sum(row.audio is not None for _, rows in examples.values() for row in rows)
    if heard:
        print(
            f"{heard} utterances of the corpus can be heard in it: mind the licence before you "
            "publish it, or leave them out with --audio none"
        )


def _words(entries: Sequence[str]) -> list[str]:
    """Split entries at blanks, so that a list may come as one shell variable."""
    return [word for entry in entries for word in entry.split()]


def without_places(command: str) -> str:
    """A command line with absolute paths, which are of one machine, as ``/path/to/<last part>``."""
    try:
        words = shlex.split(command)
    except ValueError:  # no command line of a shell; still no paths
        return _PATH.sub(_placed, command)
    # A word may be a path with blanks, or itself hold options.
    kept = [_placed(word) if _is_path(word) else _PATH.sub(_placed, word) for word in words]
    return shlex.join(kept)


def _is_path(word: str) -> bool:
    return word.startswith("/") and " -" not in word and " /" not in word


def _placed(path: str | re.Match[str]) -> str:
    text = path if isinstance(path, str) else path[0]
    return f"/path/to/{text.rstrip('/').rpartition('/')[2]}"


def _base_facts(base: Path | None) -> dict[str, str]:
    if base is None:
        return {}
    facts = read_json(base / "base.json")
    if not isinstance(facts, dict):
        raise UserError(f"{base / 'base.json'} is no JSON object: run stage `base` again")
    shown = {}
    for key in ("kind", "source", "unit_accuracy"):
        value = facts.get(key)
        if value is not None and not str(value).startswith("/"):  # no paths of this machine
            shown[key.replace("_", " ")] = (
                f"{value:.4f}" if isinstance(value, float) else str(value)
            )
    return shown


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    cli.run(_main, get_parser(), argv)


if __name__ == "__main__":
    main()
