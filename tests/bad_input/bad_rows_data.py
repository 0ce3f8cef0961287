"""Bad data and labels: entry point, what is wrong, what is typed, what the error has to name."""

from bad_row import Row, programs

FORMAT, AUDIT, LABEL, TOKEN = programs("format_audio", "audit", "prepare_labels", "prepare_tokens")
SCORE, REPORT, COMPARE, IMPORT = programs("score", "report", "compare", "import_espnet")


def formatted(name: str, what: str, *culprits: str, options: str = "") -> Row:
    """A data directory of `bad_world` that is no good."""
    words = f"--data data/{name} --out out/x --num_workers 1 {options}"
    return FORMAT(what, words, *culprits)


DIRECTORIES = [
    formatted("none", "no data directory", "data/none does not exist"),
    formatted("no_wav_scp", "no wav.scp", "data/no_wav_scp/wav.scp is missing"),
    formatted("no_speakers", "no utt2spk", "data/no_speakers/utt2spk is missing"),
    formatted("empty", "nothing in wav.scp", "data/empty/wav.scp has no entries"),
    formatted("ghost", "text without audio", "data/ghost/text:2", "'ghost'"),
    formatted("duplicate", "an id twice", "data/duplicate/text:2", "'a'"),
    formatted("unsorted", "ids out of order", "data/unsorted/text:2", "LC_ALL=C sort"),
    formatted("latin1", "text in Latin-1", "data/latin1/text:1: not UTF-8"),
    formatted("no_words", "an empty transcript", "data/no_words/text:1", "'a'"),
    formatted("blank_line", "an empty line", "data/blank_line/text:2: empty line"),
    formatted("bell", "a control character", "data/bell/text:2", "U+0007"),
    formatted("nul", "a NUL", "data/nul/utt2spk:2", "U+0000"),
    formatted("mark", "an id with a hidden mark", "data/mark/utt2spk:3", "U+202E"),
    formatted("bom", "a byte order mark", "data/bom/utt2spk:1", "U+FEFF"),
    formatted("two_words", "an emotion of two words", "utt2emo: utterance 'a'", "'very sad'"),
    formatted("speakerless", "nobody speaks", "utt2spk: utterance 'c'", "no speaker"),
    formatted("soft", "votes that do not sum to 1", "utt2soft: utterance 'a'", "0.9"),
    formatted("turns", "a turn twice", "utt2dialog: utterance 'b'", "'a' already"),
    formatted("turn_name", "a turn that is no number", "utt2dialog: utterance 'a'"),
    formatted("spk2utt", "contradicting spk2utt", "spk2utt/spk2utt: speaker 's'", "'b'"),
    formatted("spk2utt_ghost", "a speaker of nothing", "spk2utt: speaker 'ghost'"),
    formatted("samples", "sizes that are no numbers", "utt2num_samples: utterance 'a'", "'many'"),
    formatted("segments", "a segment without end", "segments:1: utterance 'a'", "'a 0'"),
    formatted("segments_backwards", "a segment that ends first", "segments:1", "0 <= start < end"),
    formatted("segments_elsewhere", "a segment of nothing", "segments:1", "'x'"),
    formatted("late", "a segment beyond the end", "1 of 3", "b: wav/b.wav", "7 to 8 s"),
]
AUDIO = [
    formatted("gone", "no such file", "b: wav/gone.wav does not exist"),
    formatted("zero_bytes", "an empty file", "b: wav/zero.wav is empty"),
    formatted("cut", "a file cut short", "b: wav/cut.wav is truncated"),
    formatted("html", "no audio", "b: wav/html.wav cannot be decoded"),
    formatted("nan", "NaN", "b: wav/nan.wav holds NaN"),
    formatted("folder", "a folder as audio", "b: wav is not a file"),
    formatted("slow", "3 samples per second", "b: wav/slow.wav claims 3 samples per second"),
    formatted("long", "a name of 5,000 letters", "b: wav/xxx", "does not exist"),
    formatted("silent", "silence", "b: wav/silent.wav: silent", options="--silent error"),
    formatted("pipe", "a command", "data/pipe/wav.scp: 'b'", "is a shell command"),
    formatted("leading", "a command that takes audio", "wav.scp: 'b' begins with `|`"),
    formatted("leading", "the same where pipes may run", "`|`", options="--allow_pipes"),
    formatted("beyond", "beyond the end of an ark", "b: wav/x.ark:99999999 lies beyond"),
    formatted("range", "a range of an ark", "b: wav/x.ark:2[0:5]", "range"),
    formatted("pickle", "a pickle in an ark", "b: wav/evil.ark:2", "pickle"),
]
OPTIONS = [
    formatted("ok", "nothing is long enough", "all 3 utterances", options="--min_seconds 9"),
    formatted("ok", "limits crossed", "--min_seconds 5", options="--min_seconds 5 --max_seconds 1"),
    formatted("ok", "no sample rate", "--sample_rate", options="--sample_rate 0"),
    formatted("ok", "no share", "--max_broken 'few'", options="--max_broken few"),
    formatted("ok", "more than all", "--max_broken '101%'", options="--max_broken 101%"),
    formatted("ok", "no choice", "--silent", "'loud'", options="--silent loud"),
    formatted("ok", "no number", "--num_workers", "'two'", options="--num_workers two"),
    formatted("ok", "no such option", "--sped", options="--sped 2"),
    FORMAT("an option left out", "--data data/ok", "--out"),
    FORMAT("onto its input", "--data data/ok --out data/../data/ok", "both data/ok"),
    FORMAT("below a file", "--data data/ok --out file/x --num_workers 1", "file/x", "written"),
    FORMAT("onto a link", "--data data/ok --out link --num_workers 1", "link is a symbolic link"),
]
SETS = [
    AUDIT("no such set", "--dumps dump/gone --train dump/gone --out a.md", "dump/gone"),
    AUDIT("not formatted", "--dumps dump/no_stats --train x --out a.md", "audio_stats.tsv"),
    AUDIT("foreign columns", "--dumps dump/bad_stats --train x --out a.md", "audio_stats.tsv:1"),
    LABEL("no pair", "--sets data/ok --out l.json", "--sets 'data/ok'"),
    LABEL("a set twice", "--sets a=data/ok a=data/ok --out l.json", "'a' is given twice"),
    LABEL("no training set", "--sets a=data/ok --train b --out l.json", "'b'"),
    LABEL(
        "an emotion without data",
        "--sets a=data/ok --labels angry happy sad bored --out l.json",
        "'bored'",
    ),
    LABEL("an unknown emotion", "--sets a=data/ok --labels angry happy --out l.json", "'sad'"),
    LABEL("a code of nothing", "--sets a=data/ok --codes B=bored --out l.json", "'B'", "'bored'"),
    LABEL("a foreign scheme", "--sets a=data/ok --scheme labels_key.json --out l.json", "'label'"),
    LABEL("codes of a number", "--sets a=data/ok --scheme labels_codes.json --out l.json", "codes"),
    TOKEN("no text", "--text gone --out t", "gone is missing"),
    TOKEN("too large", "--text text --vocab_size 9000 --out t", "--vocab_size 9000", "largest"),
    TOKEN("too small", "--text text --vocab_size 3 --out t", "--vocab_size 3 is too small"),
    TOKEN("no size", "--text text --type bpe --out t", "--vocab_size is needed"),
    TOKEN("no kind", "--text text --type word --out t", "--type", "'word'"),
    TOKEN("no table", "--text wav/a.wav --out t", "wav/a.wav:"),
]


