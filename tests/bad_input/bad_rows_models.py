"""Bad models, configurations and options: as `bad_rows_data`."""

from bad_row import CONSOLE, SHELL, Row, program, programs

MERGE, VECTORS, DECODE, EXPORT = programs("merge", "task_vectors", "decode", "export")
EXPERT, BASE, FEATURES, HIDDEN = programs(
    "import_expert", "build_base", "extract_features", "extract_hidden"
)
PREDICT, INFO, RUN, MAIN = programs("predict", "info", SHELL, CONSOLE)
TRAIN = "--output_dir t --config recipes"
PAIR = "--experts asr=asr ser=ser"


def merged(recipe: str, what: str, *culprits: str) -> Row:
    """A recipe of `bad_world`."""
    words = f"--config recipes/{recipe}.yaml --base base {PAIR} --out m"
    return MERGE(what, words, *culprits)


RECIPES = [
    merged("gone", "no recipe", "recipes/gone.yaml does not exist"),
    merged("list", "a list", "recipes/list.yaml", "list"),
    merged("scalar", "a word", "recipes/scalar.yaml", "str"),
    merged("nothing", "nothing", "recipes/nothing.yaml", "NoneType"),
    merged("tabs", "tabs", "recipes/tabs.yaml is not valid YAML"),
    merged("python", "Python", "recipes/python.yaml is not valid YAML", "python/object"),
    merged("twice", "a key twice", "recipes/twice.yaml:3", "'method'"),
    merged("bomb", "aliases of aliases", "recipes/bomb.yaml", "aliases"),
    merged("merge_bomb", "merge keys of merge keys", "recipes/merge_bomb.yaml", "aliases"),
    merged("itself", "an alias of itself", "recipes/itself.yaml:1", "itself"),
    merged("deep", "2,000 brackets", "recipes/deep.yaml", "nested too deeply"),
    merged("date", "the 77th of a month", "recipes/date.yaml is not valid YAML"),
    merged("truth", "a key that YAML takes for true", "recipes/truth.yaml: key True"),
    merged("key", "an unknown key", "'metod' (did you mean 'method'?)"),
    merged("method", "an unknown method", "'tise'"),
    merged("number", "a word as a number", "recipes/number.yaml", "many"),
    merged("infinite", "infinity", "recipes/infinite.yaml", "inf"),
    merged("task", "a task without expert", "mood"),
    merged("group", "a block too deep", "'block9'"),
    merged("length", "too few numbers", "2 numbers for"),
    merged("option", "an unknown option", "'densty'", "density"),
    merged("learned", "nothing was learned", "--coefficients"),
]
MERGES = [
    MERGE("nothing that says how", f"--base base {PAIR} --out m", "--config"),
    MERGE("no pair", "--base base --experts asr --out m", "'asr'"),
    MERGE("a task twice", "--base base --experts asr=asr asr=ser --out m", "asr"),
    MERGE("no base", f"--config recipes/fine.yaml --base gone {PAIR} --out m", "gone"),
    MERGE("a base of text", f"--config recipes/fine.yaml --base base_type {PAIR} --out m", "bert"),
    MERGE(
        "a damaged base", f"--config recipes/fine.yaml --base base_cut {PAIR} --out m", "base_cut"
    ),
    MERGE(
        "an expert cut short",
        "--config recipes/fine.yaml --base base --experts asr=asr_cut ser=ser --out m",
        "asr_cut/expert.safetensors",
    ),
    MERGE("onto other files", f"--config recipes/fine.yaml --base base {PAIR} --out wav", "wav"),
    MERGE("onto a file", f"--config recipes/fine.yaml --base base {PAIR} --out file", "file"),
    MERGE("no threads", f"--base base {PAIR} --out m --threads 0", "--threads 0"),
    MERGE(
        "coefficients that are not finite",
        f"--coefficients merge_nan/coefficients.json --base base {PAIR} --out m",
        "merge_nan/coefficients.json",
        "finite",
    ),
    MERGE(
        "coefficients of other groups",
        f"--coefficients merge_groups/coefficients.json --base base {PAIR} --out m",
        "merge_groups/coefficients.json",
    ),
    MERGE(
        "half a table of coefficients",
        f"--coefficients merge_lacks/coefficients.json --base base {PAIR} --out m",
        "merge_lacks/coefficients.json",
        "groups",
    ),
    VECTORS("no expert", "--base base --out v", "--asr"),
    VECTORS("an unfinished base", "--base base_lacks --asr asr --out v", "base_lacks/base.json"),
    VECTORS("an expert of another base", "--base base_other --asr asr --out v", "base_other"),
    VECTORS("an expert cut short", "--base base --asr asr_cut --out v", "asr_cut"),
]


