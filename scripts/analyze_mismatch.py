"""Measure how far sampler and trainer are apart, without training: `python scripts/analyze_mismatch.py`.

For each dtype, vLLM samples responses and reports their log-probabilities mu; then the trainer's model, in the same
dtype, gives pi of the same tokens. Out come the paper's figure, a table of every mismatch metric with bootstrap
intervals, the ratio of the dtypes, the length at which importance weights are lost, and the responses themselves with
both log-probabilities (parquet). An analysis that was interrupted goes on where it stopped when the same command is
given again. docs/analysis.md says how to read it.
"""

import hashlib
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import tyro
from tyro.constructors import PrimitiveConstructorSpec

from scripts.parts.program import run_program
from tasks.errors import UsageError, require

Dtype = Literal["fp16", "bf16", "fp32"]

# `--layers` alone is a usual number of prompts; `--layers 8` is eight.
PromptsForLayers = Annotated[
    int,
    PrimitiveConstructorSpec(
        nargs="*",
        metavar="[PROMPTS]",
        instance_from_str=lambda words: int(words[0]) if words else 4,
        is_instance=lambda value: isinstance(value, int),
        str_from_instance=lambda value: [str(value)],
    ),
]


@dataclass
class Arguments:
    """Sample with vLLM, score with the trainer's model in the same dtype, and compare the two."""

    model: str = "embedded"
    """a Hugging Face model: local folder or hub id; "embedded" is the model of this repository"""
    dtype: tuple[Dtype, ...] = ("fp16", "bf16")
    """one or more; where fp16 and bf16 are both there, the table has their ratio"""
    data: str | None = None
    """questions: hub name, local folder, or a .jsonl, .json, .parquet or .csv file (default: the embedded additions)"""
    input_key: str = "problem"
    """column of the question"""
    output_key: str = "answer"
    """column of the reference answer, which must be there but is not used"""
    prompt_template: Literal["no", "qwen_math", "r1", "chat"] | None = None
    """how a question becomes a prompt (default: no for the embedded additions, else chat)"""
    prompts: int = 64
    """how many of the questions, drawn with the seed; all of them if there are fewer"""
    n: int = 4
    """responses per prompt, at temperature 1 and unfiltered"""
    max_tokens: int | None = None
    """a response is cut here; tokens (embedded model: 24, else 1024)"""
    prompt_max_length: int | None = None
    """longer prompts are dropped; tokens (embedded model: 32, else 1024)"""
    layers: PromptsForLayers = 0
    """also compare the hidden states after every layer, on so many prompts with a response each"""
    seed: int = 0
    """of the choice of prompts, of sampling and of the bootstrap"""
    output_dir: Path | None = None
    """folder of everything that is written (default: runs/mismatch-<model>)"""
    chunk: int = 16
    """prompts that are sampled, and saved, at a time"""
    score_tokens: int = 8192
    """most tokens of one forward pass of the trainer's model, padding included; a longer response goes alone"""
    bootstrap: int = 2000
    """bootstrap samples of the responses"""
    confidence: float = 0.95
    """of the intervals"""
    attn_implementation: Literal["eager", "sdpa", "flash_attention_2"] = "sdpa"
    """the trainer's attention; eager needs memory that grows with the square of the length"""
    lm_head_fp32: Annotated[bool, tyro.conf.FlagConversionOff] = False
    """compute the trainer's product with the vocabulary in FP32"""
    cpu_half: Literal["auto", "stock", "fp32-accumulate"] = "auto"
    """half products on a CPU (docs/cpu-half.md)"""
    max_num_seqs: int = 256
    """most responses that vLLM decodes at once"""
    vllm_gpu_ratio: float = 0.85
    """share of a GPU's memory that vLLM takes; the trainer's model comes after it, not beside it"""
    enforce_eager: Annotated[bool, tyro.conf.FlagConversionOff] = False
    """run vLLM without compilation and CUDA graphs (on a CPU it always does)"""
    trust_remote_code: Annotated[bool, tyro.conf.FlagConversionOff] = False
    """run Python code that comes with the model"""


