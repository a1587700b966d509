"""What the tests share. The repository's root is importable, as it is for train.py."""

import sys
from pathlib import Path

from hypothesis import Phase, settings

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

settings.register_profile("busy machines", deadline=None)  # a time limit fails where another program has the cores
# scripts/mutation.py: a failure is enough, the smallest example need not be found
settings.register_profile("mutants", deadline=None, database=None, phases=[Phase.explicit, Phase.generate])
settings.load_profile("busy machines")
