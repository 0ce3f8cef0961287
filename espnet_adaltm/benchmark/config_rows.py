"""The shipped configurations as calls of the training programs; used by the benchmark `configs`."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

CONF = Path(__file__).resolve().parents[2] / "conf"
LEFT_OUT = {
    "wavlm_large/memory_qwen2_audio": "its host alone has 8.4 G parameters, 17 GB in half precision"
}
_LARGE = "wavlm_large"
_EXPERTS = ("wavlm_large/train_asr", "wavlm_large/train_ser")
_TOKENS = ("--tokens", "{folder}/tokens")
_LABELS = ("--labels", "{folder}/labels.json")
_BASE = ("--base", "{base}")
_STATES = ("--feats_dir", "{base}/hidden_last")


@dataclass(frozen=True)
class Row:
    """One training.

    Attributes:
        name: Folder and name of its YAML; merges are ``merge/<name>``.
        program: In `espnet_adaltm.bin`.
        config: The YAML of the training.
        words: Its other options; ``{folder}``, ``{base}`` and the last part of the name of each
            row that it needs are put in.
        needs: Rows that have to be trained before; of a merge, the ASR and the SER expert.
        model: Folder of the base.
        feats_type: Whether the CNN is part of the training.
    """

    name: str
    program: str
    config: Path
    words: Sequence[str] = ()
    needs: Sequence[str] = ()
    model: str = _LARGE
    feats_type: str = "extracted"


@cache
def all_rows() -> tuple[Row, ...]:
    """Every configuration, each after what it needs."""
    large, baselines = CONF / _LARGE, CONF / _LARGE / "baselines"
    memory = ("train_memory", (*_BASE, *_LABELS, "--ser_expert", "{train_ser}"), _EXPERTS[1:])
    adapter = (*_BASE, *_LABELS, *_STATES, "--wap_adapter", "{wap_adapter}")
    others = {
        "mtlser": ("train_mtlser", (*_BASE, *_LABELS, *_TOKENS), ()),
        "wap_adapter": ("train_wap_adapter", (*_BASE, *_STATES), ()),
        "wap_head": ("train_wap_head", adapter, ("wavlm_large/wap_adapter",)),
        "memory": memory,
        "memory_show": memory,
    }
    rows = [
        Row(_EXPERTS[0], "train_asr", large / "train_asr.yaml", (*_BASE, *_TOKENS)),
        Row(_EXPERTS[1], "train_ser", large / "train_ser.yaml", (*_BASE, *_LABELS)),
        *(_merge(path) for path in sorted((CONF / "merge").glob("*.yaml"))),
    ]
    for name, (program, words, needs) in others.items():
        rows.append(Row(f"{_LARGE}/{name}", program, baselines / f"{name}.yaml", words, needs))
    for name, words in (("espnet_cls", _LABELS), ("espnet_asr", (*_LABELS, *_TOKENS))):
        path = baselines / f"{name}.yaml"
        rows.append(Row(f"{_LARGE}/{name}", f"train_{name}", path, words, feats_type="raw"))
    rows.append(
        Row(
            "wav2vec2_base/mtlser",
            "train_mtlser",
            CONF / "wav2vec2_base/baselines/mtlser.yaml",
            (*_BASE, *_LABELS, *_TOKENS),
            model="wav2vec2_base",
            feats_type="raw",
        )
    )
    return tuple(rows)


def _merge(path: Path) -> Row:
    """A row of conf/merge, with the options that `utils/names.sh` gives it."""
    words = [*_BASE, *_LABELS, "--merge_config", str(path), "--task_vectors", "{folder}/vectors"]
    words += ["--ser_expert", "{train_ser}"]
    text = path.read_text(encoding="utf-8")
    if "\nobjective: supervised_" in text:
        words += ["--asr_expert", "{train_asr}"]
    if "\nlearn_on: adapt" in text:
        words += ["--adapt_dump", "{folder}/dump/test"]
    config = CONF / _LARGE / "train_merge.yaml"
    return Row(f"merge/{path.stem}", "train_merge", config, words, _EXPERTS)
