"""Videos as the AR transformer reads them: instruction, features of the first frame, codes."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from vw2.data.codes import CodeStore
from vw2.data.sampler import mixture
from vw2.data.shards import ClipStore
from vw2.media.resize import to_model
from vw2.models.ar import UNKNOWN, ARBatch, ARInputs, word_ids
from vw2.models.ldm import LDM


@torch.no_grad()
def first_features(ldm: LDM, frames: Tensor) -> Tensor:
    """f_0 of frames (B, 3, 1, H, W) in [-1, 1] -> (B, C, h, w)."""
    return ldm.features(ldm.shrink(frames))[:, :, 0]


def clip_rows(store: ClipStore, videos: Sequence[str]) -> list[list[int]]:
    """The rows of the clips of each video, in order."""
    found: dict[str, list[int]] = {video: [] for video in videos}
    for row, video in enumerate(store.index["video"].to_list()):
        if video in found:
            found[video].append(row)
    return list(found.values())


class Sequences:
    """Some videos in memory.

    A sequence may begin at any clip of its video, with that clip's first frame (our choice: more first frames to learn
    from, and what to do is read off what is done already).

    Attributes: videos (ids), instructions, first (V tensors (clips, C, h, w)), codes (V tensors (clips, K, N)), mixture
        (which videos make up the batch of a step), max_clips (longer sequences are cut).
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
        self.codes, self.max_clips = [torch.from_numpy(codes[video]) for video in self.videos], max_clips
        source = dict(store.index.select("video", "source").iter_rows())
        self.mixture = mixture([source[video] for video in self.videos], store.weights)
        rows, device = clip_rows(store, self.videos), next(ldm.parameters()).device
        frames = np.stack([store.frames(row)[:1] for video in rows for row in video])
        parts = [
            first_features(ldm, to_model(frames[i : i + batch]).to(device)).cpu() for i in range(0, len(frames), batch)
        ]
        self.first = torch.cat(parts).split([len(video) for video in rows])

    def __len__(self) -> int:
        return len(self.videos)

    def begins(self, items: Sequence[int], share: float, rng: torch.Generator) -> list[int]:
        """The clips with which the videos `items` begin: a `share` at any clip, drawn evenly, the others at 0."""
        luck, place = torch.rand(2, len(items), generator=rng)
        lengths = torch.tensor([len(self.codes[i]) for i in items])
        return torch.where(luck < share, (place * lengths).long(), 0).tolist()

    def batch(
        self,
        items: Sequence[int],
        inputs: ARInputs,
        instructions: Sequence[str] | None = None,
        begins: Sequence[int] | None = None,
    ) -> ARBatch:
        """The videos `items`, padded to the longest of them.

        Args:
            instructions: (V) to be told instead of the videos' own.
            begins: the clip with which each of `items` begins; None: all at 0.
        """
        begins = begins or [0] * len(items)
        told = instructions or self.instructions
        words = torch.tensor([word_ids(told[i], inputs) for i in items], dtype=torch.int64)
        chosen = [self.codes[i][k : k + self.max_clips] for i, k in zip(items, begins, strict=True)]
        lengths = torch.tensor([len(codes) for codes in chosen])
        first = torch.stack([self.first[i][k] for i, k in zip(items, begins, strict=True)])
        codes = torch.nn.utils.rnn.pad_sequence(chosen, batch_first=True)
        return ARBatch(words.view(len(items), -1), first, codes, lengths)


def hide_words(words: Tensor, share: float, rng: torch.Generator) -> Tensor:
    """Show about `share` of the words of the vocabulary as <unk>, so that <unk> learns to mean "some word"."""
    hide = (torch.rand(words.shape, generator=rng) < share) & (words > UNKNOWN)
    return words.masked_fill(hide, UNKNOWN)


def swapped(instructions: Sequence[str]) -> list[str] | None:
    """Control: each instruction replaced by the next different one in order; None if there is only one."""
    names = sorted(set(instructions))
    after = dict(zip(names, names[1:] + names[:1], strict=True))
    return [after[each] for each in instructions] if len(names) > 1 else None