# What the sampled and scored responses do not depend on.
FREE_TO_CHANGE = {"dtype", "layers", "output_dir", "bootstrap", "confidence", "max_num_seqs", "vllm_gpu_ratio"}
FREE_TO_CHANGE |= {"objectives", "reject", "lengths", "advantages", "differentiate", "sketch"}  # gradient_error.py's
LAYER_TOKENS = 512  # of a sequence, at most, in the comparison of layers


def check(arguments: Arguments) -> None:
    """Refuse numbers that cannot be meant.

    Raises:
        UsageError: with one sentence.
    """
    for name in ("prompts", "n", "chunk", "score_tokens", "max_num_seqs"):
        value = getattr(arguments, name)
        require(value >= 1, f"--{name.replace('_', '-')} is {value}; it must be at least 1.")
    require(arguments.layers >= 0, f"--layers is {arguments.layers}; give a number of prompts.")
    require(arguments.bootstrap >= 100, f"--bootstrap is {arguments.bootstrap}; an interval needs at least 100.")
    require(0 < arguments.confidence < 1, f"--confidence is {arguments.confidence:g}; it lies between 0 and 1.")
    require(0 < arguments.vllm_gpu_ratio < 1, "--vllm-gpu-ratio is a share of the GPU's memory, between 0 and 1.")
    require(len(arguments.dtype) > 0, "--dtype names no dtype; give one or more of fp16, bf16, fp32.")
    require(len(set(arguments.dtype)) == len(arguments.dtype), "--dtype names a dtype twice; name each once.")
    require(
        arguments.data is not None or arguments.model == "embedded",
        f"--model {arguments.model} needs --data: questions to sample answers to.",
    )


def training_options(arguments: Arguments) -> list[str]:
    """The command line of train.py that loads the same model and the same prompts."""
    options = {
        "model": arguments.model,
        "input-key": arguments.input_key,
        "output-key": arguments.output_key,
        "prompt-template": arguments.prompt_template,
        "prompt-max-length": arguments.prompt_max_length,
        "generate-max-length": arguments.max_tokens,
        "seed": arguments.seed,
        "vllm-gpu-ratio": arguments.vllm_gpu_ratio,
        "enforce-eager": arguments.enforce_eager,
        "trust-remote-code": arguments.trust_remote_code,
        "lm-head-fp32": arguments.lm_head_fp32,
        "cpu-half": arguments.cpu_half,
    }
    if arguments.max_tokens is None and arguments.model != "embedded":
        options["generate-max-length"] = 1024
    if arguments.data is not None:
        options |= {"task": "math", "data": arguments.data}
    # Nothing is trained: the smallest batches, and no evaluation.
    options |= {
        "rollout-batch-size": 1,
        "num-samples": 2,
        "train-batch-size": 2,
        "micro-batch-size": 1,
        "eval-steps": 0,
    }
    return [f"--{name}={value}" for name, value in options.items() if value is not None]


def load_prompts(arguments: Arguments):
    """The prompts to analyse, as the training command would make them, and its configuration.

    Raises:
        UsageError: model, data or options will not do.
    """
    import train
    from learners.command_line import parse
    from tasks.prompts import PromptStream

    try:
        config = parse(training_options(arguments))
    except UsageError as error:
        raise UsageError(str(error).replace("--generate-max-length", "--max-tokens")) from error
    task, prompts, _ = train.load_task(config)
    task.close()
    count = min(arguments.prompts, len(prompts))
    return config, PromptStream(prompts, count, arguments.seed).batch(1), task.template.stop


