"""The last step of `make demo`: what was promised of the demo's child is checked, and where to look is said.

python benchmarks/check_demo.py demo.search
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

FASTER = 1.7
MOST_KL = 0.35


def main(workspace: str) -> int:
    """0 when the child is at least 1.7 times as fast as its parent and has a KL to it of 0.35 at most, else 1."""
    evaluation = json.loads((Path(workspace) / "evaluation.json").read_text())
    stages = json.loads((Path(workspace) / "run.json").read_text())["stages"]
    child = evaluation["child"]
    faster = 1 / child["runtime_ratio"]
    seconds = sum(stage["seconds"] for stage in stages)
    print(f"\nthe child runs {faster:.2f} times as fast as its parent (promised: {FASTER})")
    print(f"its KL to it is {child['kl_nats']:.2f} nats a token, before recovery {child['before_recover']:.2f}", end="")
    print(f" (promised: {MOST_KL:.2f} at most)")
    print(f"the search took {seconds:.0f} s\n")
    print(f"pictures and figures:   .venv/bin/inlay report {workspace}")
    print("the search in MLflow:   .venv/bin/mlflow ui --backend-store-uri sqlite:///mlflow.db")
    print(f"another budget:         .venv/bin/inlay solve {workspace} --limit runtime=0.5x")
    print(f"the child:              {workspace}/child")
    return 0 if faster >= FASTER and child["kl_nats"] <= MOST_KL else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
