"""The autoregressive transformer: first frame and instruction -> the latent dynamics codes of a whole video.

One sequence per video, read by a LLaMA (VideoWorld 2, sec. 3: a language model over codes):

    [instruction words] [h w tokens of the first frame] [START] [codes: clip by clip, step after step] [END]

The prefix has a fixed length (short instructions are filled with <pad>, which is a word like any other), so position,
a rotary embedding, means the same in every video and a batch needs no mask but the causal one.
END may stand where a clip would begin, from the second clip on, and nowhere else; in training and in sampling alike.

Legend: B videos, K steps of a clip, N queries of a step, S codes of a video (clips K N), G digits of a code, C channels
and h w pixels of the first frame's features, W words, V codebook size.
"""

import copy
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from inspect import signature
from math import prod

import vw2.torchvision_ops  # noqa: F401

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, cross_entropy, linear, one_hot
from transformers import DynamicCache, LlamaConfig, LlamaModel

from vw2.console import UserError
from vw2.models.fsq import FSQ
from vw2.models.nucleus import pick_or_end, row_generator

PAD, UNKNOWN = 0, 1  # word ids; those of the vocabulary begin at 2
SIDE = 8  # first-frame features are pooled to at most SIDE x SIDE tokens (our choice)
# LLaMA's name for its key-value cache: transformers 5.24 renamed it, and warns of the old one
CACHE = "cache" if "cache" in signature(LlamaModel.forward).parameters else "past_key_values"


@dataclass(frozen=True)
class ARConfig:
    """Group `ar.model` of params.yaml."""

    width: int = 192
    layers: int = 4
    heads: int = 6
    dropout: float = 0.1  # of what goes into the first layer and comes out of the last one
    max_clips: int = 16  # longest video, in clips; longer ones are cut in training and rollouts stop there
    unknown: float = 0.02  # share of words shown as <unk> in training, so that <unk> has a meaning

    def __post_init__(self):
        if self.width < 1 or self.heads < 1 or self.width % (2 * self.heads):
            raise ValueError(
                "ar.model.width must be a multiple of 2 ar.model.heads, both above 0, "
                f"got {self.width} and {self.heads}; round it"
            )
        if min(self.layers, self.max_clips) < 1 or not (0 <= self.dropout < 1 and 0 <= self.unknown < 1):
            raise ValueError(
                "ar.model: layers and max_clips must be at least 1, dropout and unknown lie in [0, 1), "
                f"got {self.layers}, {self.max_clips}, {self.dropout} and {self.unknown}"
            )


@dataclass(frozen=True)
class CodeShape:
    """What the codes look like: facts that LDM, codes on disk and AR transformer must share."""

    levels: tuple[int, ...]
    steps: int  # K
    queries: int  # N

    @property
    def codebook(self) -> int:
        return prod(self.levels)

    @property
    def per_clip(self) -> int:
        return self.steps * self.queries

    def check(self, other: "CodeShape", here: str, there: str) -> None:
        """Refuse to work with codes of another kind.

        Args: here, there: names of the folders that `self` and `other` come from.
        Raises: UserError naming the parameter that differs.
        """
        for key, mine, theirs in (
            ("dldm.codebook", self.codebook, other.codebook),
            ("dldm.levels", list(self.levels), list(other.levels)),
            ("dldm.queries", self.queries, other.queries),
            ("clip.frames (steps of a clip)", self.steps, other.steps),
        ):
            if mine != theirs:
                raise UserError(f"{key} is {mine} in {here} but {theirs} in {there}; run `dvc repro` to renew both")


@dataclass(frozen=True)
class ARInputs:
    """What the model is told: facts of the training data, kept with the weights."""

    channels: int  # C
    size: tuple[int, int]  # h, w of the features
    words: tuple[str, ...]  # closed vocabulary, sorted
    length: int  # W; longer instructions are cut


def split_words(instruction: str) -> list[str]:
    """Lower-case words and numbers of an instruction."""
    return re.findall(r"[^\W_]+", instruction.lower())


def word_ids(instruction: str, inputs: ARInputs) -> list[int]:
    """W ids: words of the vocabulary, UNKNOWN for others, PAD behind."""
    known = {word: i for i, word in enumerate(inputs.words, 2)}
    ids = [known.get(word, UNKNOWN) for word in split_words(instruction)][: inputs.length]
    return ids + [PAD] * (inputs.length - len(ids))


def unheard(instruction: str, inputs: ARInputs) -> list[str]:
    """Words of an instruction that tell the model nothing: those it does not know, and those behind the W-th."""
    words = split_words(instruction)
    return [word for place, word in enumerate(words) if place >= inputs.length or word not in inputs.words]


