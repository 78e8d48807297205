"""Compare the plain LDM with VideoWorld 2, test case by test case.

In:  data/plain_ldm/evaluate, data/evaluate (results.parquet of both); params seed.
Out: metrics/plain_ldm/compare.json (paper.step_1..7, blocks.*, quality.*): how far the plain LDM is above VideoWorld 2,
     below zero where it is below. Both draw the same cases, and what is hard about one is hard for both, so these
     intervals say what two intervals side by side cannot. They tell nothing of other training seeds.
Takes seconds. A part of `make plain-ldm`.
Tiny run: python -m stages.preset smoke && dvc repro plain_ldm/dvc.yaml:compare
"""

from pathlib import Path

import typer

from vw2 import params as parameters
from vw2.console import run, table
from vw2.evaluation.benchmark import versus
from vw2.files import read_table
from vw2.provenance import write_metrics

OWN = Path("data/plain_ldm/evaluate/results.parquet")
RIVAL = Path("data/evaluate/results.parquet")


def main(params: Path = typer.Option(Path("params.yaml"), help="Parameter file.")) -> None:
    """Say how far the plain LDM is above or below VideoWorld 2, with intervals of the differences."""
    values = parameters.load(params)
    seed = values["seed"]
    gaps = versus(read_table(OWN), read_table(RIVAL), seed)
    write_metrics("plain_ldm/compare", gaps, seed=seed)
    table("plain LDM minus VideoWorld 2", {key: gap["value"] for key, gap in gaps.items()})


if __name__ == "__main__":
    run(main)
