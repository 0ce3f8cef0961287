"""Ablations of published systems in the report: rows, differences, turns, and honest names."""

import re

import pytest
from scoring_common import make_dump, make_system

from espnet_adaltm.bin import report
from espnet_adaltm.errors import UserError
from espnet_adaltm.files import read_json, write_json
from espnet_adaltm.kaldi import write_scp
from espnet_adaltm.scoring.set_scores import System
from espnet_adaltm.scoring.variants import described, families, labelled

SIZE = 180
UTTS = [f"u{index:03d}" for index in range(SIZE)]
# Five turns of each dialogue; the host is wrong in the last of two thirds of the dialogues.
HOST = {i for i in range(SIZE) if i % 5 == 4 and i // 5 % 3}
WRONG = {
    "dialog": ({0}, {5}),
    "none": (HOST, HOST),
    "frozen": (HOST | {1}, HOST | {1}),
    "other_dialog": (HOST - {9}, HOST),
}


def memory_json(history="dialog", learn=True, pseudo=False, **changes):
    return {
        "kind": "memory",
        "history": history,
        "history_means": f"what {history} is",
        "learn": learn,
        "memory_sha256": "m" if learn else "c",
        "host_sha256": "h",
        "pseudo_dialogs": pseudo,
        "dialogs": {"kind": "speaker" if pseudo else "given", "pseudo_turns": 8},
        **changes,
    }


def adapter_json(**training):
    trained = {"attributes": 128, "attribute_weight": 1.0, "distill_weight": 1.0} | training
    return {"kind": "wap_adapter", "options": {"adapter_training": training and trained or None}}


@pytest.fixture
def folder(tmp_path):
    """A test set of dialogues, with memories of two seeds."""
    dump = make_dump(tmp_path / "dump/test", size=SIZE)
    write_scp(dump / "utt2dialog", {u: f"d{i // 5} {i % 5}" for i, u in enumerate(UTTS)})
    for history, errors in WRONG.items():
        for seed, wrong in enumerate(errors, 1):
            make_system(tmp_path / f"{history}{seed}", dump, wrong, text=False)
            write_json(tmp_path / f"{history}{seed}/baseline.json", memory_json(history))
    return tmp_path


def run(folder, *systems, compare="", html="false"):
    report.main(
        [
            *("--systems", " ".join(systems), "--dumps", str(folder / "dump/test")),
            *("--labels", str(folder / "dump/labels.json"), "--out_dir", str(folder / "out")),
            *("--resamples", "200", "--plots", "false", "--html", html, "--compare", compare),
        ]
    )
    return (folder / "out/RESULTS.md").read_text(), read_json(folder / "out/results.json")


def memories(folder):
    names = {"other_dialog": "memory_other", "dialog": "memory"}
    return [
        f"{names.get(history, f'memory_{history}')}:{seed}={folder}/{history}{seed}"
        for history in ("other_dialog", "frozen", "none", "dialog")
        for seed in (1, 2)
    ]


def macro_f1(wrong, chosen=range(SIZE)):
    """Of the errors that `make_system` makes, from the definition."""
    pairs = [(i % 3, (i + (i in wrong)) % 3) for i in chosen]
    scores = []
    for label in range(3):
        hits = sum(truth == said == label for truth, said in pairs)
        total = sum(label == truth for truth, _ in pairs) + sum(label == said for _, said in pairs)
        scores.append(2 * hits / total)
    return sum(scores) / 3


def mean_f1(history, chosen=range(SIZE)):
    return sum(macro_f1(wrong, chosen) for wrong in WRONG[history]) / 2


def cells(text, start):
    line = next(line for line in text.splitlines() if line.startswith(start))
    return line.strip("|").split("|")


def test_memory_is_compared_with_none_and_every_variant_with_both(folder):
    text, result = run(folder, *memories(folder))
    (family,) = result["ablations"]["test"]
    assert [row["system"] for row in family["rows"]] == [
        "memory",
        "memory_none",
        "memory_frozen",
        "memory_other",
    ]
    assert family["references"] == ["memory_none", "memory"]
    for row, history in zip(family["rows"], ("dialog", "none", "frozen", "other_dialog")):
        assert row["macro_f1"]["mean"] == pytest.approx(mean_f1(history), abs=1e-12)
        assert row["means"] == f"what {history} is"
    tests = {(t["first"], t["second"]): t for t in family["tests"] if t["metric"] == "macro_f1"}
    assert len(tests) == 5  # a pair of references once
    gain = tests["memory", "memory_none"]
    assert gain["difference"] == pytest.approx(mean_f1("dialog") - mean_f1("none"), abs=1e-12)
    assert gain["low"] > 0.05
    assert gain["p_holm"] == pytest.approx(5 * 2 / 201)
    lost = tests["memory_frozen", "memory_none"]
    assert lost["difference"] == pytest.approx(mean_f1("frozen") - mean_f1("none"), abs=1e-12)
    assert text.index("## Ablations of published systems") < len(text)
    assert "### memory: what the history is worth, on `test`" in text
    assert cells(text, "|memory|`memory`|2|")[-1] == "-"
    none = cells(text, "|none (the host alone)|")
    assert none[-2] == "-"
    assert none[-1].startswith(f"{-100 * gain['difference']:+.1f} [")
    assert none[-1].endswith("\\*")
    assert cells(text, "|another dialogue's history|")[1] == "`memory_other`"
    assert "- never updated: what frozen is" in text


def test_turns_tell_where_the_gain_is(folder):
    text, result = run(folder, *memories(folder))
    turns = result["ablations"]["test"][0]["turns"]
    assert list(turns) == ["turn 1 (36)", "turns 2 to 4 (108)", "later turns (36)"]
    for places, found in zip(([0], [1, 2, 3], [4]), turns.values()):
        chosen = [i for i in range(SIZE) if i % 5 in places]
        for name, history in (("memory", "dialog"), ("memory_none", "none")):
            assert found[name]["mean"] == pytest.approx(mean_f1(history, chosen), abs=1e-12)
    gains = cells(text, "|memory minus none (the host alone)|")
    expected = 100 * (turns["later turns (36)"]["memory"]["mean"] - mean_f1(
        "none", [i for i in range(SIZE) if i % 5 > 3]))  # fmt: skip
    assert gains[3].startswith(f"{expected:+.1f} [+")
    assert gains[3].endswith("p 0.010")  # 2 / 201
    assert gains[2].startswith("+0.0 [+0.0, +0.0], p 1.000")


def test_a_control_of_the_same_host_joins_and_a_memory_alone_is_no_ablation(folder):
    systems = [System(name, {1: folder / f"{name}1"}) for name in ("dialog", "none", "frozen")]
    write_json(folder / "frozen1/baseline.json", memory_json(learn=False))
    (family,) = families(systems)
    assert [v.label for v in family.variants][-1] == "trained without ever being updated"
    write_json(folder / "frozen1/baseline.json", memory_json(learn=False, host_sha256="other"))
    (family,) = families(systems)
    assert [v.system for v in family.variants] == ["dialog", "none"]
    assert families(systems[:1]) == []
    text, result = run(folder, f"memory={folder}/dialog1")
    assert result["ablations"] == {}
    assert "Ablations" not in text


def test_pseudo_dialogues_are_called_so_in_every_table(folder):
    for name in ("dialog1", "none1"):
        history = name.rstrip("1")
        write_json(folder / name / "baseline.json", memory_json(history, pseudo=True))
    text, result = run(
        folder,
        f"memory:1={folder}/dialog1",
        f"memory_none:1={folder}/none1",
        f"host={folder}/frozen1",
        compare="memory:memory_none",
    )
    new = ["memory_pseudo-dialogues", "memory_none_pseudo-dialogues"]
    assert list(result["systems"])[:2] == new
    assert "(pseudo-dialogues: utterances of one speaker, no conversation)" in text
    tables = [line for line in text.splitlines() if line.startswith("|")]
    for line in tables:
        for cell in (cell for cell in line.strip("|").split("|") if "`" not in cell):
            if cell.startswith("memory_none") or "- memory" in cell:
                assert "pseudo-dialogues" in cell
    assert sum(line.startswith(f"|{new[0]}|") for line in tables) >= 4
    assert any(line.startswith(f"|{new[0]} - {new[1]}|") for line in tables)
    assert not any(line.startswith(("|memory_none|", "|memory_none - ")) for line in tables)
    turns = result["ablations"]["test"][0]["turns"]
    assert list(turns)[0].startswith("turn 1 (")


def test_adapters_say_what_they_lack_and_whose_speech_they_heard(folder):
    infos = {
        "wap_adapter_scratch": adapter_json(),
        "wap_adapter": adapter_json(attributes=64),
        "wap_adapter_no_attributes": adapter_json(attributes=0, attribute_weight=0),
        "wap_adapter_no_distill": adapter_json(distill_weight=0),
        "wap_adapter_transfer": adapter_json(speech="my ravdess"),
    }
    for name, (history, info) in zip(infos, zip([*WRONG, "none"], infos.values())):
        write_json(folder / f"{history}{1 + (name == 'wap_adapter_transfer')}/baseline.json", info)
    places = [f"{h}1" for h in WRONG] + ["none2"]
    text, result = run(folder, *(f"{n}:1={folder}/{p}" for n, p in zip(infos, places)))
    (family,) = result["ablations"]["test"]
    assert {row["system"]: row["label"] for row in family["rows"]} == {
        "wap_adapter": "all of it (64 local attributes)",
        "wap_adapter_scratch": "no adapter training",
        "wap_adapter_no_attributes": "without local attributes",
        "wap_adapter_no_distill": "128 local attributes, without self-distillation",
        "wap_adapter_transfer_my-ravdess": "128 local attributes, adapter trained on my ravdess",
    }
    assert family["references"] == ["wap_adapter_scratch", "wap_adapter"]
    assert family["turns"] == {}
    header = cells(text, "|variant|")
    assert header[-2:] == ["minus no adapter training", "minus all of it (64 local attributes)"]


def test_names_that_do_not_fit_together_are_refused(folder):
    write_json(folder / "dialog2/baseline.json", memory_json("none"))
    mixed = System("memory", {1: folder / "dialog1", 2: folder / "dialog2"})
    with pytest.raises(UserError, match="memory: the history of its seeds differ"):
        described(mixed)
    write_json(folder / "none1/baseline.json", memory_json("none", pseudo=True))
    systems = [
        System("m", {1: folder / "none1"}),
        System("m_pseudo-dialogues", {1: folder / "dialog1"}),
    ]
    with pytest.raises(UserError, match="would be called alike"):
        labelled(systems, [])


def test_the_page_shows_the_same_ablation(folder):
    run(folder, *memories(folder), html="true")
    page = (folder / "out/report.html").read_text()
    section = page.split('<section id="test-ablations">')[1].split("</section>")[0]
    body = section.split("<tbody>")[1].split("</tbody>")[0]
    rows = {
        re.search(r"<th[^>]*>(.*?)<br>", row)[1]: [
            float(value) for value in re.findall(r'data-v="([^"]+)"', row)
        ]
        for row in body.split("<tr>")[1:]
    }
    assert list(rows) == [
        "memory", "none (the host alone)", "never updated", "another dialogue&#39;s history",
    ]  # fmt: skip
    score = {history: 100 * mean_f1(history) for history in WRONG}
    host, own = score["none"], score["dialog"]
    assert rows["memory"] == pytest.approx([own, own - host])
    assert rows["none (the host alone)"] == pytest.approx([host, host - own])
    assert rows["never updated"] == pytest.approx(
        [score["frozen"], score["frozen"] - host, score["frozen"] - own]
    )
    assert "macro-F1 minus none (the host alone), in points" in section
    assert section.count("<details>") == 1  # by turn
