"""The cheapest table of the docs, made again by the real command: two runs of one step, and the comparison."""

import subprocess
import sys

import pytest

from tests.conftest import ROOT

pytestmark = pytest.mark.engines


def test_the_cheapest_table_comes_out_as_it_stands_in_the_docs(tmp_path):
    command = [sys.executable, str(ROOT / "scripts" / "reproduce.py"), "precision", f"--output-dir={tmp_path}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "about 0.5 minutes" in done.stdout
    assert done.stdout.count("mismatch_kl_k3") == 2 and "DIFFERS" not in done.stdout
    assert (tmp_path / "precision" / "results.csv").is_file()
