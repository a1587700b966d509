"""The grading processes: time limits, hostile answers, deaths, order; and that nothing is left of them."""

import math
import os
import signal
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tasks import grading_worker, math_reward
from tasks.grading_pool import LARGEST_CHUNK, START_UP_S, STARTS_IN_A_ROW, GradingPool, Worker
from tasks.grading_worker import MEMORY_BYTES, ORPHAN_CHECK_S, OutOfTime, call, read_lines, wall_limit
from tasks.math_reward import LONGEST_ANSWER, MathGrader
from tests import grading_functions
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def grader():
    grader = MathGrader(workers=2)
    yield grader
    grader.close()


@pytest.fixture(scope="module")
def pool():
    pool = GradingPool(grading_functions.act, workers=2, time_limit=0.5)
    yield pool
    pool.close()


def pids(pool):
    return {worker.process.pid for worker in pool._workers}


def is_gone(pid, patience=10.0):
    """Whether a process ends, or is a zombie, before the patience does."""
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.05)
    return False


def test_rewards_come_in_order_and_what_is_asked_twice_is_compared_once(grader):
    responses = [rf"\boxed{{{n}}}" for n in range(200)] * 2
    references = [str(n if n % 3 else n + 1) for n in range(200)] * 2
    assert grader.grade(responses, references) == [float(n % 3 > 0) for n in range(200)] * 2
    assert len([pair for pair in grader._known if pair[0] == "7"]) == 1


def test_no_box_and_an_endless_answer_are_wrong_and_nobody_is_asked(grader):
    assert grader.grade(["none", r"\boxed{}", rf"\boxed{{{'1+' * 500}1}}"], ["1", "", "501"]) == [0.0, 0.0, 0.0]


class Pool:
    """In place of the processes: says which pairs it was asked, and that every answer is right but one."""

    def __init__(self, *_):
        self.asked = []

    def map(self, pairs):
        self.asked += pairs
        return [math.nan if answer == "slow" else 1.0 for answer, _ in pairs]


@pytest.fixture
def unasked(monkeypatch):
    monkeypatch.setattr(math_reward, "GradingPool", Pool)
    return math_reward.ResponseGrader(grading_functions.act)


def test_an_answer_is_read_up_to_its_longest(unasked):
    within, beyond = ("1" * n for n in (LONGEST_ANSWER, LONGEST_ANSWER + 1))
    assert unasked.grade([rf"\boxed{{{within}}}", rf"\boxed{{{beyond}}}"], ["1", "1"]) == [1.0, 0.0]
    assert unasked._pool.asked == [(within, "1")]


def test_pairs_are_remembered_until_there_are_too_many_and_never_those_out_of_time(unasked, monkeypatch):
    monkeypatch.setattr(math_reward, "REMEMBERED", 3)
    assert unasked.grade([r"\boxed{1}", r"\boxed{slow}"], ["1", "1"]) == [1.0, 0.0]
    assert unasked.grade([r"\boxed{1}", r"\boxed{2}", r"\boxed{3}"], ["1"] * 3) == [1.0] * 3
    assert unasked._pool.asked == [("1", "1"), ("slow", "1"), ("2", "1"), ("3", "1")]
    assert sorted(unasked._known) == [("1", "1"), ("2", "1"), ("3", "1")]
    unasked.grade([r"\boxed{4}"], ["1"])
    assert list(unasked._known) == [("4", "1")]
    unasked.grade([r"\boxed{slow}"], ["1"])
    assert unasked.timeouts == 2


def test_each_response_needs_its_reference(unasked):
    with pytest.raises(ValueError, match="zip"):
        unasked.grade([r"\boxed{1}"], ["1", "2"])


def test_the_limits_are_those_that_the_docs_tell():
    assert (LONGEST_ANSWER, math_reward.TIME_LIMIT_S, math_reward.REMEMBERED) == (400, 2.0, 50_000)
    assert (START_UP_S, STARTS_IN_A_ROW, LARGEST_CHUNK, MEMORY_BYTES) == (60.0, 3, 16, 4 * 2**30)
    assert wall_limit(2.0) == 12.0 and ORPHAN_CHECK_S == 2.0


def raising(what):
    def compare(*_):
        raise what

    return compare


@pytest.mark.parametrize(
    ("compare", "reward"),
    [
        (lambda a, r: a == r, 1.0),
        (raising(OutOfTime), math.nan),
        (raising(ValueError), 0.0),
        (raising(MemoryError), 0.0),
    ],
)
def test_three_clocks_watch_a_call_and_none_outlives_it(monkeypatch, compare, reward):
    clocks = []
    monkeypatch.setattr(signal, "setitimer", lambda *clock: clocks.append(clock))
    result = call(compare, "1", "1", 2.0)
    assert result == reward or (math.isnan(result) and math.isnan(reward))
    started = [(signal.ITIMER_REAL, 12.0), (signal.ITIMER_VIRTUAL, 2.5), (signal.ITIMER_PROF, 2.0, 0.1)]
    assert clocks[:3] == started
    assert {clock: seconds for clock, seconds, *_ in clocks[3:]} == {clock: 0 for clock, *_ in started}
    assert len(clocks) == (7 if math.isnan(reward) else 6), "out of time, the gentle clock is stopped twice"