@dataclass
class ARBatch:
    """Some videos."""

    words: Tensor  # (B, W) int64
    first: Tensor  # (B, C, h, w) float: LDM features f_0 of the first frame
    codes: Tensor  # (B, clips, K, N) int64, anything behind a video's end
    lengths: Tensor  # (B,) int64, clips of each video; END follows where they are fewer than max_clips

    def to(self, device) -> "ARBatch":
        return ARBatch(*(each.to(device) for each in (self.words, self.first, self.codes, self.lengths)))


@dataclass
class Scores:
    """What the model thinks of given codes; each (B, S + 1), the last place being an END at most."""

    bits: Tensor  # surprise at what comes next
    correct: Tensor  # bool: it was the likeliest
    end: Tensor  # probability of END, 0 where it cannot stand
    is_code: Tensor  # bool: a code of the video stands here
    is_end: Tensor  # bool: END stands here


class ARTransformer(nn.Module):
    """See the module docstring."""

    def __init__(self, config: ARConfig, shape: CodeShape, inputs: ARInputs):
        super().__init__()
        self.config, self.shape, self.inputs = config, shape, inputs
        width, self.tokens = config.width, [min(side, SIDE) for side in inputs.size]
        self.prefix_length = inputs.length + prod(self.tokens) + 1
        small = lambda *size: nn.Parameter(0.02 * torch.randn(*size, width))  # noqa: E731
        self.words = small(len(inputs.words) + 2)
        self.first, self.place, self.start = nn.Linear(inputs.channels, width), small(prod(self.tokens)), small(1)
        self.fsq = FSQ(shape.levels)
        self.digits, self.step, self.query = small(sum(shape.levels)), small(shape.steps), small(shape.queries)
        self.register_buffer("offsets", torch.tensor([0, *np.cumsum(shape.levels)[:-1]]), persistent=False)
        self.body = LlamaModel(
            LlamaConfig(
                vocab_size=1,  # everything comes in as embeddings
                bos_token_id=None,
                eos_token_id=None,
                hidden_size=width,
                intermediate_size=64 * math.ceil(width * 8 / 3 / 64),
                num_hidden_layers=config.layers,
                num_attention_heads=config.heads,
                attention_dropout=0.0,  # else CPUs have no fused attention; dropout is before and behind the layers
                max_position_embeddings=self.prefix_length + config.max_clips * shape.per_clip,
            )
        )
        self.body.embed_tokens = None
        self.drop = nn.Dropout(config.dropout)
        # Each code's output weights are a part of its own and the sum of its digits', so that rare codes learn from
        # others that share digits (our choice); END has a row of its own.
        self.out, self.out_digits = small(shape.codebook + 1), small(sum(shape.levels))
        places = self.fsq.digits(torch.arange(shape.codebook)) + self.offsets  # (V, G)
        hot = one_hot(places, sum(shape.levels)).sum(1).float()
        self.register_buffer("hot", torch.cat([hot, torch.zeros(1, hot.shape[1])]), persistent=False)

    def prefix(self, words: Tensor, first: Tensor) -> Tensor:
        """(B, W), (B, C, h, w) -> (B, W + h w + 1, width): instruction, first frame, START."""
        pooled = adaptive_avg_pool2d(first, self.tokens).flatten(2).transpose(1, 2)  # (B, h w, C)
        frame = self.first(pooled) + self.place
        return torch.cat([self.words[words], frame, self.start.expand(len(words), 1, -1)], dim=1)

    def embed(self, codes: Tensor, begin: int = 0) -> Tensor:
        """(B, S) codes, the first of which stands at `begin` in its video -> (B, S, width)."""
        slot = torch.arange(begin, begin + codes.shape[1], device=codes.device) % self.shape.per_clip
        digits = self.digits[self.fsq.digits(codes) + self.offsets].sum(-2)
        return digits + self.step[slot // self.shape.queries] + self.query[slot % self.shape.queries]

    def logits(self, hidden: Tensor, begin: int = 0) -> Tensor:
        """(B, S, width) states that foretell places begin, begin + 1, ... -> (B, S, V + 1) float logits, END last."""
        logits = linear(self.drop(hidden), self.out + self.hot @ self.out_digits)
        logits = logits if logits.dtype == torch.float64 else logits.float()
        place = torch.arange(begin, begin + logits.shape[1], device=logits.device)
        may_end = (place % self.shape.per_clip == 0) & (place > 0)
        last = torch.arange(logits.shape[-1], device=logits.device) == self.shape.codebook
        return logits.masked_fill(last & ~may_end[:, None], -torch.inf)

    def predict(self, batch: ARBatch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Teacher forcing.

        Returns: logits (B, S + 1, V + 1); targets (B, S + 1) int64; is_code and is_end, (B, S + 1) bool.
        """
        codes = batch.codes.flatten(1)
        inputs = self.drop(torch.cat([self.prefix(batch.words, batch.first), self.embed(codes)], dim=1))
        hidden = self.body(inputs_embeds=inputs, use_cache=False).last_hidden_state
        logits = self.logits(hidden[:, self.prefix_length - 1 :])
        place = torch.arange(codes.shape[1] + 1, device=codes.device)
        stop = (batch.lengths * self.shape.per_clip)[:, None]
        is_code, is_end = place < stop, (place == stop) & (batch.lengths < self.config.max_clips)[:, None]
        targets = torch.cat([codes, torch.zeros_like(codes[:, :1])], dim=1)
        return logits, targets.masked_fill(is_end, self.shape.codebook), is_code, is_end

    def forward(self, batch: ARBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Next-token cross-entropy (VideoWorld 2, table 4), the mean over codes and ENDs. Returns (loss, logs)."""
        logits, targets, is_code, is_end = self.predict(batch)
        seen = is_code | is_end
        loss = cross_entropy(logits[seen], targets[seen])
        correct = (logits[is_code].argmax(-1) == targets[is_code]).float().mean()
        return loss, {"train/bits": loss.detach() / math.log(2), "train/accuracy": correct}

    @torch.no_grad()
    def score(self, batch: ARBatch) -> Scores:
        """How well given codes are foretold, place by place."""
        logits, targets, is_code, is_end = self.predict(batch)
        bits = cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view_as(targets) / math.log(2)
        end = torch.softmax(logits, -1)[..., -1]
        return Scores(bits, logits.argmax(-1) == targets, end, is_code, is_end)

    @torch.no_grad()
    def sample(
        self,
        words: Tensor,
        first: Tensor,
        keys: Sequence[str],
        seed: int,
        temperature: float = 1.0,
        top_p: float = 1.0,
        max_clips: int | None = None,
        rows: int = 64,
    ) -> list[np.ndarray]:
        """Write the codes of whole videos.

        Row r draws from a generator of its own, made from (seed, keys[r]), and is computed in float64, so that what it
        gets does not depend on the rows beside it (in float32 the size of a batch changes last bits, and in some
        ten thousand draws one would fall to the other side).

        Args:
            words: (R, W) int64; first: (R, C, h, w); keys: R strings, say "video/sample".
            seed, temperature, top_p: see `pick_or_end`; temperature 0 is greedy.
            max_clips: where to stop at the latest, config.max_clips if None.
            rows: how many to compute at once.
        Returns: R arrays (clips, K, N) int64, at least one clip each.
        """
        twin = copy.deepcopy(self).double().eval()
        most = (max_clips or self.config.max_clips) * self.shape.per_clip
        found: list[np.ndarray] = []
        for i in range(0, len(keys), rows):
            draws = [
                torch.rand(most, generator=row_generator(seed, k), dtype=torch.float64) for k in keys[i : i + rows]
            ]
            prefix = twin.prefix(words[i : i + rows], first[i : i + rows].double())
            found += twin._write(prefix, torch.stack(draws).to(prefix.device), temperature, top_p)
        return found

    def _write(self, prefix: Tensor, draws: Tensor, temperature: float, top_p: float) -> list[np.ndarray]:
        """Sample with a key-value cache, dropping rows as they end; one draw per row and place."""
        shape, (rows, most) = self.shape, draws.shape
        codes = torch.zeros(rows, most, dtype=torch.int64, device=prefix.device)
        clips = torch.full((rows,), most // shape.per_clip, device=prefix.device)
        alive = torch.arange(rows, device=prefix.device)
        cache, inputs = DynamicCache(config=self.body.config), prefix
        for place in range(most):
            hidden = self.body(inputs_embeds=inputs, use_cache=True, **{CACHE: cache}).last_hidden_state
            token = pick_or_end(self.logits(hidden[:, -1:], place)[:, 0], draws[alive, place], temperature, top_p)
            on = token != shape.codebook
            if not on.all():
                clips[alive[~on]] = place // shape.per_clip
                alive, token = alive[on], token[on]
                if not len(alive):
                    break
                cache.batch_select_indices(on.nonzero()[:, 0])
            codes[alive, place] = token
            inputs = self.embed(token[:, None], place)
        codes = codes.view(rows, -1, shape.steps, shape.queries).cpu().numpy()
        return [row[:count].copy() for row, count in zip(codes, clips.tolist(), strict=True)]