def open_folder(arguments: Arguments, config, prompts) -> Path:
    """The folder of the analysis, new or with the same settings as before.

    Raises:
        UsageError: it holds something else.
    """
    name = "embedded" if config.is_embedded else Path(arguments.model).name
    folder = arguments.output_dir or ROOT / "runs" / f"mismatch-{name}"
    require(not folder.exists() or folder.is_dir(), f"--output-dir {folder} is a file; name a folder.")
    settings = {key: value for key, value in vars(arguments).items() if key not in FREE_TO_CHANGE}
    settings |= {"max_tokens": config.sampling.generate_max_length, "prompts": len(prompts)}
    settings["prompt_tokens_sha256"] = hashlib.sha256(repr([p.token_ids for p in prompts]).encode()).hexdigest()
    file = folder / "settings.json"
    if file.is_file():
        try:
            before = json.loads(file.read_text())
        except ValueError as error:
            raise UsageError(f"{file} is no settings file of an analysis; name another --output-dir.") from error
        differing = [key for key in settings if settings[key] != before.get(key)]
        require(
            not differing,
            f"{folder} holds an analysis with another --{differing[0].replace('_', '-') if differing else ''}; "
            "name another --output-dir, or remove that folder.",
        )
    else:
        require(
            not folder.exists() or not any(folder.iterdir()),
            f"--output-dir {folder} holds other files; name a new folder.",
        )
        try:
            folder.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(settings, indent=2) + "\n")
        except OSError as error:
            raise UsageError(f"--output-dir {folder} cannot be written ({error.strerror}); name another.") from error
    return folder


