"""What a stage asks before it trains on clips: do the config and the clips agree?"""

from vw2.console import refusals
from vw2.models.ldm import LDMConfig


def fit(config: LDMConfig, frames: int):
    """The config for clips of T frames, its reconstruction loss at hand.

    Raises: UserError if clips and config contradict each other or weights of the loss are missing.
    """
    with refusals():
        config.loss().ready()
        return config.for_clips(frames)
