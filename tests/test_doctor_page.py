"""The doctor's page, as text and, where Chromium is at hand, in a browser."""

import re
import shutil
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from markupsafe import escape

from learners.diagnosis.bootstrap import Interval
from learners.diagnosis.dump import Dump
from learners.diagnosis.findings import Diagnosis, Finding
from scripts.parts import report_page

HOSTILE = "<script>document.title='run'</script><img src='/stolen' onerror=\"document.title='run'\">"
WIDTH = 390  # pixels of a phone
CORRECTION = {"correction": "reject geo", "responses_kept": 0.5, "kept": 0.4, "limited": 0.0, "left": 0.5}


def made(tokens: int = 400, rows: int = 8):
    """A diagnosis that shows everything there is, and its dump."""
    rng = np.random.default_rng(0)
    log_mu = -rng.exponential(0.7, tokens * rows).astype(np.float32)
    log_pi = (log_mu + rng.normal(0, 0.02, len(log_mu))).astype(np.float32)
    log_pi[5], log_mu[6] = np.nan, -np.inf
    starts = np.arange(rows + 1) * tokens
    dump = Dump(starts, np.arange(len(log_mu), dtype=np.int32), log_mu, log_pi, claims={"lora": True, "x": HOSTILE})
    dump.problems.append(f"rows of {HOSTILE}")
    half = Interval(100.0, 90.0, float("inf"))
    horizon = {"half": half, "sequence_left": 0.4, "geometric_left": 0.99, "mean_length": 400.0}
    worst = {
        "responses": [{"response": 0, "tokens": tokens, "share": 0.3, "log_ratio": float("nan")}],
        "tokens": [{"response": 0, "place": 5, "id": 5, "log_mu": -1.0, "log_pi": None, "share": 0.3}],
    }
    finding = Finding("stale-weights", "stale weights", 0.9, f"evidence of {HOSTILE}", "synchronise")
    return Diagnosis([finding], "", {"k1": 1e-3, "d_50": float("inf")}, [HOSTILE], horizon, worst), dump


def written(folder, text=lambda token: HOSTILE):
    compared = [{"what": HOSTILE, "d_50": 0.1, "d_90": 0.2, "k3": 0.3, "diagnosis": "healthy"}]
    return report_page.write(*made(), folder, [CORRECTION], compared, text)


def test_everything_is_there_and_what_a_dump_says_is_escaped(tmp_path):
    page = written(tmp_path).read_text()
    assert "<script" not in page and "<img" not in page
    assert page.count(str(escape(HOSTILE))) > 90
    assert page.index("stale weights") < page.index("synchronise") < page.index("<svg") < page.index("reject geo")
    assert (
        page.count("<svg") == 2
        and "currentColor" in page
        and "nan" not in re.sub("log (mu|pi) nan|provenance", "", page.lower())
    )
    assert not re.search(r"""(?:src|href)=["']?(?:https?:)?//""", page)


def test_shares_lengths_and_statistics_are_said_in_words(tmp_path):
    assert report_page.percent(1 - 1.0000000002) == report_page.percent(-0.0) == "0.0%"
    page = written(tmp_path).read_text()
    assert "above 100 [90, ?] tokens" in page
    assert "mean of log mu - log pi, nats a token" in page
    never = {"half": Interval(*[float("inf")] * 3), "sequence_left": 1.0, "geometric_left": 1.0, "mean_length": 4.0}
    assert report_page.horizon_table(never)[1] == ["of whole responses", "at no length", "100.0%"]


def test_a_page_of_very_little(tmp_path):
    dump = Dump(np.array([0, 1]), np.array([1], np.int32), *np.full((2, 1), -1, np.float32))
    page = report_page.write(Diagnosis([], "FP32", {}), dump, tmp_path).read_text()
    assert "Healthy, at the level of FP32 rounding" in page and "<svg" not in page


@pytest.mark.skipif(shutil.which("chromium") is None, reason="there is no Chromium here")
def test_in_a_browser_nothing_is_fetched_nothing_runs_and_a_phone_is_wide_enough(tmp_path):
    page, asked = written(tmp_path).read_bytes(), []
    wrapper = f"""<body><iframe src="/report.html" width={WIDTH} height=800 style="border: 0"></iframe><p>not loaded</p>
        <script>onload = () => {{ let inner = document.querySelector("iframe").contentDocument;
        document.querySelector("p").textContent = "width " + inner.documentElement.scrollWidth + " of "
        + inner.documentElement.clientWidth + ", title " + inner.title; }}</script>"""

    class Server(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.end_headers()
            self.wfile.write({"/report.html": page, "/": wrapper.encode()}.get(self.path, b""))

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        command = ["chromium", "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
                   f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=5000", "--dump-dom",
                   f"http://127.0.0.1:{server.server_port}/"]  # fmt: skip
        shown = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
    finally:
        server.shutdown()
    [(width, room, title)] = re.findall(r"<p>width (\d+) of (\d+), title ([^<]*)</p>", shown)
    assert int(room) <= WIDTH and int(width) <= int(room)
    assert title == "The doctor: stale-weights"
    assert set(asked) <= {"/", "/report.html", "/favicon.ico"}
