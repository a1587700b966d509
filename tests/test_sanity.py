"""The verdict of the sanity test, and what its builder and the evaluation refuse."""

import pytest

from learners.command_line import parse as parse_train
from learners.record.sanity import sanity_passed
from scripts import build_sanity_set, evaluate
from tasks.errors import UsageError


def test_the_verdict_is_about_the_last_epoch():
    assert sanity_passed([0.9, 0.96], 3) is None
    assert sanity_passed([0.1, 0.96, 0.96, 0.96], 3) is True
    assert sanity_passed([1.0, 1.0, 0.94, 0.95, 0.96], 3) is False
    assert sanity_passed([0.95, 0.95], 2) is False, "above 95%, not at it"
    assert sanity_passed([0.9, 1.0], 2) is False
    assert sanity_passed([0.96], 1) is True


def test_stopping_on_the_verdict_needs_the_sanity_task(tmp_path):
    with pytest.raises(UsageError, match="--stop-when-passed"):
        parse_train(["--stop-when-passed", "True", f"--output-dir={tmp_path / 'run'}"])


BAD_EVALUATIONS = {
    "no responses": (["--n", "0"], "--n is 0"),
    "k above n": (["--n", "4", "--k", "5"], "--k is 5"),
    "greedy more than once": (["--temperature", "0"], "--temperature 0"),
    "no problems": (["--max-problems", "0"], "--max-problems is 0"),
    "unknown benchmark": (["--benchmark", "aime99"], "no benchmark of that name"),
    "a name twice": (["--benchmark", "arithmetic", "arithmetic"], "Two benchmarks are called arithmetic"),
    "a dtype twice": (["--dtype", "fp16", "fp16"], "--dtype names a dtype twice"),
    "context": (["--max-tokens", "5000"], "exceed the model's context of 512"),
    "prompts too long": (["--prompt-max-length", "2"], "exceeds --prompt-max-length 2"),
    "some too long": (["--prompt-max-length", "7"], "of the prompts of arithmetic exceed --prompt-max-length 7"),
    "top-p": (["--top-p", "1.5"], "--top-p is 1.5"),
    "no such model": (["--model", "./none", "--benchmark", "arithmetic"], "--model ./none does not exist"),
}
BAD_BUILDS = {
    "no samples": (["--samples", "0"], "--samples is 0"),
    "band upside down": (["--low", "0.8", "--high", "0.2"], "0 <= low <= high <= 1"),
    "greedy": (["--temperature", "0"], "--temperature 0"),
    "math without data": (["--task", "math"], "--task math needs --data"),
    "data without math": (["--data", "x.jsonl"], "--data is not used by --task arithmetic"),
    "a set of a set": (["--task", "sanity", "--data", "x"], "--task sanity is what this builds"),
    "context": (["--max-tokens", "5000"], "exceed the model's context of 512"),
}


@pytest.mark.parametrize(
    ("script", "arguments", "sentence"),
    [(evaluate, *case) for case in BAD_EVALUATIONS.values()]
    + [(build_sanity_set, *case) for case in BAD_BUILDS.values()],
    ids=[f"evaluate, {name}" for name in BAD_EVALUATIONS] + [f"build, {name}" for name in BAD_BUILDS],
)
def test_what_cannot_work_is_refused_and_nothing_is_written(tmp_path, script, arguments, sentence):
    folder = tmp_path / "out"
    with pytest.raises(UsageError) as refused:
        script.main(script.parse([*arguments, f"--output-dir={folder}"]))
    assert sentence in str(refused.value)
    assert str(refused.value).endswith(".") and "\n" not in str(refused.value)
    assert not folder.exists()


def test_hyphens_underscores_and_equals_signs_are_understood(tmp_path):
    arguments = ["--max_tokens=9", "--batch-invariant", "False", "--dtype", "fp32", "bf16", "--prompt_template", "r1"]
    parsed = evaluate.parse(arguments)
    assert (parsed.sampling.max_tokens, parsed.sampling.batch_invariant) == (9, False)
    assert (parsed.dtype, parsed.prompt_template) == (("fp32", "bf16"), "r1")


def test_the_papers_settings_are_the_defaults():
    evaluation, build = evaluate.parse([]), build_sanity_set.parse([])
    assert (evaluation.n, evaluation.sampling.temperature, evaluation.sampling.top_p) == (32, 0.6, 0.95)
    assert (build.samples, build.low, build.high, build.sampling.temperature) == (40, 0.2, 0.8, 1.0)
