"""The table of optimizers' options and the harness serve this matrix too."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "optimizers"))