def test_lines_are_whole_and_end_with_the_input():
    there, here = os.pipe()
    lines = read_lines(there)
    os.write(here, b"one\ntwo\nthr")
    assert [next(lines), next(lines)] == [b"one", b"two"]
    os.write(here, b"ee\nfour")
    os.close(here)
    assert list(lines) == [b"three"]
    os.close(there)


def test_lines_end_when_the_parent_is_another_and_not_before(monkeypatch):
    there, here = os.pipe()
    parents = [7, 7, 7, 1]
    monkeypatch.setattr(os, "getppid", lambda: parents.pop(0))
    monkeypatch.setattr(grading_worker, "ORPHAN_CHECK_S", 0.01)
    assert list(read_lines(there)) == [] and not parents
    os.close(there)
    os.close(here)


def hostile() -> list[str]:
    nested = 10**6
    kinds = [
        r"\boxed{9^{9^{9^{9}}}}", r"\boxed{9^9^9^9}", r"\boxed{10^{10^{10}}}", r"\boxed{(10^{9})!}",
        r"\boxed{9!!!!!!!}",
        r"\boxed{\binom{10^9}{10^8}}", r"\boxed{2^{2^{2^{2^{2^{2}}}}}}", r"\boxed{\sum_{n=1}^{10^{12}} \frac{1}{n}}",
        r"\boxed{\int_0^1 x^{x^{x^x}} dx}", r"\boxed{\prod_{n=1}^{10^{9}} n}", r"\boxed{\lim_{x\to 0} x^{x^{x}}}",
        r"\boxed{" + "{" * nested, r"\boxed{" + "{" * nested + "}" * nested + "}", r"\boxed{" * 10**5, "}" * nested,
        "a" * 10**6, r"\boxed{" + "x" * 10**6 + "}", "\0" * 1000, "\\boxed{\0\0}", "\\boxed{1\0}", r"\boxed{",
        r"\boxed{__import__('os').system('touch /tmp/owned')}", r"\boxed{exec('raise SystemExit')}",
        r"\boxed{(lambda: [][0])()}", r"\boxed{open('/etc/passwd').read()}", r"\boxed{\input{/etc/passwd}}",
        r"\boxed{" + "(" * 190 + ")" * 190 + "}", r"\boxed{" + r"\sqrt{" * 60 + "2" + "}" * 61,
        r"\boxed{" + "^{2" * 90 + "}" * 91, r"\boxed{" + r"\frac{1}{" * 40 + "2" + "}" * 41, r"\boxed{1/0}",
        r"\boxed{\frac{0}{0}}", r"\boxed{0^{-1}}", r"\boxed{" + "-" * 390 + "1}", r"\boxed{" + "9" * 390 + "}",
        r"\boxed{1e999999999}", r"\boxed{1e-999999999}", r"\boxed{\\\\\\\\}", r"\boxed{&&&}", "\\boxed{\ud800}",
        r"\boxed{" + "x+" * 190 + "x}", r"\boxed{(x+1)^{5000}}", r"\boxed{(a+b+c+d)^{300}}", r"\boxed{\sin(10^{400})}",
        r"\boxed{x^{x^{x^{x^{x}}}} + \sin(\cos(\tan(x)))^{99}}", r"\boxed{\gamma(10^{10})}",
        r"\boxed{\{" + "1," * 190 + "1\\}}",
        r"\boxed{\begin{pmatrix}" + r"1&" * 90 + r"1\end{pmatrix}}", r"\boxed{\pm\pm\pm\pm 1}", "\\boxed{\u202e1}",
    ]  # fmt: skip
    return kinds * 4


def test_two_hundred_hostile_responses_are_wrong_and_leave_the_processes_alive(grader):
    responses = hostile()
    assert len(responses) >= 200
    references = [f"x^2+{n}" if n % 2 else f"{n + 2}" for n in range(len(responses))]  # all different: all are asked
    assert sum(grader.grade(responses, references)) == 0
    assert grader.grade([r"\boxed{\frac12}"], ["0.5"]) == [1.0]
    assert all(worker.process.poll() is None for worker in grader._pool._workers)
    assert not os.path.exists("/tmp/owned")


def test_a_hang_in_python_is_interrupted_and_the_process_lives(pool):
    before = pids(pool)
    results = pool.map([("fine", "1"), ("loop", ""), ("fine", "2"), ("swallow", "")])
    assert results[0] == 1.0 and results[2] == 2.0
    assert math.isnan(results[1]) and math.isnan(results[3])
    assert pids(pool) == before


