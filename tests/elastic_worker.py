"""The script of examples/elastic as `elastic_worker.py FOLDER NAME [UNTIL]`.

It is killed after the step UNTIL, as machines are: with what it was about to write. Started by torchrun it goes slowly,
so that there is time to take machines away and to bring others.
"""

from __future__ import annotations

import os
import runpy
import sys
import time
from pathlib import Path

import torch

SCRIPT = Path(__file__).resolve().parents[1] / "examples" / "elastic" / "train.py"


def main() -> None:
    torch.set_num_threads(1)
    folder, name, until = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]) if len(sys.argv) > 3 else None

    def between(step: int) -> None:
        if step == until:
            os._exit(0)
        if "TORCHELASTIC_RUN_ID" in os.environ:
            time.sleep(0.5)

    runpy.run_path(str(SCRIPT))["train"](folder, name, between)


if __name__ == "__main__":
    main()
