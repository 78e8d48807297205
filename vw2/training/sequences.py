"""Videos as the AR transformer reads them: instruction, features of the first frame, codes."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from vw2.data.codes import CodeStore
from vw2.data.sampler import mixture
from vw2.data.shards import ClipStore
from vw2.media.resize import to_model
from vw2.models.ar import UNKNOWN, ARBatch, ARInputs, ARTransformer, Scores, word_ids
from vw2.models.layers import device_of
from vw2.models.ldm import LDM


@torch.no_grad()
def first_features(ldm: LDM, frames: Tensor) -> Tensor:
    """f_0 of frames (B, 3, 1, H, W) in [-1, 1] -> (B, C, h, w)."""
    return ldm.features(ldm.shrink(frames))[:, :, 0]


def first_frames(store: ClipStore, videos: Sequence[str]) -> np.ndarray:
    """The first frames of some videos: (V, 1, H, W, 3) uint8."""
    wanted = set(videos)
    rows = {store.index["video"][row]: row for row in store.select(clip=0) if store.index["video"][row] in wanted}
    return np.stack([store.frames(rows[video])[:1].copy() for video in videos])  # else whole clips stay in memory


class Sequences:
    """Some videos in memory.

    Attributes: videos (ids), instructions, first (V, C, h, w), codes (V arrays (clips, K, N), cut to max_clips),
        mixture (which videos make up the batch of a step).
    """

    def __init__(
        self,
        videos: Sequence[str],
        instructions: Sequence[str],
        codes: CodeStore,
        store: ClipStore,
        ldm: LDM,
        max_clips: int,
        batch: int = 64,
    ):
        self.videos, self.instructions = list(videos), list(instructions)
        self.codes = [torch.from_numpy(codes[video][:max_clips]) for video in self.videos]
        source = dict(store.index.select("video", "source").iter_rows())
        self.mixture = mixture([source[video] for video in self.videos], store.weights)
        frames = first_frames(store, self.videos)
        device = device_of(ldm)
        parts = [
            first_features(ldm, to_model(frames[i : i + batch]).to(device)).cpu() for i in range(0, len(frames), batch)
        ]
        self.first = torch.cat(parts)

    def __len__(self) -> int:
        return len(self.videos)

    def batch(self, items: Sequence[int], inputs: ARInputs, instructions: Sequence[str] | None = None) -> ARBatch:
        """The videos `items`, padded to the longest of them; `instructions` (V) take the place of their own."""
        told = instructions or self.instructions
        words = torch.tensor([word_ids(told[i], inputs) for i in items], dtype=torch.int64)
        lengths = torch.tensor([len(self.codes[i]) for i in items])
        codes = torch.nn.utils.rnn.pad_sequence([self.codes[i] for i in items], batch_first=True)
        return ARBatch(words.view(len(items), inputs.length), self.first[list(items)], codes, lengths)


def score(
    model: ARTransformer, data: Sequences, instructions: Sequence[str] | None = None, batch: int = 16
) -> Iterator[Scores]:
    """What the model, in eval mode, thinks of the codes of all videos, some at a time and in order.

    Args: instructions: (V) to be told instead of the videos' own.
    """
    was_training, device = model.training, device_of(model)
    model.eval()
    for i in range(0, len(data), batch):
        items = range(i, min(i + batch, len(data)))
        yield model.score(data.batch(items, model.inputs, instructions).to(device))
    model.train(was_training)


def hide_words(words: Tensor, share: float, rng: torch.Generator) -> Tensor:
    """Show about `share` of the words of the vocabulary as <unk>, so that <unk> learns to mean "some word"."""
    hide = (torch.rand(words.shape, generator=rng) < share) & (words > UNKNOWN)
    return words.masked_fill(hide, UNKNOWN)


def swapped(instructions: Sequence[str]) -> list[str] | None:
    """Control: each instruction replaced by the next different one in order; None if there is only one."""
    names = sorted(set(instructions))
    after = dict(zip(names, names[1:] + names[:1], strict=True))
    return [after[each] for each in instructions] if len(names) > 1 else None
