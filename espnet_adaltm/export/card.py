"""The model card: what a stranger needs to know before using an export, as ``README.md``."""

from collections.abc import Mapping, Sequence
from typing import Any

from espnet_adaltm.export.facts import coefficient_rows

PICTURE = "coefficients.png"
_MOST_ROWS = 30
_USELESS = 0.5  # WER
_METRIC_NAMES = {
    "macro_f1": "macro F1",
    "uar": "UAR",
    "wa": "accuracy",
    "wer": "WER",
    "cer": "CER",
    "spk_acc": "speaker accuracy",
}
_TASKS = {"asr": "speech recognition", "ser": "emotion recognition"}
_PAPERS = """- AdaLTM: Lee et al., Interspeech 2026, arXiv 2603.25041
- Task arithmetic: Ilharco et al., ICLR 2023, arXiv 2212.04089
- AdaMerging: Yang et al., ICLR 2024, arXiv 2310.02575
"""
_MTLSER = """- MTLSER: Chen et al., Expert Systems with Applications 273 (2025), 126855
"""


def write_card(facts: Mapping[str, Any], parts: Mapping[str, Any]) -> str:
    """Text of ``README.md``.

    Args:
        facts: What `facts.collect` found.
        parts: What the folder holds: ``family`` (``WavLM``), ``parameters``, ``projector``,
            ``words``, ``speakers``, ``onnx`` and ``picture`` (all but the first two bool).
    """
    sections = [
        _front_matter(facts, parts),
        f"# {facts['name']}\n\n{_summary(facts, parts)}",
        _use(parts),
        _method(facts, parts),
        _data(facts),
        _scores(facts),
        _labels(facts),
        _limits(facts, parts),
        f"## Licence\n\n{_licence(facts)}",
        _reproduce(facts),
        "## References\n\n" + (_MTLSER if facts["kind"] == "mtlser" else _PAPERS),
    ]
    return "\n".join(section.rstrip() + "\n" for section in sections if section)


def _front_matter(facts: Mapping[str, Any], parts: Mapping[str, Any]) -> str:
    """YAML for the Hub. JSON strings are YAML strings."""
    import yaml

    native = "transformers" if parts["projector"] else "espnet_adaltm"
    head: dict[str, Any] = {"library_name": native, "pipeline_tag": "audio-classification"}
    tags = ["speech-emotion-recognition", parts["family"].lower()]
    if facts["kind"] == "merge":
        tags += ["model-merging", "task-arithmetic"]
    head["tags"] = tags
    for key, name in (("licence", "license"), ("language", "language")):
        if facts.get(key):
            head[name] = facts[key]
    base = facts.get("base", {})
    source = str(base.get("source", ""))
    if base.get("kind") == "hub":
        head["base_model"] = source
    results = _index_results(facts)
    if results:
        head["metrics"] = ["f1", "recall", "accuracy"]
        head["model-index"] = [{"name": facts["name"], "results": results}]
    return f"---\n{yaml.safe_dump(head, sort_keys=False, allow_unicode=True)}---"


def _index_results(facts: Mapping[str, Any]) -> list[dict[str, Any]]:
    types = {"macro_f1": "f1", "uar": "recall", "wa": "accuracy", "wer": "wer"}
    found = []
    for name, entry in facts.get("scores", {}).items():
        metrics = [
            {"type": types[metric], "name": _METRIC_NAMES[metric], "value": round(v["value"], 4)}
            for metric, v in entry["metrics"].items()
            if metric in types
        ]
        dataset = {"name": f"{facts.get('recipe', 'corpus')} {name}", "type": "custom"}
        if metrics:
            task = {"type": "audio-classification", "name": "Speech emotion recognition"}
            found.append({"task": task, "dataset": dataset, "metrics": metrics})
    return found


def _summary(facts: Mapping[str, Any], parts: Mapping[str, Any]) -> str:
    labels = ", ".join(facts["labels"])
    unusable = " (not usable: see Limits)" if _worst_wer(facts) > _USELESS else ""
    more = [
        *([f"writes down what is said{unusable}"] if parts["words"] else []),
        *(["names the most similar speaker of its training"] if parts["speakers"] else []),
    ]
    also = f" It also {' and '.join(more)}." if more else ""
    size = f"{parts['parameters'] / 1e6:.1f} M parameters"
    return f"Hears the emotion of speech: {labels}.{also} {parts['family']} encoder, {size}."


