"""A model that uses everything that the stage loop offers: own terms, a state per utterance, a second phase."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from grcf_ray.config import RunConfig
from grcf_ray.data.batches import Batch
from grcf_ray.data.features import Features
from grcf_ray.model.base import ModelSetup, MultimodalModel
from grcf_ray.model.text_encoder import TextEncoder
from grcf_ray.train.assemble import pretrained_backbone


class Alternating(MultimodalModel):
    """Pulls the mean of a group's vectors to the label, counts its utterances, and trains a critic of its own."""

    def __init__(self, setup: ModelSetup) -> None:
        super().__init__(setup)
        self.layer = nn.Linear(self.width, 8)
        self.fusion = nn.Identity()
        self.critic = nn.Linear(8, 1)
        self.head = nn.Linear(8, 1)
        self.counts_N: Tensor
        self.register_buffer("counts_N", torch.zeros(setup.n_train, dtype=torch.int64))
        self.groups: list[tuple[list[float], list[int]]] = []
        self.quiet = False

    def _gather(self, text: Tensor | None, batch: Batch) -> Tensor:
        vector_BW: Tensor = torch.tanh(self.layer(text))
        return vector_BW

    def auxiliary(self, vector_UW: Tensor, label_U: Tensor, utterance_U: Tensor) -> Mapping[str, Tensor]:
        if self.quiet:
            return {"pull": vector_UW.sum() * 0}
        self.groups.append((label_U.tolist(), utterance_U.tolist()))
        # The critic is used, and so has a gradient, which must not train it.
        critic_U = self.critic(vector_UW).squeeze(-1)
        return {"pull": 0.1 * (vector_UW.mean(1) - label_U).abs().mean() + critic_U.square().mean()}

    def after_step(self, vector_UW: Tensor, label_U: Tensor, utterance_U: Tensor) -> Tensor | None:
        assert not vector_UW.requires_grad
        self.counts_N[utterance_U] += 1
        return None if self.quiet else (self.critic(vector_UW).squeeze(-1) - label_U).square().mean()

    def separate_parameters(self) -> Sequence[nn.Parameter]:
        return list(self.critic.parameters())


def alternating(config: RunConfig, features: Features) -> Alternating:
    """Return the model for a text encoder without dropout."""
    backbone = copy.deepcopy(pretrained_backbone(config.model.backbone))
    torch.manual_seed(1)
    setup = ModelSetup(
        text_encoder=TextEncoder(backbone, "mean"),
        config=config.model,
        task=features.task,
        audio_dim=None,
        vision_dim=None,
        half_range=features.half_range,
        n_train=len(features.train),
    )
    return Alternating(setup)