def gather(arguments: Arguments, config, prompts, stop, folder: Path) -> dict:
    """Sample and score whatever is missing; returns the chunks of each dtype."""
    from actors import runtime
    from learners.options.precision import TORCH_DTYPES
    from scripts.parts.responses import Chunks

    dtypes = {name: TORCH_DTYPES[name] for name in arguments.dtype}
    count = -(-len(prompts) // arguments.chunk)
    chunks = {name: Chunks(folder / "responses", name, count) for name in dtypes}
    missing = any(chunk.not_scored() for chunk in chunks.values())
    if arguments.layers or missing:
        print("loading vLLM and the trainer's model (some 10 s) ...", flush=True)
    runtime.prepare(set(dtypes.values()), arguments.cpu_half)
    if not missing:
        print("every response is sampled and scored already")
        return chunks
    from scripts.parts.sampling import SamplingPlan, sample
    from scripts.parts.scoring import score

    plan = SamplingPlan(
        prompts, arguments.chunk, arguments.n, config.sampling.generate_max_length, stop, arguments.seed
    )
    sequences = min(arguments.max_num_seqs, arguments.n * min(arguments.chunk, len(prompts)))
    for name, dtype in dtypes.items():
        sample(config, dtype, plan, chunks[name], sequences)
        score(config, dtype, chunks[name], arguments.attn_implementation, arguments.score_tokens)
    return chunks


def compare_layers(arguments: Arguments, config, chunks: dict, folder: Path) -> None:
    """layers.csv and layers.png: the engines' hidden states on the same tokens, and how far each is from FP32."""
    import torch

    from learners.options.precision import TORCH_DTYPES
    from scripts.parts import layers, style
    from scripts.parts.sampling import sampling_engine
    from scripts.parts.scoring import free_memory, load_trained_model

    first = next(next(iter(chunks.values())).scored())
    texts = [r for r in first if r.sample == 0][: arguments.layers]
    sequences = [(r.prompt_ids + r.response_ids)[: min(LAYER_TOKENS, config.max_model_len - 1)] for r in texts]
    print(f"hidden states of {len(sequences)} sequences, {sum(map(len, sequences))} tokens: vLLM, trainer, FP32")

    def trainer_states(dtype):
        model = load_trained_model(config, dtype, arguments.attn_implementation)
        states = layers.states_of_trainer(model, sequences)
        del model
        free_memory()
        return states

    def sampler_states(dtype):
        with sampling_engine(config, dtype, 1, enforce_eager=True) as engine:  # compiled layers run no hooks
            return layers.states_of_sampler(engine, sequences)

    exact = trainer_states(torch.float32)
    differences = {}
    for name in chunks:
        sampler, trainer = sampler_states(TORCH_DTYPES[name]), trainer_states(TORCH_DTYPES[name])
        differences[name] = {
            "engines": layers.relative_difference(sampler, trainer),
            "sampler": layers.relative_difference(sampler, exact),
            "trainer": layers.relative_difference(trainer, exact),
        }
    layers.write_table(differences, folder / "layers.csv")
    style.save(layers.draw(differences, f"Hidden states, {model_name(config)}"), folder / "layers")
    for name, columns in differences.items():
        ends = ", ".join(f"{key} {values[0]:.2e} to {values[-1]:.2e}" for key, values in columns.items())
        print(f"{name}, relative difference after the first and the last layer: {ends}")


def analyse(arguments: Arguments, config, chunks: dict, folder: Path, seconds: float) -> None:
    """The table and the figure, from the scored responses."""
    from learners.diagnosis.horizon import LENGTHS, horizon_of
    from scripts.parts import horizon, mismatch_figure, style
    from scripts.parts.mismatch_table import MismatchTable
    from scripts.parts.statistics import ResponseTallies

    tallies, pictures, horizons = {}, {}, {}
    for name, chunk in chunks.items():
        tallies[name] = ResponseTallies(r for responses in chunk.scored() for r in responses)
        pictures[name] = mismatch_figure.MismatchPicture.of(r for responses in chunk.scored() for r in responses)
        tokens = horizon.ragged(r for responses in chunk.scored() for r in responses)
        horizons[name] = horizon_of(*tokens, LENGTHS, arguments.bootstrap, arguments.confidence)
    table = MismatchTable.of(tallies, arguments.bootstrap, arguments.confidence, arguments.seed)
    model = model_name(config)
    sizes = [f"{name}: {len(p.lengths)} responses, {sum(p.lengths):,} tokens" for name, p in pictures.items()]
    caption = f"{model}; {'; '.join(sizes)}"
    (folder / "mismatch.md").write_text(f"{table.markdown(caption)}\n{horizon.markdown(horizons)}")
    numbers = table.to_dict() | {"horizon": {name: made.to_dict() for name, made in horizons.items()}}
    (folder / "mismatch.json").write_text(json.dumps(numbers | describe(seconds), indent=2) + "\n")
    figure = mismatch_figure.draw(pictures, table.kl_notes(), f"Sampler and trainer, {model}")
    style.save(figure, folder / "mismatch")
    style.save(horizon.draw(horizons, f"Importance weights, {model}"), folder / "horizon")
    table.print(caption)
    for name, made in horizons.items():
        print(f"{name}: weights of responses lose half of the sample above {horizon.tokens_text(made.half)} tokens")


def model_name(config) -> str:
    """For titles."""
    return "the embedded model" if config.is_embedded else Path(config.model.model).name


def describe(seconds: float) -> dict:
    """Where and how the numbers were made."""
    import resource

    from learners.record.run_log import describe_environment

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {
        "seconds_of_last_call": round(seconds, 1),
        "peak_memory_gb": round(peak, 2),
        "environment": describe_environment(),
    }


def main(arguments: Arguments) -> int:
    """Analyse as told; returns the exit code."""
    started = time.perf_counter()
    check(arguments)
    config, prompts, stop = load_prompts(arguments)
    folder = open_folder(arguments, config, prompts)
    chunks = gather(arguments, config, prompts, stop, folder)
    analyse(arguments, config, chunks, folder, time.perf_counter() - started)
    if arguments.layers:
        compare_layers(arguments, config, chunks, folder)
    written = ", ".join(sorted(path.name for path in folder.iterdir()))
    print(f"{time.perf_counter() - started:.0f} s; written to {folder}/: {written}")
    return 0


if __name__ == "__main__":
    run_program(lambda: main(tyro.cli(Arguments)), goes_on=True)
