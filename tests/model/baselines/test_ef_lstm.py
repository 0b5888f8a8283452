from __future__ import annotations

import rivals
import torch
from torch import Tensor, nn

from grcf_ray.data.features import Features
from grcf_ray.model.subnetworks import equal_shares


def test_scores_and_gradients_are_those_of_the_equations(backbone: nn.Module, tiny_features: Features) -> None:
    model = rivals.built("ef-lstm", backbone, width=5, layers=2)

    def by_hand(token_L: Tensor, audio_LA: Tensor, vision_LV: Tensor) -> Tensor:
        others = [rivals.shares(row_LX, len(token_L)) for row_LX in (vision_LV, audio_LA)]
        states = torch.cat([rivals.states_of(model, token_L), *others], dim=1)
        for number in range(2):
            states = rivals.lstm(model.lstm.lstm, states, number)
        return rivals.linear(model.head, rivals.dense(model.fusion, states[-1]))[0]

    rivals.check_equations(model, tiny_features, by_hand)


def test_rows_are_brought_to_steps_by_equal_shares() -> None:
    rows = torch.tensor([[[0.0], [3.0], [6.0]], [[1.0], [5.0], [0.0]], [[9.0], [9.0], [9.0]]])
    real = torch.tensor([[True, True, True], [True, True, False], [False, False, False]])
    steps = torch.tensor([[True, True, False, False], [True] * 4, [True] * 4])
    brought = equal_shares(rows, real, steps).squeeze(-1)
    # Three rows in two steps: the middle one lies half in each.
    assert brought.tolist() == [[1.0, 5.0, 0.0, 0.0], [1.0, 1.0, 5.0, 5.0], [0.0] * 4]


def test_rows_of_as_many_steps_stay_as_they_are() -> None:
    rows, real = torch.randn(2, 5, 3), torch.tensor([[True] * 5, [True, True, True, False, False]])
    torch.testing.assert_close(equal_shares(rows, real, real), rows * real.unsqueeze(-1), rtol=0, atol=0)


def test_without_text_the_longer_modality_gives_the_steps() -> None:
    model = rivals.built("ef-lstm", None, width=5, layers=1)
    audio_LA, vision_LV = torch.randn(4, 5).double(), torch.randn(2, 3).double()
    batch = rivals.batch_of(None, audio_LA[None], vision_LV[None])
    states = rivals.lstm(model.lstm.lstm, torch.cat([rivals.shares(vision_LV, 4), audio_LA], dim=1))
    score = rivals.linear(model.head, rivals.dense(model.fusion, states[-1]))
    torch.testing.assert_close(model([batch], torch.zeros(1, dtype=torch.int64)), score)
