"""A run warns of what is wrong between its engines, by name and once; a healthy one does not."""

import pytest

from tests.engines.conftest import built_learner

pytestmark = pytest.mark.engines


def nothing(learner) -> None:
    pass


def sample_at_another_temperature(learner) -> None:
    learner.actor.sampling_params.temperature = 0.9


def sample_with_the_step_before(learner) -> None:
    now = learner.sampler_weights
    copy = lambda: [(name, tensor.clone()) for name, tensor in now()]
    given = [copy()]

    def before():
        given.append(copy())
        return iter(given.pop(0))

    learner.sampler_weights = before


@pytest.mark.parametrize(
    ("spoil", "dtype", "warning"),
    [
        (nothing, "bf16", None),
        (sample_at_another_temperature, "bf16", "another temperature on one side"),
        (sample_with_the_step_before, "fp16", "the sampler seems to be 1 step behind"),
    ],
)
def test_a_fault_of_a_run_is_named_once(tmp_path, spoil, dtype, warning):
    with built_learner(tmp_path / "run", f"--dtype={dtype}", "--max-steps=12") as learner:
        said = []
        learner.log.say = said.append
        spoil(learner)
        for number in range(1, 13):
            learner.learn(learner.collect(number))
            learner.sync_params_to_actors()
    warned = [line for line in said if line.startswith("WARNING: step ")]
    assert len(warned) == (warning is not None), warned
    if warning is not None:
        assert warning in warned[0]
        assert f"python scripts/doctor.py {tmp_path / 'run'}" in warned[0] and "\n" not in warned[0]
