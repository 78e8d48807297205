"""Pretraining in rounds: what is kept of one, and how the next goes on from it."""

import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from vw2.console import UserError
from vw2.files import read_json
from vw2.models.ldm import LDMConfig
from vw2.models.ldm_files import read_ldm_config
from vw2.models.ranges import at_least
from vw2.provenance import anew, check_record
from vw2.scratch import atomic_dir
from vw2.training.run import OptimConfig

LOG, WEIGHTS, RECORD = "training.tsv", "ldm.safetensors", "record.json"


@dataclass(frozen=True)
class PretrainLDMConfig:
    """Group `pretrain_ldm` of params.yaml."""

    use: bool  # false: the warm-up begins at random
    rounds: int  # each with new clips and a schedule of its own
    clips: int  # of a round
    colours: float  # share of its clips whose colours are changed as dldm.colours says, in [0, 1]
    optim: OptimConfig  # of a round

    def __post_init__(self):
        at_least("pretrain_ldm", self, rounds=1, clips=1)
        if not 0 <= self.colours <= 1:
            raise ValueError(f"colours must be in [0, 1], got {self.colours}; change it")

    def record(self, rounds: int) -> dict:
        """What is kept beside the weights of so many rounds, to be compared with params.yaml."""
        return {key: value for key, value in asdict(self).items() if key != "use"} | {"rounds": rounds}


def take_up(folder: Path, saved: Path, config: PretrainLDMConfig, ldm: LDMConfig) -> None:
    """Put the weights and the log in `saved`, which are of all rounds but the last, where this run looks for them.

    Raises: UserError if they are of another number of rounds, or were made with other parameters.
    """
    made, done, advice = read_json(saved / RECORD), config.rounds - 1, "leave --one-more out"
    if made.get("rounds") != done:
        raise UserError(
            f"--one-more: expected pretrain_ldm.rounds {made.get('rounds', 0) + 1}, as {saved} is of one less, got "
            f"{config.rounds}; change it, or {advice}"
        )
    check_record(made, config.record(done), "pretrain_ldm", advice)
    old = replace(read_ldm_config(saved), drawn_share=ldm.drawn_share)  # no size: a round may have another one
    check_record(asdict(old), asdict(ldm), "dldm", advice)
    if not (folder / f"round_{done - 1}").exists():
        with atomic_dir(folder / f"round_{done - 1}") as temporary:
            shutil.copytree(saved, temporary, dirs_exist_ok=True)


def check_made(saved: Path, config: PretrainLDMConfig) -> None:
    """Refuse pretrained weights that were made with other parameters. Raises: UserError naming the first one."""
    check_record(read_json(saved / RECORD), config.record(config.rounds), "pretrain_ldm", anew("pretrain_ldm"))