@pytest.mark.parametrize("how", ["exit", "kill", "sleep", "stuck in C"])
def test_a_process_that_dies_or_hangs_is_replaced_and_costs_one_answer(pool, how):
    pairs = [("fine", str(n)) for n in range(20)]
    pairs[7] = (how, "")
    before = pids(pool)
    results = pool.map(pairs)
    assert math.isnan(results[7])
    assert [r for n, r in enumerate(results) if n != 7] == [float(n) for n in range(20) if n != 7]
    assert 1 <= len(pids(pool) - before) <= 2
    assert all(is_gone(pid) for pid in before - pids(pool))


def test_a_process_killed_while_idle_costs_nothing(pool):
    os.kill(next(iter(pids(pool))), signal.SIGKILL)
    assert pool.map([("fine", str(n)) for n in range(30)]) == [float(n) for n in range(30)]


def test_it_works_off_the_main_thread_and_from_several_at_once(pool):
    results = {}

    def work(base):
        results[base] = pool.map([("fine", str(base + n)) for n in range(50)] + [("loop", "")])

    threads = [threading.Thread(target=work, args=(base,)) for base in (0, 1000)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for base in (0, 1000):
        assert results[base][:50] == [float(base + n) for n in range(50)] and math.isnan(results[base][50])


def test_what_a_comparison_raises_is_a_wrong_answer_and_what_it_prints_is_no_reply(pool):
    assert pool.map([("raise", ""), ("print", ""), ("memory", ""), ("fine", "3")]) == [0.0, 5.0, 0.0, 3.0]


def test_timeouts_are_counted_and_never_remembered():
    grader = MathGrader(workers=1)
    try:
        grader._pool.close()
        grader._pool = GradingPool(grading_functions.act, workers=1, time_limit=0.3)
        assert grader.grade([r"\boxed{loop}", r"\boxed{fine}", r"\boxed{loop}"], ["", "1", ""]) == [0.0, 1.0, 0.0]
        assert grader.timeouts == 2
        assert list(grader._known) == [("fine", "1")]
    finally:
        grader.close()


def test_pairs_are_sent_in_chunks_that_leave_something_for_the_others(pool, monkeypatch):
    sent, send = [], Worker.send
    monkeypatch.setattr(
        Worker, "send", lambda worker, indices, pairs: (sent.append(len(indices)), send(worker, indices, pairs))
    )
    assert pool.map([("fine", str(n)) for n in range(100)]) == [float(n) for n in range(100)]
    assert sent[:2] == [LARGEST_CHUNK, LARGEST_CHUNK] and sum(sent) == 100
    left = 100
    for count in sent:
        assert count == min(-(-left // 4), LARGEST_CHUNK), "a quarter of what is left, for two processes"
        left -= count


def test_processes_that_do_not_start_are_an_error_after_a_few_not_zeros(tmp_path):
    pool = GradingPool(grading_functions.act, workers=1)
    pool.close()
    started = tmp_path / "started"
    pool._command = [sys.executable, "-c", f"open({str(started)!r}, 'a').write('x')"]
    pool._workers = [Worker(pool._command)]
    with pytest.raises(RuntimeError, match="do not start"):
        pool.map([("fine", "1")])
    assert started.read_text() == "x" * STARTS_IN_A_ROW


def test_a_closed_pool_says_so():
    pool = GradingPool(grading_functions.act, workers=1)
    pool.close()
    with pytest.raises(RuntimeError, match="closed"):
        pool.map([("fine", "1")])


def test_a_reply_that_comes_in_two_parts_is_one():
    worker = Worker([sys.executable, "-c", ""])
    worker.end(patience=10)
    there, here = os.pipe()
    worker.process.stdout = os.fdopen(there, "rb", buffering=0)
    ready, reply = struct.pack("d", 0.0), struct.pack("d", 0.5)
    os.write(here, ready + reply[:3])
    assert worker.receive() == [] and worker.ready
    os.write(here, reply[3:] + reply)
    assert worker.receive() == [0.5, 0.5]
    os.close(here)
    assert worker.receive() is None
    worker.process.stdout.close()


@pytest.mark.parametrize("busy", [False, True])
def test_they_end_when_their_parent_is_killed(busy):
    pairs = "[('sleep', '')]" if busy else "[('fine', '1')]"
    code = (
        "import sys, threading, time\nfrom tasks.grading_pool import GradingPool\nfrom tests import grading_functions\n"
        "pool = GradingPool(grading_functions.act, workers=2, time_limit=1)\npool.map([('fine', '1')] * 8)\n"
        f"threading.Thread(target=pool.map, args=({pairs},)).start()\ntime.sleep(0.3)\n"
        "print(*[w.process.pid for w in pool._workers], flush=True)\ntime.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    children = list(map(int, parent.stdout.readline().split()))
    assert len(children) == 2
    parent.kill()
    parent.wait()
    assert all(is_gone(pid) for pid in children)


def test_they_import_no_engine():
    pool = GradingPool(grading_functions.heavy_modules, workers=1, time_limit=30)
    try:
        assert pool.map([("", "")]) == [0.0]
    finally:
        pool.close()