def _use(parts: Mapping[str, Any]) -> str:
    text = """## How to use it

```python
from espnet_adaltm import EmotionRecognizer

recognizer = EmotionRecognizer.from_pretrained("path/or/hub-id")
print(recognizer.predict("speech.wav"))
```

```sh
espnet-adaltm predict -m path/or/hub-id *.wav --format csv
```

Any sample rate and number of channels. Recordings over 20 s are heard in overlapping windows.
"""
    theirs = []
    if parts["projector"]:
        theirs.append('pipeline("audio-classification", model="path/or/hub-id")  # same numbers')
    if parts["words"]:
        theirs.append('pipeline("automatic-speech-recognition", model="path/or/hub-id")')
    if theirs:
        lines = "\n".join(["from transformers import pipeline", "", *theirs])
        text += f"\n```python\n{lines}\n```\n"
    if parts["words"]:
        text += (
            "\nIn `transformers`, tokens become text, but not the reverse, and there are no "
            "timestamps: encode with\n`tokens.model` and sentencepiece (id + 1).\n"
        )
    if not parts["projector"]:
        text += (
            "\n`transformers` has no class for this emotion head: its pipeline"
            ' `"audio-classification"` would put an\nuntrained one in its place. The encoder alone:'
            ' `AutoModel.from_pretrained("path/or/hub-id")`.\n'
        )
    if parts["onnx"]:
        text += (
            "\n`onnx/model.onnx` gives the same numbers with onnxruntime: `speech` float32 [batch, "
            "samples] at 16 kHz\nand `lengths` int64 [batch] in; `probabilities`"
            + (", `tokens`" if parts["words"] else "")
            + " and `frames` out.\n"
        )
    return text


def _method(facts: Mapping[str, Any], parts: Mapping[str, Any]) -> str:
    text = "## How it was made\n\n"
    options = facts.get("options", {})
    if facts["kind"] == "merge":
        tasks = [f"{_TASKS.get(task, task)} ({task})" for task in options.get("tasks", [])]
        text += (
            f"Merge `{facts['method']}`: to a base encoder, shares of task vectors are added "
            f"({' and '.join(tasks) or 'none'}).\nA task vector is a fine-tuned encoder minus the "
            "base. The shares are baked in: inference costs what the base\nencoder costs.\n"
        )
    elif facts["kind"] == "ser":
        text += "The base encoder, fine-tuned to recognise emotions.\n"
    else:
        text += f"Baseline `{facts['kind']}`.\n"
    if facts.get("notes"):
        notes = facts["notes"]
        items = notes.items() if isinstance(notes, Mapping) else enumerate(notes)
        text += "\n" + "".join(f"- {name}: {told}\n" for name, told in items)
    base = facts.get("base")
    if base:
        text += f"\nBase encoder: {base['kind']} from {base['source']} "
        text += f"(SHA-256 {base['sha256'][:12]}).\n"
    if "coefficients" in facts:
        text += "\n" + _coefficients(facts, parts["picture"])
    settings = {k: v for k, v in options.items() if k not in ("name", "tasks")}
    if settings:
        told = ", ".join(f"{name} {_plain(value)}" for name, value in settings.items())
        text += f"\nOptions: {told}.\n"
    return text


def _plain(value: Any) -> str:
    return f"`{value}`" if isinstance(value, (dict, list)) else str(value)


def _coefficients(facts: Mapping[str, Any], picture: bool) -> str:
    rows = coefficient_rows(facts["coefficients"])
    text = ""
    if picture:
        text += f"![coefficients by depth]({PICTURE})\n\n"
    if len(rows) > _MOST_ROWS:
        return text + f"All {len(rows) - 1} coefficients are in `about.json`.\n"
    return text + _table(rows)


def _table(rows: Sequence[Sequence[str]]) -> str:
    rule = "|---|" + "---:|" * (len(rows[0]) - 1)
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], rule, *lines[1:]]) + "\n"


def _data(facts: Mapping[str, Any]) -> str:
    text = "## Data\n\n"
    told = [facts.get("data", ""), facts.get("note", "")]
    if facts.get("recipe"):
        told.insert(0, f"Recipe `egs/{facts['recipe']}`.")
    text += " ".join(part for part in told if part) + "\n" if any(told) else ""
    if facts.get("counts"):
        sets = list(facts["counts"])
        rows = [("emotion", *sets)]
        for label in facts["labels"]:
            rows.append((label, *(str(facts["counts"][name].get(label, 0)) for name in sets)))
        text += "\nLabelled utterances:\n\n" + _table(rows)
    if facts.get("label_policy"):
        text += f"\nLabels: {facts['label_policy']}\n"
    return text if len(text) > len("## Data\n\n") else ""


