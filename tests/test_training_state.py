"""What a checkpoint holds and how it is taken up, with a stand-in for ZeRO: parameters that are plain tensors, cut up
among processes as its stages cut them. The real one: tests/engines/test_resuming.py, test_going_on.py."""

import itertools
import json
import random
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from actors.processes import Processes
from tasks.errors import UsageError
from tests.stand_ins import stand_ins

SHAPES = {"a.weight": (3, 4), "b.bias": (5,), "frozen": (2,), "c.weight": (2, 1, 3)}
KINDS = ("master", "exp_avg", "exp_avg_sq")
AVAILABLE = "AVAILABLE"


BUFFER = torch.zeros(64)


def lent(whole: torch.Tensor) -> torch.Tensor:
    """A gathered tensor, in the place where the last one was: no process holds all of them."""
    return BUFFER[: whole.numel()].copy_(whole.flatten()).view(whole.shape)


@pytest.fixture(scope="module")
def ts():
    """learners.checkpoints.training_state, with this file's ZeRO in place of DeepSpeed's."""
    with stand_ins("deepspeed.utils", "deepspeed.runtime.zero.partition_parameters"):
        sys.modules["deepspeed.runtime.zero.partition_parameters"].ZeroParamStatus.AVAILABLE = AVAILABLE
        sys.modules["deepspeed.utils"].__dict__.update(
            safe_get_full_fp32_param=lambda p: lent(p.whole["master"]),
            safe_get_full_optimizer_state=lambda p, kind: lent(p.whole[kind]),
            safe_get_local_fp32_param=lambda p: p.parts["master"],
            safe_set_local_fp32_param=lambda p, values: p.parts["master"].copy_(values),
            safe_set_local_optimizer_state=lambda p, values, kind: p.parts[kind].copy_(values),
        )
        from learners.checkpoints import training_state

    return training_state


class Optimizer:
    """ZeRO's around torch's AdamW, as far as a checkpoint sees it."""

    def __init__(self, parameters, stage: int):
        groups = [{"params": parameters[:1]}, {"params": parameters[1:]}]
        self.optimizer = torch.optim.AdamW(groups, lr=0.5)
        self.param_groups = self.optimizer.param_groups
        self.loss_scaler = SimpleNamespace(cur_scale=8.0, cur_iter=0, last_overflow_iter=-1, cur_hysteresis=2)
        self.linked, self.cast = 0, 0
        self._hp_optimizer_states_linked = True
        if stage < 3:
            self._lazy_init_hp_params_optimizer_state = self.link
            self.update_lp_params = lambda: setattr(self, "cast", self.cast + 1)

    def link(self):
        self.linked += not self._hp_optimizer_states_linked


