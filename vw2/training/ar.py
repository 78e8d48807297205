"""Training of the AR transformer: next-token cross-entropy of codes, given first frame and instruction."""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate import Accelerator

from vw2.models.ar import ARConfig, ARTransformer
from vw2.models.attend import unfused
from vw2.streams import Stream
from vw2.training.compute import generator
from vw2.training.run import Group, OptimConfig, Run
from vw2.training.sequences import Sequences, hide_words


@dataclass(frozen=True)
class TrainARConfig:
    """Group `ar` of params.yaml."""

    optim: OptimConfig
    model: ARConfig = field(default_factory=ARConfig)
    sources: tuple[str, ...] | None = None  # names of ingest.source to train (and be judged) on; None: all


def train(
    accelerator: Accelerator, model: ARTransformer, data: Sequences, config: OptimConfig, seed: int, folder: Path
) -> Run:
    """All steps, resumed from `folder`; every random number of a step is a function of (seed, step)."""
    work = Run(accelerator, [Group(model)], config, folder, "train the AR transformer")
    longest = model.body.config.max_position_embeddings
    with accelerator.autocast():
        if unfused(accelerator.device, config.batch * model.config.heads * longest**2):
            model.body.set_attn_implementation("eager")  # transformers' own products of matrices
    model.train()
    for step in work:
        batch = data.batch(data.mixture.batch(seed, step, config.batch), model.inputs)
        batch.words = hide_words(batch.words, model.config.unknown, generator(seed, Stream.AR_HIDDEN, step))
        torch.manual_seed(generator(seed, Stream.AR_DROPOUT, step).initial_seed())
        with accelerator.autocast():
            loss, logs = model(batch.to(accelerator.device))
        work.update(loss, logs)
    return work
