"""The harness of the optimizers' tests serves those of the wrappers too."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "optimizers"))
