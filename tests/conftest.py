"""What the tests share. The repository's root is importable, as it is for train.py."""

import sys
from pathlib import Path

from hypothesis import settings

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

settings.register_profile("busy machines", deadline=None)  # a time limit fails where another program has the cores
settings.load_profile("busy machines")