def scored(system: str, what: str, *culprits: str, dump: str = "scored", labels: str = "") -> Row:
    """A decoded system of `bad_world`."""
    file = f"labels_{labels}.json" if labels else "labels.json"
    words = f"--system {system} --name x --dumps dump/{dump} --labels {file} --out r.json"
    return SCORE(what, words, *culprits)


SCORES = [
    scored("gone", "not decoded", "gone/decode/scored"),
    scored("sys_lost", "an utterance lost", "sys_lost/decode/scored/utt2prob lacks", "u000"),
    scored("sys_extra", "an utterance more", "u000x"),
    scored("sys_short", "a probability too few", "'u000' has 2 probabilities, expected 3"),
    scored("sys_sum", "a sum of 1.1", "'u000'", "sum to 1.1"),
    scored("sys_nan", "NaN", "'u000'", "not finite"),
    scored("sys_words", "words", "'u000'", "not numbers"),
    scored("sys_other", "two answers", "utt2emo: utterance 'u000' is 'happy'", "'angry'"),
    scored("sys_unknown", "an emotion with a typo", "'hapy' (did you mean 'happy'?)"),
    scored("sys_labels", "a model of another order", "merge.json", "order"),
    scored("sys", "a test set of other emotions", "'u000'", "'bored'", dump="unknown"),
    scored("sys", "nothing to score against", "dump/unscored", dump="unscored"),
    scored("sys", "no test set", "dump/gone/wav.scp is missing", dump="gone"),
    scored("sys", "labels that are cut", "labels_cut.json is not valid JSON", labels="cut"),
    scored("sys", "labels in a list", "labels_list.json", "list", labels="list"),
    scored("sys", "no labels", "labels_none.json", labels="none"),
    scored("sys", "one label", "labels_one.json: 1 emotion(s)", labels="one"),
    scored("sys", "a label twice", "labels_twice.json: 'angry'", labels="twice"),
    scored("sys", "a label that is no word", "labels_number.json: 7", labels="number"),
    scored("sys", "an unknown key", "labels_key.json", "'label' (did you", labels="key"),
    scored("sys", "20,000 brackets", "labels_deep.json", "nested too deeply", labels="deep"),
    REPORT("nothing to score", "--systems x=sys", "--dumps and --labels"),
    REPORT("no pair", "--systems sys --dumps dump/scored --labels labels.json", "'sys'"),
    REPORT(
        "compared with nothing",
        "--systems x=sys --dumps dump/scored --labels labels.json --compare x:y",
        "y",
    ),
    REPORT("two modes", "--systems x=sys --results results/results.json", "--results"),
    REPORT("other results", "--results results/results.json", "results/results.json"),
    REPORT("no results", "--results labels_list.json", "labels_list.json"),
    COMPARE("nothing there", "gone sys", "gone"),
    COMPARE("no results", "half half", "half/results.json"),
    COMPARE("damaged results", "results results", "results/results.json"),
    COMPARE("no test set", "results results --dumps wav", "--dumps: wav"),
    IMPORT("no folder", "--dir gone --dumps dump/scored --labels labels.json --out i", "gone"),
    IMPORT("no set", "--dir sys --dumps dump/test --labels labels.json --out i", "'test'"),
    IMPORT(
        "no pair",
        "--dir sys --dumps dump/scored --labels labels.json --out i --codes hap",
        "'hap'",
    ),
]
ROWS = [*DIRECTORIES, *AUDIO, *OPTIONS, *SETS, *SCORES]
