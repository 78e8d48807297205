"""Frames carried from clip to clip in training, against drift in chained rollouts (our choice; dldm.drawn_share).

A rollout begins each clip with the last frame that the model drew. So that it learns to go on from its own faults, most
clips of a walk (vw2/data/walks.py) begin like that in training too; the real clip stays what is to be drawn.
"""

import torch
from torch import Tensor, nn

from vw2.data.walks import Walked, Walks
from vw2.streams import Stream
from vw2.training.compute import generator


class Carried(nn.Module):
    """Last frames drawn, one per walker; without parameters, kept in the checkpoint of a run.

    Args:
        walks: whose walkers.
        share: of the clips that follow another one, how many begin with what was drawn, in [0, 1].
        seed: of the draw of those that do.
    """

    def __init__(self, walks: Walks, share: float, seed: int):
        super().__init__()
        self.share, self.seed = share, seed
        self.batch, self.rank, self.ranks = walks.batch, walks.rank, walks.ranks
        walkers = walks.walkers if share else 0  # at true size they are gigabytes
        self.register_buffer("frames", torch.zeros(walkers, 3, 1, walks.store.height, walks.store.width))

    def first(self, walked: Walked, video: Tensor, step: int) -> Tensor:
        """First frames (B, 3, 1, H, W) to draw over: those of `video` (B, 3, T, H, W), or the carried ones."""
        if not self.share:
            return video[:, :, :1]
        draw = torch.rand(self.batch * self.ranks, generator=generator(self.seed, Stream.CARRIED, step)) < self.share
        low = self.rank * self.batch + walked.walkers.start % self.batch  # all of a step's clips are drawn for at once
        draw = draw[low : low + len(video)]
        own = (draw & torch.from_numpy(walked.follows)).to(video.device).view(-1, 1, 1, 1, 1)
        return torch.where(own, self.frames[walked.walkers], video[:, :, :1])

    def keep(self, walked: Walked, end: Tensor) -> None:
        """Carry the last frames (B, 3, 1, H, W) that were drawn to the next clips."""
        if self.share:
            self.frames[walked.walkers] = end
