"""What passes between processes: real ones, that meet by gloo, against one process that has everything."""

import json
import math
import multiprocessing
import os
import traceback
from types import SimpleNamespace

import cloudpickle
import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st

from actors.processes import Processes, across_processes, from_first, gather, place
from learners.checkpoints.folders import Checkpoints, find_checkpoint, name_of
from learners.checkpoints.interruption import Interruption
from learners.command_line import parse
from learners.record.evaluation import evaluate
from learners.record.tally import Tally


def _work(work, rank, count, folder, queue):
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    try:
        store = dist.FileStore(f"{folder}/meet", count)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=count)
        queue.put((rank, cloudpickle.loads(work)(rank), ""))
    except BaseException:
        queue.put((rank, None, traceback.format_exc()))
    dist.destroy_process_group()


def on_processes(count: int, work, folder) -> list:
    """What ``work(rank)`` returns in each of so many processes, by rank; they are forked from one that has nothing but
    the imports: this one may have threads by now, or a process group of its own."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.test_collecting", "tests.test_updater"])
    queue, work = context.Queue(), cloudpickle.dumps(work)
    started = [context.Process(target=_work, args=(work, rank, count, folder, queue)) for rank in range(count)]
    for process in started:
        process.start()
    results = sorted((queue.get(timeout=120) for _ in started), key=lambda told: told[0])
    for process in started:
        process.join(10)
    assert not any(error for *_, error in results), "".join(error for *_, error in results)
    return [result for _, result, _ in results]


# ------------------------------------------------------------------------------------------------ the tally


def parts_of(seed: int, count: int) -> list[list[torch.Tensor]]:
    """What each of some processes tallies, two times; some have nothing at a time."""
    rng = np.random.default_rng(seed)
    return [[torch.tensor(rng.normal(0, 3, rng.integers(0, 4))) for _ in range(2)] for _ in range(count)]


def tell(tally: Tally, values: torch.Tensor) -> None:
    tally.add("mean", values)
    tally.add("share", values.abs().sum(), count=10 * len(values))
    tally.maximum("largest", values)
    tally.minimum("smallest", values)


def by_numpy(values: np.ndarray) -> dict[str, float]:
    return {
        "mean": values.sum() / max(len(values), 1),
        "share": np.abs(values).sum() / max(10 * len(values), 1),
        "largest": max(values, default=-math.inf),
        "smallest": min(values, default=math.inf),
    }


@given(seed=st.integers(0, 10**6))
def test_a_tally_is_of_everything_it_was_told(seed):
    tally, told = Tally(), parts_of(seed, 3)
    for values in (values for part in told for values in part):
        tell(tally, values)
    everything = np.concatenate([values.numpy() for part in told for values in part])
    assert tally.result() == pytest.approx(by_numpy(everything))
    assert tally.counts == {"mean": len(everything), "share": 10 * len(everything)}


@pytest.mark.parametrize("seed", range(3))
def test_a_tally_of_several_processes_is_one_of_everything_and_goes_on_after_a_stop(seed, tmp_path):
    """Two processes, stopped after the first time; then three, of which the first takes the tally over."""
    before, after = parts_of(seed, 2), parts_of(seed + 100, 3)

    def first(rank):
        tally = Tally()
        for values in before[rank]:
            tell(tally, values)
        return tally.result(), json.loads(json.dumps(tally.whole()))

    whole = [values for part in before for values in part]
    made = on_processes(2, first, tmp_path)
    for result, _ in made:
        assert result == pytest.approx(by_numpy(torch.cat(whole).numpy()))
    assert made[0][1] == made[1][1]
    saved = made[0][1]

    def second(rank):
        tally = Tally.of(saved, empty=rank != 0)
        untouched = tally.result()
        for values in after[rank]:
            tell(tally, values)
        return untouched, tally.result()

    (tmp_path / "meet").unlink(missing_ok=True)
    for untouched, result in on_processes(3, second, tmp_path):
        assert untouched == pytest.approx(made[0][0])
        together = whole + [values for part in after for values in part]
        assert result == pytest.approx(by_numpy(torch.cat(together).numpy()))


def test_a_tally_taken_up_is_a_copy():
    tally = Tally()
    tell(tally, torch.tensor([1.0, -2.0]))
    whole = tally.whole()
    again = Tally.of(whole)
    tell(again, torch.tensor([5.0]))
    assert tally.whole() == whole and again.whole() != whole
    empty = Tally.of(whole, empty=True)
    assert empty.whole()["counts"] == {"mean": 0.0, "share": 0.0} and empty.whole()["negated"] == ["smallest"]
    assert empty.whole()["maxima"] == {"largest": -math.inf, "smallest": -math.inf}
    assert empty.result() == {"mean": 0.0, "share": 0.0, "largest": -math.inf, "smallest": math.inf}


# ------------------------------------------------------------------------------------------------ what passes


def test_alone_nothing_passes():
    assert place() == (0, 1)
    assert gather("a") == ["a"] and from_first("a") == "a"
    assert across_processes(torch.tensor([2.0]), "sum").tolist() == [2.0]


def test_sums_largest_all_and_the_firsts(tmp_path):
    def work(rank):
        values = torch.tensor([float(rank + 1), -float(rank + 1)])
        summed, largest = (across_processes(values.clone(), how) for how in ("sum", "max"))
        nothing = across_processes(torch.zeros(0), "sum")
        in_place = values.clone()
        across_processes(in_place, "sum")
        told = Interruption()
        told._received = "SIGTERM" if rank == 1 else None
        return {
            "place": place(), "sum": summed.tolist(), "max": largest.tolist(), "nothing": nothing.tolist(),
            "in place": in_place.tolist(), "all": gather({"of": rank}), "first": from_first(f"of {rank}"),
            "told": told.requested(),
        }  # fmt: skip

    for rank, made in enumerate(on_processes(3, work, tmp_path)):
        assert made == {
            "place": (rank, 3), "sum": [6.0, -6.0], "max": [3.0, -1.0], "nothing": [], "in place": [6.0, -6.0],
            "all": [{"of": 0}, {"of": 1}, {"of": 2}], "first": "of 0", "told": "SIGTERM",
        }  # fmt: skip


def test_what_the_processes_of_an_engine_evaluate_together_counts_once(tmp_path):
    def work(rank, count=4, tensor_parallel=2):
        graded = lambda rewards, seed: (np.array(rewards)[:, None],) * 2
        place = Processes(rank, count, tensor_parallel)
        made = evaluate(parse([]), SimpleNamespace(evaluate=graded), [1.0, 0.0, 0.0], place)
        return {name: value for name, value in made.items() if not name.startswith("time/")}

    assert on_processes(4, work, tmp_path) == [work(0, 1, 1)] * 4


# ------------------------------------------------------------------------------------------------ checkpoints


def test_a_checkpoint_of_several_processes_is_whole_or_not_there_and_all_are_told(tmp_path):
    run = tmp_path / "run"

    def write(rank, content, fails=None):
        def files(folder):
            if rank == fails:
                raise OSError(28, "No space left on device")
            (folder / f"part-{rank}").write_text(f"{content} of {rank}")
            return [folder / f"part-{rank}"]

        return files

    def work(rank):
        checkpoints = Checkpoints(run / "checkpoints", keep=2)
        problems = [checkpoints.write(name_of(step), write(rank, step)) for step in (1, 2)]
        problems.append(checkpoints.write(name_of(3), write(rank, 3, fails=2)))
        dist.barrier()
        found = [find_checkpoint(run, "auto")]
        dist.barrier()
        if rank == 1:
            (run / "checkpoints" / name_of(2) / "part-0").write_text("2 of 9")
        dist.barrier()
        found.append(find_checkpoint(run, "auto"))
        return problems, found

    made = on_processes(3, work, tmp_path)
    newest, older = (run / "checkpoints" / name_of(step) for step in (2, 1))
    for problems, found in made:
        assert problems == [None, None, "No space left on device"]
        assert found[0] == (newest, [])
        assert found[1][0] == older
        assert [complaint for complaint in found[1][1]] == [
            f"Checkpoint {newest} is damaged: part-0 is not what was written (its checksum differs)."
        ]
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == [older.name, newest.name]
    assert set(json.loads((older / "manifest.json").read_text())["files"]) == {"part-0", "part-1", "part-2"}
