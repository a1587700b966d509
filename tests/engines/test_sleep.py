"""The order of sleeping and waking. To see it for real needs a GPU; here vLLM is told what to do, and notes it."""

import pytest

pytestmark = pytest.mark.engines


class Told:
    """Stands for vLLM's LLM: notes the calls."""

    def __init__(self):
        self.calls = []

    def sleep(self, level):
        self.calls.append(("sleep", level))

    def wake_up(self, tags):
        self.calls.append(("wake", *tags))


def test_each_part_is_woken_once_and_only_if_it_sleeps():
    import train
    from learners.command_line import parse

    train.prepare(parse([]))
    from actors.engine import SamplingEngine

    engine = object.__new__(SamplingEngine)
    engine.llm, engine.sleep_level, engine._asleep = Told(), 2, set()
    engine.wake_up(["kv_cache"])  # at the first synchronisation, and at the one after a resume, nothing sleeps
    assert engine.llm.calls == []
    engine.sleep()
    for tags in (["weights"], ["kv_cache"], ["kv_cache"]):
        engine.wake_up(tags)
    assert engine.llm.calls == [("sleep", 2), ("wake", "weights"), ("wake", "kv_cache")]