def decoded(system: str, what: str, *culprits: str, dump: str = "test", options: str = "") -> Row:
    """A model of `bad_world`."""
    words = f"--system {system} --dump dump/{dump} --labels labels.json --out d {options}"
    return DECODE(what, words, *culprits)


SYSTEMS = [
    decoded("gone", "no model", "gone"),
    decoded("wav", "no model in the folder", "wav", "expert.json"),
    decoded("asr_cut", "weights cut short", "asr_cut/expert.safetensors", options="--base base"),
    decoded("asr_head", "another head", "asr_head/head.safetensors", options="--base base"),
    decoded("asr_tokens", "no tokens", "asr_tokens/tokens.model", options="--base base"),
    decoded("asr_base", "another base", "asr_base", "000000000000", options="--base base"),
    decoded("asr_kind", "an unknown kind", "asr_kind/expert.json", "'mood'"),
    decoded("asr", "no base", "--base is missing"),
    decoded("asr", "a damaged base", "base_cut", options="--base base_cut"),
    decoded("merge_list", "a list for a model", "merge_list/merge.json", "list"),
    decoded("merge_nan", "coefficients that are not finite", "merge_nan/coefficients.json"),
    decoded("merge_lacks", "half a table of coefficients", "merge_lacks/coefficients.json"),
    decoded("merge", "no set", "dump/gone", dump="gone"),
    decoded("merge", "a command as audio", "'a'", "command", dump="evil_pipe"),
    decoded("merge", "a pickle as audio", "'a'", "pickle", dump="evil_pickle"),
    decoded("merge", "no batch", "--batch_seconds 0", options="--batch_seconds 0"),
    decoded("merge", "no GPU", "--device cuda", options="--device cuda"),
    decoded("merge", "no such device", "--device quantum", options="--device quantum"),
    decoded("merge", "unknown utterances", "--only text", options="--only text"),
    decoded("merge", "no features", "feats", options="--feats_type extracted --feats_dir gone"),
    DECODE(
        "labels in another order",
        "--system merge --dump dump/test --labels labels_order.json --out d",
        "labels_order.json",
        "order",
    ),
    EXPORT("no model", "--system gone --out e", "gone"),
    EXPORT("an expert of words", "--system asr --base base --out e", "no emotions"),
    EXPORT("no name", "--system merge --out e --push_to_hub '../x'", "../x"),
    EXPORT("below a file", "--system merge --out file/e", "file/e"),
    EXPORT("onto a link", "--system merge --out link", "link is a symbolic link"),
    PREDICT("no model", "wav/a.wav", "--model"),
    PREDICT("no recording", "-m merge wav/gone.wav", "wav/gone.wav"),
    PREDICT("half an export", "-m export_lacks wav/a.wav", "export_lacks/recognizer.json"),
    PREDICT("an unknown head", "-m export_head wav/a.wav", "export_head/recognizer.json"),
    PREDICT("a base", "-m base wav/a.wav", "recognizer.json"),
    PREDICT("a command", "-m merge 'touch pwned |'", "touch pwned |"),
    PREDICT("a command in a list", "-m merge data/pipe", "data/pipe/wav.scp: utterance 'b'"),
    INFO("no model", "wav", "wav"),
    INFO("neither folder nor name", "a/b/c", "a/b/c"),
    INFO("damaged weights", "base_cut", "base_cut/model.safetensors"),
    INFO("a list for a model", "merge_list", "merge_list/merge.json"),
]
FOREIGN = [
    EXPERT("no name", "--source gone --base base --out i", "'gone'"),
    EXPERT("no layout", "--source foreign --base base --out i", "foreign has none", "a"),
    EXPERT("a pickle", "--source evil_bin --base base --out i", "evil_bin/pytorch_model.bin"),
    EXPERT("no vocabulary", "--source foreign_ctc --base base --out i", "foreign_ctc/vocab.json"),
    EXPERT("another kind", "--source foreign_ctc --kind ser --base base --out i", "foreign_ctc"),
    BASE("nothing there", "--base ./gone --out b", "./gone"),
    BASE("no Hub id", "--base a/b/c --out b", "'a/b/c'"),
    BASE("a pickle that runs code", "--base evil.pt --out b", "evil.pt"),
    BASE("another checkpoint", "--base other.pt --out b", "other.pt", "'cfg'"),
    BASE("a pickle in a folder", "--base evil_bin --out b", "evil_bin/pytorch_model.bin"),
    BASE("another architecture", "--base base_type --out b", "base_type/config.json", "'bert'"),
    BASE("weights of another shape", "--base base_shape --out b", "base_shape"),
    BASE("damaged weights", "--base base_cut --out b", "base_cut/model.safetensors"),
    BASE("a configuration too many", "--base base --config recipes/fine.yaml --out b", "--config"),
    BASE("an unknown key", "--base random --config recipes/bomb.yaml --out b", "bomb.yaml"),
    FEATURES("no base", "--base ./gone --dump dump/test --out f", "gone"),
    FEATURES("no set", "--base base --dump dump/gone --out f", "dump/gone/wav.scp"),
    FEATURES("a pickle", "--base base --dump dump/evil_pickle --out f", "'a'", "pickle"),
    FEATURES("no batch", "--base base --dump dump/test --batch_seconds 0 --out f", "--batch_s"),
    FEATURES("no length", "--base base --dump dump/test --batch_seconds nan --out f", "nan"),
    HIDDEN("no length", "--base base --dump dump/test --batch_seconds nan --out f", "nan"),
    HIDDEN("no layer", "--base base --dump dump/test --layer top --out f", "top"),
    HIDDEN("a layer too deep", "--base base --dump dump/test --layer 9 --out f", "9"),
    HIDDEN("no set", "--base base --dump dump/gone --out f", "dump/gone"),
]
OTHERS = [
    program("fit_units")(
        "one unit", "--train_dump dump/test --dumps dump/test --out u --num_units 1", "--num_units"
    ),
    program("fit_units")("no set", "--train_dump dump/gone --dumps dump/gone --out u", "dump/gone"),
    program("label_share")("all and more", "--dump dump/scored --share 2 --out s", "share", "2"),
    program("leaky_split")("no set", "--sets data/none --out s", "data/none"),
    program("leaky_split")("all of it", "--sets data/ok --share 1 --out s", "--share 1"),
    program("make_folds")(
        "not formatted",
        "--dump dump/no_stats --out f --leave_out group --group_length 1",
        "no_stats",
    ),
    program("make_miniature")("onto a folder", "iemocap --out wav", "wav exists"),
    program("make_miniature")("no corpus", "timit --out new", "'timit'"),
    program("memory_history")("no history", "--system memory --history al --out h", "'al'"),
    program("memory_history")("no memory", "--system memory --history none --out h", "'mtlser'"),
    program("msp_submission")(
        "no pair", "--systems sys --dump dump/scored --labels labels.json --out s", "'sys'"
    ),
    program("msp_submission")(
        "no set", "--systems x=sys --dump dump/gone --labels labels.json --out s", "dump/gone"
    ),
    program("mtlser_sweep")(
        "an option of its own",
        "--alphas 1 --betas 1 --out s -- --alpha 3",
        "--alpha",
    ),
    program("mtlser_sweep")("no jobs", "--alphas 1 --betas 1 --out s --jobs 0", "--jobs 0"),
    program("prepare_iemocap")("no release", "--iemocap_root release --out_data p", "release"),
    program("prepare_nemo")("no release", "--nemo_root release --out_data p", "release"),
    program("prepare_ravdess")("no release", "--ravdess_root release --out_data p", "release"),
    program("prepare_msp_podcast")(
        "no release", "--msp_root release --out_data p --msp_version 1.12", "release"
    ),
    program("prepare_mini_espeak")(
        "shares above 1",
        "--size ci --out_data p --audio_dir q --voice_share 0.9 --words_share 0.9",
        "share",
    ),
    program("prepare_mini_espeak")("no size", "--size huge --out_data p --audio_dir q", "'huge'"),
    program("connectivity")(
        "one point",
        "--base base --ser ser --dump dump/scored --labels labels.json --out c --points 1",
        "--points 1",
    ),
    program("connectivity")(
        "no length",
        "--base base --ser ser --dump dump/scored --labels labels.json --out c --batch_seconds nan",
        "--batch_seconds nan",
    ),
    program("connectivity")(
        "no expert",
        "--base base --ser gone --dump dump/scored --labels labels.json --out c",
        "gone",
    ),
    program("compare_published")("no results", "--results gone.json --out p.md", "gone.json"),
    program("compare_published")(
        "damaged", "--results eight/results.json --out p.md", "eight/results.json"
    ),
    program("report_folds")("no folds", "--folds wav --out_dir f", "wav/results.json"),
    program("report_folds")(
        "damaged", "--folds half --out_dir f", "results.json of half", "systems"
    ),
    program("ablations")("no axes", "--config recipes/list.yaml -- run", "recipes/list.yaml"),
    program("ablations")("an unknown key", "--config recipes/fine.yaml -- run", "fine.yaml"),
    program("benchmark")("no such benchmark", "coffee", "coffee"),
    program("run_item")("no command", "--name x --workdir w", "--"),
    program("run_item")("no option", "--nme x -- true", "--nme"),
    program("run_job")("no backend", "cloud log true", "'cloud'"),
    program("run_job")("no log", "local", "LOG"),
]
TRAININGS = [
    program(name)("no such option", "--output_dir t --haed_lr 1", "--haed_lr")
    for name in (
        "train_base", "train_asr", "train_ser", "train_merge", "train_mtlser", "train_memory",
        "train_wap_adapter", "train_wap_head", "train_espnet_asr", "train_espnet_cls",
    )
] + [
    program("train_ser")("nothing given", "--output_dir t", "--labels is missing"),
    program("train_ser")("no configuration", "--output_dir t --config gone.yaml", "gone.yaml"),
    program("train_ser")("a list", "--output_dir t --config recipes/list.yaml", "list.yaml"),
    program("train_ser")("Python", "--output_dir t --config recipes/python.yaml", "python.yaml"),
    program("train_ser")("a bomb", "--output_dir t --config recipes/bomb.yaml", "bomb.yaml"),
    program("train_ser")("a list of epochs", f"{TRAIN}/epochs.yaml", "max_epoch", "[1]"),
    program("train_ser")("epochs in words", f"{TRAIN}/words.yaml", "words.yaml: max_epoch", "many"),
    program("train_ser")("a third truth", f"{TRAIN}/truth3.yaml", "resume must be true or false"),
    program("train_ser")("no learning rate", f"{TRAIN}/rate.yaml", "encoder_lr", "a number"),
    program("train_ser")("other keys", "--output_dir t --config recipes/fine.yaml", "weights"),
]  # fmt: skip
SHELLS = [
    MAIN("no such command", "predct a.wav", "'predct' (did you mean 'predict'?)"),
    MAIN("an option that predict has not", "predict -m merge --sped 2 wav/a.wav", "--sped"),
    RUN("no such option", "--staeg 3", "--staeg", "did you mean --stage?"),
    RUN("no such stage", "--stage 99", "--stage '99'"),
    RUN("a stage with a typo", "--stop_stage toknes", "--stop_stage 'toknes'"),
    RUN("stages in reverse", "--stage 5 --stop_stage 2", "--stage 5"),
    RUN("neither true nor false", "--force yes", "--force", "'yes'"),
    RUN("no value", "--seeds", "--seeds needs a value"),
    RUN("no number", "--ngpu one", "--ngpu", "'one'"),
    RUN("a command for a number", "--nj '$(touch pwned)'", "--nj", "$(touch pwned)"),
    RUN("no seeds", "--seeds 'a b'", "--seeds", "'a b'"),
    RUN("a stage without its inputs", "--stage 3 --stop_stage 3", "run stage 2 (audio) first"),
    RUN("an argument", "tokens", "'tokens'"),
]
ROWS = [*RECIPES, *MERGES, *SYSTEMS, *FOREIGN, *OTHERS, *TRAININGS, *SHELLS]