class Learner:
    """A learner's process, with parts of ``truth``: name -> kind -> whole tensor."""

    def __init__(self, truth, rank: int, count: int, stage: int):
        self.processes, self.args = Processes(rank, count), SimpleNamespace(zero_stage=stage)
        self.causal_lm = torch.nn.Module()
        self.causal_lm.named_parameters = lambda: list(self.parameters.items())
        self.parameters = {name: torch.nn.Parameter(torch.zeros(shape)) for name, shape in SHAPES.items()}
        self.parameters["frozen"].requires_grad_(False)
        trained = [p for p in self.parameters.values() if p.requires_grad]
        total, begin = sum(p.numel() for p in trained), 0
        share = -(-total // count)
        for name, p in self.parameters.items():
            if not p.requires_grad:
                continue
            p.whole = {kind: tensor.clone() for kind, tensor in truth[name].items()}
            if stage == 3:
                self._cut_alone(p, rank, count, len(list(self.parameters)))
            else:
                start, stop = (min(max(edge - begin, 0), p.numel()) for edge in (rank * share, (rank + 1) * share))
                self._cut_in_line(p, start, stop)
            begin += p.numel()
        self.optimizer = Optimizer(trained, stage)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer.optimizer, lambda n: 1 / (1 + n))
        self.model, self.engine, self.log = None, Engine(trained), SimpleNamespace(state=lambda: {"of": "the log"})
        self.strategy = SimpleNamespace(backward=lambda loss, *_: loss.backward(), optimizer_step=self._step)
        self.steps_done, self.in_progress, self.rates = 0, None, []
        self._counters = {"query_step": 0}
        self.counters = lambda: self._counters
        self.set_counters = lambda counters: self._counters.update(counters)

    def _step(self, *_):
        assert not any(p.grad.any() for p in self.engine.trained)
        self.rates.append([group["lr"] for group in self.optimizer.param_groups])
        self.optimizer.optimizer.step()

    @staticmethod
    def _cut_alone(p, rank, count, number):
        """As stage 3 cuts each parameter by itself, into parts of one length."""
        size = -(-p.numel() // count)
        p.ds_id, p.ds_numel, p.ds_shape, p.ds_status = number, p.numel(), p.shape, AVAILABLE
        p.ds_tensor = torch.zeros(size)
        p.ds_tensor.ds_numel = size
        p.parts = {kind: torch.full((size,), -7.0) for kind in KINDS}
        p.given_up = 0
        p.partition = lambda: setattr(p, "given_up", p.given_up + 1)
        p.begin = min(rank * size, p.numel())
        p.end = min(p.begin + size, p.numel())
        p.data = torch.zeros(0)  # whole only while it is computed with

    @staticmethod
    def _cut_in_line(p, start, stop):
        """As stages 1 and 2 cut all of them, laid end to end."""
        p.begin, p.end, p._hp_mapping = start, stop, None
        p.parts = {kind: torch.full((stop - start,), -7.0) for kind in KINDS}
        if start < stop:
            address = SimpleNamespace(start=start, numel=stop - start)
            of_kind = lambda kind: p.parts[kind or "master"]
            p._hp_mapping = SimpleNamespace(lp_fragment_address=address, get_hp_fragment=of_kind)


class Engine:
    def __init__(self, trained):
        self.trained, self.training = trained, False

    def train(self):
        self.training = True

    def __call__(self, ids, lengths, chosen):
        assert self.training and lengths.tolist() == [2] and chosen.tolist() == [[True]]
        return torch.stack([p.sum() for p in self.trained])


def draw(kinds=KINDS, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {n: {k: torch.randn(shape, generator=generator) for k in kinds} for n, shape in SHAPES.items()}


def write(ts, folder, truth, count, stage, prepare=lambda learner: None):
    folder.mkdir()
    files = []
    for rank in range(count):
        learner = Learner(truth, rank, count, stage)
        prepare(learner)
        files += ts.write(learner, folder)
        assert (learner.optimizer.linked > 0) == (stage < 3 and ts.adam_steps(learner) > 0)
    assert sorted(set(files)) == sorted(folder.iterdir()) and len(set(files)) == len(files)


def after(steps: int):
    """A learner after some updates, whose scale has moved."""

    def prepare(learner):
        for _ in range(steps):
            loss = sum(p.sum() for p in learner.engine.trained)
            loss.backward()
            learner.optimizer.optimizer.step()
            learner.scheduler.step()
        learner.optimizer.loss_scaler = SimpleNamespace(
            cur_scale=2.0**steps, cur_iter=steps, last_overflow_iter=1, cur_hysteresis=1
        )
        learner.steps_done, learner._counters = 3 * steps, {"query_step": 100 * steps}

    return prepare


@pytest.mark.parametrize("steps", [0, 4])
@pytest.mark.parametrize(("written", "read"), itertools.product([(1, 1), (2, 2), (3, 3), (3, 1)], repeat=2))
def test_every_process_takes_up_its_part_whatever_cut_it_before(ts, tmp_path, monkeypatch, steps, written, read):
    truth = draw() if steps else draw(("master",))
    write(ts, tmp_path / "made", truth, *written, prepare=after(steps))
    states, weights = [json.loads(f.read_text()) for f in tmp_path.glob("made/state.json")], {}
    assert [state["format"] for state in states] == [2]
    for rank in range(written[0]):
        weights |= load_file(tmp_path / "made" / f"weights-{rank:04d}.safetensors")
    trained = [name for name in SHAPES if name != "frozen"]
    kinds = KINDS if steps else ("master",)
    assert set(weights) == {f"{kind}/{name}" for kind in kinds for name in trained}
    assert all(torch.equal(weights[f"{kind}/{n}"], truth[n][kind].flatten()) for n in trained for kind in kinds)
    count, stage = read
    for rank in range(count):
        monkeypatch.setattr(torch.distributed, "get_rank", lambda rank=rank: rank)
        learner = Learner(draw(seed=9), rank, count, stage)
        learner._counters = {"query_step": -1}
        ts.read(learner, tmp_path / "made")
        for name in trained:
            p = learner.parameters[name]
            for kind in KINDS:
                own = (
                    truth[name][kind].flatten()[p.begin : p.end]
                    if kind in kinds
                    else torch.full((p.end - p.begin,), -7.0)
                )
                assert torch.equal(p.parts[kind][: p.end - p.begin], own)
                padding = p.parts[kind][p.end - p.begin :]
                assert kind not in kinds or p.begin == p.end or not padding.any()
            if stage == 3:
                assert torch.equal(p.ds_tensor.data, p.parts["master"]) and p.given_up == 1
        assert learner.optimizer.cast == (stage < 3)
        assert (learner.optimizer.linked > 0) == (stage < 3 and steps > 0)
        scaler = learner.optimizer.loss_scaler
        assert (scaler.cur_scale, scaler.cur_iter, scaler.last_overflow_iter) == (2.0**steps, steps, 1)
        assert scaler.cur_hysteresis == 1
        assert (learner.steps_done, learner._counters) == (3 * steps, {"query_step": 100 * steps})
        assert {group["lr"] for group in learner.optimizer.param_groups} == {0.5 / (1 + steps)}
        assert learner.scheduler.last_epoch == steps
        assert learner.rates == ([[0.0, 0.0]] if steps else []), "moments are made by an update that changes nothing"
        assert {int(state["step"]) for state in learner.optimizer.optimizer.state.values()} == (
            {steps} if steps else set()
        )
        assert ts.adam_steps(learner) == steps and learner.in_progress is None
        assert all(not p.any() for p in learner.parameters.values())


def test_what_is_there_of_a_state_and_what_another_process_has_to_do_with_it(ts, tmp_path):
    write(ts, tmp_path / "made", draw(), 2, 2, prepare=after(1))
    state = json.loads((tmp_path / "made" / "state.json").read_text())
    told = {"world_size": 2, "zero_stage": 2, "log": {"of": "the log"}, "in_progress": None, "adam_steps": 1}
    assert {key: state[key] for key in told} == told and state["steps_done"] == 3
    assert state["trained"] == {name: list(shape) for name, shape in SHAPES.items() if name != "frozen"}
    assert state["loss_scaler"] == {"cur_scale": 2.0, "cur_iter": 1, "last_overflow_iter": 1, "cur_hysteresis": 1}
    assert ts.log_state(tmp_path / "made") == {"of": "the log"}
    without = Learner(draw(), 0, 1, 1)
    del without.optimizer.loss_scaler  # ZeRO-1 in BF16
    ts.read(without, tmp_path / "made")
    assert not hasattr(without.optimizer, "loss_scaler") and ts.describe(without, None)["loss_scaler"] == {}


def test_the_step_of_an_optimiser_that_counts_in_its_groups(ts):
    learner = Learner(draw(), 0, 1, 1)
    assert ts.adam_steps(learner) == 0
    learner.optimizer.param_groups[1]["step"] = 3
    assert ts.adam_steps(learner) == 3
    ts.set_adam_steps(learner, 8)
    assert learner.optimizer.param_groups[1]["step"] == 8 and "step" not in learner.optimizer.param_groups[0]


def test_a_step_that_was_stopped_goes_on_where_it_was(ts, tmp_path):
    from learners.rollouts.batch import RolloutBatch
    from learners.rollouts.step import Step

    mask = torch.tensor([[False, True], [True, True]])
    batch = RolloutBatch(
        torch.arange(6, dtype=torch.int32).view(2, 3), torch.tensor([3, 3]), mask, -torch.rand(2, 2),
        torch.tensor([1.0, 0.0]), torch.tensor([True, False]), advantages=torch.tensor([0.5, -0.5]),
    )  # fmt: skip

    def prepare(learner):
        learner.in_progress = Step(5, batch, {"time/sample": 2.0}, 3, False, 1.5)
        learner.in_progress.tally.add("train/loss", torch.tensor([1.0, 3.0]))

    write(ts, tmp_path / "made", draw(), 2, 1, prepare)
    for rank in (0, 1):
        learner = Learner(draw(), rank, 2, 1)
        ts.read(learner, tmp_path / "made")
        step = learner.in_progress
        assert (step.number, step.updates_done, step.at_rollout_weights, step.mean_weight) == (5, 3, False, 1.5)
        assert step.times == {"time/sample": 2.0}
        assert step.tally.counts == {"train/loss": 2.0 * (rank == 0)} and step.tally.sums == {
            "train/loss": 4.0 * (rank == 0)
        }
        made, expected = step.batch.tensors(), batch.tensors()
        assert made.keys() == expected.keys() and all(torch.equal(made[name], expected[name]) for name in made)


def test_random_numbers_go_on_where_they_were_and_new_processes_keep_theirs(ts, tmp_path):
    three = lambda: (random.random(), float(np.random.rand()), float(np.random.normal()), float(torch.rand(1)))
    write(ts, tmp_path / "made", draw(), 1, 1)
    expected = [three() for _ in range(3)]
    ts.read(Learner(draw(), 0, 2, 1), tmp_path / "made")
    assert [three() for _ in range(3)] == expected
    random.seed(5)
    own = random.getstate()
    ts.read(Learner(draw(), 1, 2, 1), tmp_path / "made")
    assert random.getstate() == own


def test_the_gpus_random_numbers_go_on_too(ts, monkeypatch):
    kept, given = torch.arange(16, dtype=torch.uint8), []
    assert "cuda" not in ts.random_state()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda: kept)
    monkeypatch.setattr(torch.cuda, "set_rng_state", given.append)
    state = json.loads(json.dumps(ts.random_state()))
    ts.set_random_state(state)
    assert len(given) == 1 and torch.equal(given[0], kept) and given[0].dtype == torch.uint8
    ts.set_random_state({name: value for name, value in state.items() if name != "cuda"})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    ts.set_random_state(state)
    assert len(given) == 1


def test_where_tensors_begin_in_a_file(ts, tmp_path):
    tensors = {"b": torch.tensor([1.0, 2.0]), "a": torch.tensor([3.0, 4.0, 5.0])}
    save_file(tensors, tmp_path / "file.safetensors", metadata={"made": "here"})
    found = ts.offsets(tmp_path / "file.safetensors")
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        read = np.fromfile(tmp_path / "file.safetensors", np.float32, len(tensor), offset=found[name])
        assert read.tolist() == tensor.tolist()


def test_another_model_and_another_version_are_refused(ts, tmp_path):
    write(ts, tmp_path / "made", draw(), 1, 1)
    other = Learner(draw(), 0, 1, 1)
    other.parameters["b.bias"] = torch.nn.Parameter(torch.zeros(6))
    with pytest.raises(UsageError, match=r"b\.bias has shape \[5\] there and \[6\] in this run; give the same --model"):
        ts.read(other, tmp_path / "made")
    more = Learner(draw(), 0, 1, 1)
    more.parameters = {"new": torch.nn.Parameter(torch.zeros(1))} | more.parameters
    with pytest.raises(UsageError, match=r"new has shape None there and \[1\]"):
        ts.read(more, tmp_path / "made")
    fewer = Learner(draw(), 0, 1, 1)
    del fewer.parameters["c.weight"]
    with pytest.raises(UsageError, match=r"c\.weight has shape \[2, 1, 3\] there and None"):
        ts.read(fewer, tmp_path / "made")
    state = json.loads((tmp_path / "made" / "state.json").read_text()) | {"format": 1}
    (tmp_path / "made" / "state.json").write_text(json.dumps(state))
    with pytest.raises(UsageError, match="has format 1, this program reads 2; use its version"):
        ts.read(Learner(draw(), 0, 1, 1), tmp_path / "made")