def _scores(facts: Mapping[str, Any]) -> str:
    scores = facts.get("scores")
    if not scores:
        return "## Scores\n\nIt has not been scored.\n"
    shown = [m for m in _METRIC_NAMES if any(m in entry["metrics"] for entry in scores.values())]
    rows = [("set", "utterances", *(_METRIC_NAMES[metric] for metric in shown))]
    for name, entry in scores.items():
        cells = [_percent(entry["metrics"].get(metric)) for metric in shown]
        rows.append((name, str(entry.get("utterances") or ""), *cells))
    text = "## Scores\n\nPercent, with 95 % intervals. UAR is the mean recall of the emotions.\n\n"
    text += _table(rows)
    recalls = {name: entry["recall"] for name, entry in scores.items() if entry.get("recall")}
    if recalls:
        rows = [("recall", *recalls)]
        for label in facts["labels"]:
            rows.append((label, *(f"{100 * r.get(label, 0):.1f}" for r in recalls.values())))
        text += "\n" + _table(rows)
    bootstrap = facts.get("bootstrap")
    if bootstrap:
        text += f"\nIntervals: bootstrap over each {bootstrap.get('unit', 'utterance')}, "
        text += f"{bootstrap.get('resamples')} resamples. One training"
        text += f" (seed {facts['seed']})" if "seed" in facts else ""
        text += ": other seeds differ by more than\nthese intervals say.\n"
    return text


def _percent(value: Mapping[str, float] | None) -> str:
    if value is None:
        return "-"
    low, high = 100 * value["low"], 100 * value["high"]
    return f"{100 * value['value']:.1f} [{low:.1f}, {high:.1f}]"


def _labels(facts: Mapping[str, Any]) -> str:
    listed = "\n".join(f"{index}. {name}" for index, name in enumerate(facts["labels"]))
    return f"## Labels, in the order of the outputs (from 0)\n\n{listed}\n"


def _limits(facts: Mapping[str, Any], parts: Mapping[str, Any]) -> str:
    scores = facts.get("scores", {})
    told = [
        "It answers with one of its labels whatever it hears: other emotions, mixtures, music "
        "and noise too.",
        "It was measured on the sets above. Other languages, microphones, ages and ways of "
        "speaking were not.",
        "Labels are what actors were asked to show or what listeners heard, not what a person "
        "feels. It must not decide about people.",
        "Under half a second of speech is too little. A long recording is an average over its "
        "windows: use the timeline.",
    ]
    errors = [e["calibration_error"] for e in scores.values() if "calibration_error" in e]
    if errors:
        worst = 100 * max(errors)
        told.append(f"Probabilities are not calibrated (expected calibration error {worst:.0f} %).")
    wer = _worst_wer(facts)
    if parts["words"] and wer > _USELESS:
        told.append(f"Its transcripts are of no use: WER {100 * wer:.0f} %.")
    return "## Limits\n\n" + "".join(f"- {line}\n" for line in told)


def _worst_wer(facts: Mapping[str, Any]) -> float:
    entries = facts.get("scores", {}).values()
    return max((e["metrics"]["wer"]["value"] for e in entries if "wer" in e["metrics"]), default=0)


def _licence(facts: Mapping[str, Any]) -> str:
    if facts.get("licence"):
        return f"{facts['licence']}. The base encoder and the corpus have licences of their own."
    return (
        "Not stated. The licences of the base encoder and of the corpus hold; ask whoever exported "
        "this model."
    )


def _reproduce(facts: Mapping[str, Any]) -> str:
    text = "## How to reproduce it\n\n"
    commands = []
    if facts.get("recipe"):
        commands.append(f"cd egs/{facts['recipe']}/adaltm1")
    command = facts.get("command") or facts.get("trained_with")
    if command:
        commands.append(command)
    if commands:
        text += "```sh\n" + "\n".join(commands) + "\n```\n\n"
    selected = facts.get("selected", {})
    if selected.get("best_epoch") is not None:
        part, metric, _ = [*selected.get("criterion", ["valid", "loss", ""]), "", "", ""][:3]
        text += f"Epoch {selected['best_epoch']} of {selected.get('last_epoch', '?')} was chosen "
        text += f"by the {metric} on the {part} set. "
    environment = facts["environment"]
    versions = ", ".join(
        f"{name} {environment[name]}"
        for name in ("python", "torch", "transformers", "espnet")
        if name in environment
    )
    text += f"Exported on {environment['date']} with {versions}; code {environment['git hash']}.\n"
    return text + "The whole description is in `about.json`.\n"
