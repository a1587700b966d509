"""Everything that train.py refuses of its options, each by a case that fires it: a refusal without one fails here."""

import ast
import copy
import functools
import json
import traceback

import pytest
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import HfHubHTTPError

from actors.launch import Launch
from learners.command_line import complete, parse
from learners.objectives import OBJECTIVES, REJECTIONS
from learners.options.config import Config
from tasks.arithmetic.model import CHECKPOINT
from tasks.errors import UsageError, flag
from tests.conftest import ROOT

FILES = ("learners/options/checks.py", "learners/options/presets.py", "learners/record/output_checks.py",
         "learners/model/config_file.py", "actors/launch.py")  # fmt: skip
ELSEWHERE = {"device_index"}  # tests/test_launch.py: a refusal that is no matter of options
LORA, DYNAMIC = "--lora-rank 4", "--dynamic-sampling True"
PLANNED = "--model {place}/small --plan True --plan-memory 80"

# What is asked for, and words of the sentence that refuses it. {place} is a folder with what `make_place` puts there.
REFUSED = {
    "threshold of a rejection": ("--geo-low 0.9", "by --objective pg-seq-is; add --reject geo, or leave it out"),
    # numbers
    "no step": ("--max-steps 0", "--max-steps is 0; it must be greater than 0"),
    "top-p of nothing": ("--eval-top-p 0", "--eval-top-p must lie above 0 and at most at 1"),
    "top-p above all": ("--eval-top-p 1.01", "--eval-top-p must lie above 0 and at most at 1"),
    "k beyond n": ("--eval-n 4 --eval-temperature 1 --eval-k 5", "--eval-k is 5; it must lie between 1 and --eval-n 4"),
    "k below 1": ("--eval-k -1", "--eval-k is -1; it must lie between 1"),
    "none of the GPU": ("--vllm-gpu-ratio 0", "--vllm-gpu-ratio is a share of the GPU's memory"),
    "all of the GPU": ("--vllm-gpu-ratio 1", "--vllm-gpu-ratio is a share of the GPU's memory"),
    "negative warm-up": ("--lr-warmup-ratio -0.1", "--lr-warmup-ratio is a share of the updates"),
    "warm-up to the end": ("--lr-warmup-ratio 1", "--lr-warmup-ratio is a share of the updates"),
    "a buffer beyond the end": ("--overlong-buffer 25", "--overlong-buffer 25 is the end of"),
    "a seed too large": (f"--seed {2**32}", "--seed must be below 2^32"),
    "a beta of 1": ("--adam-beta-1 1", "--adam-beta-1 must lie in [0, 1)"),
    "a negative beta": ("--adam-beta-2 -0.1", "--adam-beta-2 must lie in [0, 1)"),
    "rounds of nothing": ("--max-sampling-rounds 3", "belongs to dynamic sampling; add --dynamic-sampling True"),
    "no round": (f"{DYNAMIC} --max-sampling-rounds 0", "--max-sampling-rounds is 0; it must be greater than 0"),
    "two warm-ups": ("--lr-warmup-steps 3 --lr-warmup-ratio 0.1", "give one of the two"),
    # shares
    "rollout and update": ("--train-batch-size 100", "= 512, which --train-batch-size 100 does not divide"),
    "update and micro-batch": ("--micro-batch-size 48", "is not a multiple of --micro-batch-size 48 x 1 process(es)"),
    "two ways to cut": ("--micro-batch-size 8 --micro-batch-tokens 900", "two ways to cut an update"),
    "too few tokens": ("--micro-batch-tokens 55", "cannot hold one response with its prompt, of up to 56 tokens"),
    "an engine of two processes": ("--tensor-parallel 2", "--tensor-parallel 2 does not divide the 1 process(es)"),
    "an engine of none": ("--tensor-parallel 0", "such as: torchrun --nproc-per-node 1 train.py"),
    "parameters offloaded at stage 2": ("--offload parameters --zero-stage 2", "--offload parameters needs --zero"),
    # memory
    "GPUs without a plan": ("--plan-gpus 8", "--plan-gpus describes GPUs to plan for; add --plan True"),
    "memory without a plan": ("--plan-memory 80", "--plan-memory describes GPUs to plan for; add --plan True"),
    "no GPUs to plan for": ("--plan True --plan-gpus 0", "--plan-gpus is 0; it must be greater than 0"),
    "no memory to plan for": ("--plan True --plan-memory 0", "--plan-memory is 0"),
    "MiB for GiB": (f"{PLANNED}559", "--plan-memory 80559.0 is no GPU's memory in GiB"),
    "a plan for the embedded model": ("--plan True", "--plan is for real models"),
    "adapters to a base that was dropped": (
        f"{LORA} --lora-sync adapter --vllm-sleep-level 2", "drops the base model's weights"
    ),
    # adapters
    "negative rank": ("--lora-rank -1", "--lora-rank is -1; it must lie between 0 (off) and 512"),
    "a rank too large": ("--lora-rank 513", "--lora-rank is 513; it must lie between 0 (off) and 512"),
    "alpha without adapters": ("--lora-alpha 4", "--lora-alpha is not used without --lora-rank"),
    "targets without adapters": ("--lora-targets q_proj", "--lora-targets is not used without --lora-rank"),
    "a synchronisation without adapters": ("--lora-sync adapter", "--lora-sync is not used without --lora-rank"),
    "an alpha of 0": (f"{LORA} --lora-alpha 0", "--lora-alpha is 0; it must be greater than 0"),
    # precision
    "scaling and a BF16 learner": ("--train-dtype bf16 --hysteresis 3", "the learner trains in bf16; leave it out"),
    "fixed and dynamic scale": ("--loss-scale 8 --hysteresis 3", "--loss-scale 8 is fixed and --hysteresis belongs"),
    "a start below 1": ("--initial-scale-power -1", "--initial-scale-power must lie between 0 and 60"),
    "a start beyond": ("--initial-scale-power 61", "--initial-scale-power must lie between 0 and 60"),
    "no window": ("--loss-scale-window 0", "--loss-scale-window must be at least 1"),
    "no hysteresis": ("--hysteresis 0", "--hysteresis must be at least 1"),
    "a minimum of 0": ("--min-loss-scale 0", "--min-loss-scale 0 must be at least 1"),
    "minimum above start": ("--min-loss-scale 4 --initial-scale-power 1", "at most the initial scale, 2^1"),
    # objective
    "a rejection twice": ("--reject k3 k3", "--reject names one twice"),
    "objective and threshold": ("--clip-low 0.1", "--clip-low is not used by --objective pg-seq-is; leave it out"),
    "a rejection's band without it": ("--reject k3 veto --geo-low 2", "nor by --reject veto; add --reject geo, or"),
    "a cap of nothing": ("--reject m2po --m2-cap 0", "--m2-cap is 0; it must be greater than 0"),
    "a ratio below 0": ("--objective cispo --clip-low 1.1", "--clip-low is 1.1; a ratio is never below 0"),
    "dual clip below 1": ("--objective grpo --dual-clip 0.5", "--dual-clip is 0.5; it must be above 1"),
    "dual clip of 1": ("--objective grpo --dual-clip 1", "--dual-clip is 1; it must be above 1"),
    "a band upside down": ("--objective icepop --icepop-low 6", "--icepop-low must be below --icepop-high"),
    "a rejection upside down": ("--reject geo --geo-low 2", "--geo-low must be below --geo-high"),
    "a band of nothing": ("--reject geo --geo-low 1.001", "--geo-low must be below --geo-high"),
    "outliers upside down": ("--reject outlier --outlier-high 1e-5", "--outlier-low must be below --outlier-high"),
    "no weight to normalise": ("--objective vespo --is-batch-normalize True", "--is-batch-normalize is for"),
    "negative KL weight": ("--beta -0.1", "--beta is -0.1; it must not be negative"),
    "no group": ("--num-samples 1 --train-batch-size 64", "--num-samples 1 leaves no group"),
    # task
    "no data": ("--task math", "--task math needs --data"),
    "data for the embedded task": ("--data x.jsonl", "--data is not used by --task arithmetic"),
    "evaluation data for it": ("--eval-data x.jsonl", "--eval-data is not used by --task arithmetic"),
    "a template for the embedded model": ("--prompt-template r1", "The embedded model knows bare sums only"),
    "no such level": ("--arithmetic-levels 7", "--arithmetic-levels takes one or more of 0, 1, 2, 3"),
    "weights of something else": ("--task math --data a b --data-weights 1", "names 2 sources and --data-weights 1"),
    "a weight of 0": ("--task math --data a b --data-weights 1 0", "--data-weights must all be greater than 0"),
    "a verdict on sums": ("--stop-when-passed True", "--task arithmetic has none"),
    "greedy more than once": ("--eval-n 4", "--eval-n above 1 at --eval-temperature 0"),
    # presets
    "no such preset": ("--preset nope", "--preset nope does not exist; choose from tiny"),
    "a preset without its data": ("--preset dense-qwen3-14b", "--preset dense-qwen3-14b needs --data"),
    # model
    "no such folder": ("--model ./nowhere", "neither a folder nor a hub id; check the path"),
    "no such path": ("--model a/b/c", "neither a folder nor a hub id; check the path"),
    "no home": ("--model ~nobody", "neither a folder nor a hub id; check the path"),
    "no config.json": ("--model {place}/filled", "it has no config.json"),
    "no weights": ("--model {place}/no-weights", "has no weights"),
    "half a config.json": ("--model {place}/broken", "its config.json cannot be read"),
    "no language model": ("--model {place}/bert", "its config.json names ['BertModel']"),
    "a router where there is none": ("--router-fp32 True", "--router-fp32 is for mixtures of experts"),
    "beyond the context": ("--generate-max-length 481", "exceed the model's context of 512 tokens"),
    "not on the hub": ("--model nobody/answers-no", "nor a model that the hub gives (404"),
    "no hub": ("--model nobody/does-not-answer", "the hub cannot be reached (no network)"),
    "no hub is wanted": ("--model nobody/offline", "HF_HUB_OFFLINE is set"),
    # folders
    "a file for a folder": ("--output-dir {place}/file", "is a file; name a folder"),
    "a file to export to": ("--export {place}/file", "is a file; name a folder"),
    "nowhere to write": ("--output-dir /proc/no/such/run", "cannot be written"),
    "an export over something": ("--export {place}/filled", "is not empty; name a new folder"),
    "no checkpoint": ("--resume {place}/filled", "is no checkpoint; name a folder such as"),
    "a finished run": ("--output-dir {place}/finished", "already holds a finished run; name a new folder"),
    "an unfinished run": ("--output-dir {place}/unfinished --resume never", "already holds an unfinished run"),
    "another run's checkpoint": (
        "--output-dir {place}/finished-not --resume {place}/unfinished/checkpoints/step-000005",
        "is not the newest checkpoint",
    ),
    "an older checkpoint": (
        "--output-dir {place}/unfinished --resume {place}/unfinished/checkpoints/step-000005",
        "is not the newest checkpoint of the run in",
    ),
    "half a run's config.json": ("--output-dir {place}/broken", "holds a config.json that cannot be read"),
    "no run's config.json": ("--output-dir {place}/no-weights", "holds a config.json that is no run's"),
    "another run": ("--output-dir {place}/unfinished --seed 4", "holds an unfinished run with --seed 0, not 4"),
    # processes
    "prompts among three": ("", "--rollout-batch-size 64 does not divide among 3 processes", {"WORLD_SIZE": "3"}),
    "an update among three": (
        "--rollout-batch-size 48", "--train-batch-size 128 does not divide among 3 processes", {"WORLD_SIZE": "3"}
    ),
    "an engine of two of three": (
        "--rollout-batch-size 48 --train-batch-size 192 --tensor-parallel 2", "2 does not divide the 3 process(es)",
        {"WORLD_SIZE": "3"},
    ),
    "no address": ("", "MASTER_ADDR is not set though RANK or WORLD_SIZE is", {"MASTER_ADDR": None}),
    "a rank beyond": ("", "Rank 2 (local 0) is not among 2 processes", {"RANK": "2"}),
    "a local rank beyond": ("", "Rank 0 (local 2) is not among 2 processes (2 on this machine)", {"LOCAL_RANK": "2"}),
    "a negative rank": ("", "Rank -1 (local 0) is not among 2 processes", {"RANK": "-1"}),
    "a word for a number": ("", "RANK is 'three', which is no whole number", {"RANK": "three"}),
    "two launchers": ("", "contradicts Slurm's task 1 of 2", {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1"}),
}  # fmt: skip
ALONE = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"} | {
    "LOCAL_WORLD_SIZE": None,
    "SLURM_STEP_NUM_TASKS": None,
    "TORCHELASTIC_RUN_ID": None,
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a file, models and runs, most of them with something wrong."""
    place = tmp_path_factory.mktemp("place")
    (place / "file").write_text("")
    good = json.loads((CHECKPOINT / "config.json").read_text())
    written = {
        "filled": None, "no-weights": good, "broken": "{", "bert": good | {"architectures": ["BertModel"]},
        "small": good, "finished": parse([]).to_dict(), "unfinished": parse([]).to_dict(),
        "finished-not": parse([]).to_dict(),
    }  # fmt: skip
    for name, content in written.items():
        (place / name).mkdir()
        (place / name / "model.safetensors").write_bytes(b"") if name not in ("no-weights",) else None
        if content is not None:
            text = content if isinstance(content, str) else json.dumps(content)
            (place / name / "config.json").write_text(text)
    (place / "finished" / "summary.json").write_text(json.dumps({"status": "finished"}))
    for step in ("step-000005", "step-000010"):
        (place / "unfinished" / "checkpoints" / step).mkdir(parents=True)
        (place / "unfinished" / "checkpoints" / step / "manifest.json").write_text("{}")
    return place


def answer(self, model, **_):
    """The hub's, by the model's name."""
    if model.endswith("answers-no"):
        error = HfHubHTTPError.__new__(HfHubHTTPError)
        Exception.__init__(error, "404 Client Error.\nRepository not found")
        raise error
    raise ConnectionError("no network")


@functools.cache
def outcome(case: str, place) -> tuple[str, tuple[str, int]]:
    """The sentence that refuses a case, and where in the sources it stands."""
    words, _, *environment = REFUSED[case]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(HfApi, "model_info", answer)
        patch.setattr(constants, "HF_HUB_OFFLINE", "offline" in words)
        for name, value in (ALONE | environment[0]).items() if environment else ():
            patch.setenv(name, value) if value is not None else patch.delenv(name, raising=False)
        with pytest.raises(UsageError) as refusal:
            parse(words.format(place=place).split())
    frames = [f for f in traceback.extract_tb(refusal.tb) if not f.filename.endswith("tasks/errors.py")]
    return str(refusal.value), (frames[-1].filename.removeprefix(f"{ROOT}/"), frames[-1].lineno)


@pytest.mark.parametrize("case", REFUSED)
def test_refused_with_one_sentence(case, place):
    sentence, _ = outcome(case, place)
    assert REFUSED[case][1] in sentence
    assert "\n" not in sentence and sentence.endswith(".")


def refusal_of(**options) -> str | None:
    """Of these options, as the command line has them after parsing; None where they are taken."""
    config = Config()
    for name, value in options.items():
        setattr(*config.option(name), value)
    try:
        complete(config, [], Launch())
    except UsageError as error:
        return str(error)
    return None


POSITIVE = """rollout_batch_size num_samples generate_max_length prompt_max_length train_batch_size micro_batch_size
keep num_ppo_epochs num_prompt_epoch max_steps adam_eps train_problems eval_n max_eval temperature learning_rate
max_norm""".split()
NOT_NEGATIVE = """eval_steps lr_warmup_steps overlong_buffer eval_temperature log_samples save_every weight_decay seed
log_rollouts loss_scale""".split()


@pytest.mark.parametrize("name", POSITIVE)
def test_a_number_must_be_above_0(name):
    for value in (0, -1):
        assert refusal_of(**{name: value}) == f"{flag(name)} is {value}; it must be greater than 0."


@pytest.mark.parametrize("name", NOT_NEGATIVE)
def test_a_number_must_not_be_below_0_and_may_be_0(name):
    assert refusal_of(**{name: -1}) == f"{flag(name)} is -1; it must not be negative."
    assert refusal_of(**{name: 0}) is None


SMALLEST_AND_LARGEST = {  # that are still taken
    "eval_top_p": (1e-9, 1.0), "vllm_gpu_ratio": (1e-9, 0.999), "lr_warmup_ratio": (0.0, 0.999),
    "overlong_buffer": (0, 24), "seed": (0, 2**32 - 1), "adam_beta_1": (0.0, 0.999), "adam_beta_2": (0.0, 0.999),
    "micro_batch_tokens": (56, 10**6), "initial_scale_power": (0, 60), "loss_scale_window": (1, 10**6),
    "hysteresis": (1, 10), "min_loss_scale": (1, 2**16), "lora_rank": (0, 512), "max_steps": (1, 10**6),
    "micro_batch_size": (1, 128), "num_samples": (2, 512), "beta": (0.0, 10.0), "generate_max_length": (1, 480),
}  # fmt: skip


@pytest.mark.parametrize("name", SMALLEST_AND_LARGEST)
def test_what_lies_just_within_is_taken(name):
    for value in SMALLEST_AND_LARGEST[name]:
        assert refusal_of(**{name: value}) is None, value


def test_combinations_that_are_taken():
    assert refusal_of(eval_n=4, eval_temperature=0.1, eval_k=4) is None
    assert refusal_of(eval_n=4, eval_temperature=0.1, eval_k=1) is None
    assert refusal_of(lora_rank=4, lora_sync="adapter", vllm_sleep_level=1) is None
    assert refusal_of(lora_rank=4, lora_sync="merge", vllm_sleep_level=2) is None
    assert refusal_of(lora_rank=4, lora_alpha=0.1, lora_targets=("q_proj",)) is None
    assert refusal_of(offload="parameters") is None and refusal_of(offload="optimizer", zero_stage=1) is None
    assert refusal_of(objective="gmpo", clip_low=3.0) is None, "of the ratio's logarithm"
    assert refusal_of(objective="cispo", clip_low=1.0) is None
    assert refusal_of(objective="grpo", dual_clip=1.001) is None
    assert refusal_of(objective="pg-seq-is", is_batch_normalize=True) is None
    assert refusal_of(loss_scale=8.0) is None and refusal_of(train_dtype="bf16") is None
    assert refusal_of(task="sanity", data=("x",), prompt_template="no", stop_when_passed=True) is None
    assert refusal_of(task="math", data=("a", "b"), data_weights=(2, 1), eval_data="c", prompt_template="r1") is None
    assert refusal_of(dynamic_sampling=True, max_sampling_rounds=1) is None
    assert refusal_of(arithmetic_levels=(0, 1, 2, 3)) is None
    assert "takes one or more" in refusal_of(arithmetic_levels=())


SCALING = {"loss_scale": 8.0, "initial_scale_power": 8, "loss_scale_window": 8, "hysteresis": 8, "min_loss_scale": 8}


@pytest.mark.parametrize("name", SCALING)
def test_every_option_of_loss_scaling_is_fp16s_and_all_but_one_are_of_dynamic_scaling(name):
    for dtype in ("bf16", "fp32"):
        refusal = refusal_of(train_dtype=dtype, **{name: SCALING[name]})
        assert (
            refusal is not None
            and f"{flag(name)} belongs to FP16's loss scaling and the learner trains in {dtype}" in (refusal)
        )
    assert refusal_of(sample_dtype="bf16", **{name: SCALING[name]}) is None
    if name != "loss_scale":
        assert f"{flag(name)} belongs to dynamic scaling" in refusal_of(loss_scale=2.0, **{name: SCALING[name]})


MAY_BE_OFF = {"dual_clip", "log_weight_clamp", "dppo_tau"}
THRESHOLDS = sorted({t for made in (*OBJECTIVES.values(), *REJECTIONS.values()) for t in made.thresholds})


@pytest.mark.parametrize("threshold", THRESHOLDS)
def test_a_threshold_is_above_0_where_it_is_used_and_refused_where_it_is_not(threshold):
    users = [{"objective": name} for name, made in OBJECTIVES.items() if threshold in made.thresholds]
    users += [
        {"objective": "reinforce", "reject": (name,)} for name, m in REJECTIONS.items() if threshold in m.thresholds
    ]
    for chosen in users:
        off, below = refusal_of(**chosen, **{threshold: 0.0}), refusal_of(**chosen, **{threshold: -0.5})
        if threshold in MAY_BE_OFF:
            assert off is None and below == f"{flag(threshold)} is -0.5; it must not be negative."
        else:
            assert off == f"{flag(threshold)} is 0; it must be greater than 0."
            assert below == f"{flag(threshold)} is -0.5; it must be greater than 0."
    for value in (0.0, 0.5, 2.0):
        unused = refusal_of(objective="reinforce", **{threshold: value})
        users = " ".join(f"--reject {name}" for name, made in REJECTIONS.items() if threshold in made.thresholds)
        remedy = f"add {users}, or leave it out" if users else "leave it out"
        assert unused == f"{flag(threshold)} is not used by --objective reinforce; {remedy}."


# ------------------------------------------------------------------------------------------- what may change, going on

MAY_CHANGE = """preset trust_remote_code attn_implementation gradient_checkpointing vllm_gpu_ratio vllm_sleep_level
tensor_parallel enforce_eager enable_prefix_caching micro_batch_size micro_batch_tokens train_on_all zero_stage offload
cpu_half lora_sync eval_steps""".split()


def test_a_run_goes_on_with_no_option_changed_but_these(place):
    from learners.record.output_checks import check_output

    before = parse([])
    before.output.output_dir = str(place / "unfinished")
    for group in vars(before):
        for name, value in vars(getattr(before, group)).items():
            if name in ("output_dir", "resume", "export"):
                continue
            changed = copy.deepcopy(before)
            setattr(getattr(changed, group), name, "another" if value != "another" else "other")
            if group == "output" or name in MAY_CHANGE:
                check_output(changed)
            else:
                with pytest.raises(UsageError, match=f"with {flag(name)} .*not another; give the same options"):
                    check_output(changed)


# ------------------------------------------------------------------------------------------------ nothing is left out


def refusals(file: str) -> dict[int, str]:
    """Line -> function of every refusal in a file."""
    found = {}
    for function in [n for n in ast.walk(ast.parse((ROOT / file).read_text())) if isinstance(n, ast.FunctionDef)]:
        for node in ast.walk(function):
            called = node.func if isinstance(node, ast.Call) else node.exc.func if isinstance(node, ast.Raise) and (
                isinstance(node.exc, ast.Call)) else None  # fmt: skip
            name = getattr(called, "id", "")
            if name in ("require", "require_number") or (name == "UsageError" and isinstance(node, ast.Raise)):
                found[node.lineno] = function.name
    return found


def test_every_refusal_is_fired_by_one_of_these_cases(place):
    fired = {outcome(case, place)[1] for case in REFUSED}
    silent = [
        f"{file}:{line} in {function}"
        for file in FILES
        for line, function in refusals(file).items()
        if (file, line) not in fired and function not in ELSEWHERE
    ]
    assert not silent
