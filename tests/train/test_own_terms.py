"""The loss terms that a model defines, and its work after each step."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from alternating import Alternating, alternating
from rivals import two_classes
from torch import Tensor

from grcf_ray.data.features import Features
from grcf_ray.train import own_terms
from grcf_ray.train.checkpoint import checkpoint_tensors
from grcf_ray.train.stage import StageLoop

if TYPE_CHECKING:
    from tests.train.conftest import NewConfig


@pytest.fixture
def loop_of(new_config: NewConfig, tiny_features: Features) -> Any:
    def make(features: Features = tiny_features, **changes: Any) -> StageLoop:
        config = new_config(train__precision="float64", **changes)
        return StageLoop(alternating(config, features), features, config, 2, seed=3, protocol="mosi")

    return make


def model_of(loop: StageLoop) -> Alternating:
    assert isinstance(loop.model, Alternating)
    return loop.model.eval()


def test_each_group_gets_its_own_utterances(loop_of: Any, tiny_features: Features) -> None:
    loop = loop_of()
    step = next(loop.steps())
    model = model_of(loop)
    loop.backward(step)
    assert len(model.groups) == len(step.groups) == 3
    for (labels, utterances), group in zip(model.groups, step.groups, strict=True):
        assert utterances == sorted(set(step.utterance_U[group.slot_S].tolist()))
        np.testing.assert_array_equal(labels, tiny_features.train.label_N[utterances])


def test_two_classes_reach_the_model_as_0_and_1(
    loop_of: Any, tiny_features: Features, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In both phases. The features have them as offsets from the centre, -0.5 and 0.5."""
    after: list[list[float]] = []
    monkeypatch.setattr(Alternating, "after_step", lambda _, vectors, label_U, places: after.append(label_U.tolist()))
    loop = loop_of(two_classes(tiny_features))
    step = next(loop.steps())
    loop.take_step(step)
    side_N = (tiny_features.train.label_N > 0).astype(float)
    groups = model_of(loop).groups
    assert {value for labels, _ in groups for value in labels} == {0.0, 1.0}
    for labels, utterances in groups:
        np.testing.assert_array_equal(labels, side_N[utterances])
    np.testing.assert_array_equal(after, [side_N[np.unique(step.utterance_U)]])


def test_terms_add_to_the_loss_and_are_logged(loop_of: Any) -> None:
    loop, quiet = loop_of(), loop_of()
    step = next(loop.steps())
    model_of(quiet).quiet = True
    model_of(loop)
    terms, without = loop.backward(step), quiet.backward(step)
    assert terms["loss/pull"] > 0
    torch.testing.assert_close(terms["loss/total"], without["loss/total"] + terms["loss/pull"], rtol=1e-12, atol=0)
    assert loop.run_epoch()["loss/pull"] > 0


def test_computing_activations_twice_gives_the_same_gradients(loop_of: Any) -> None:
    kept, cached = loop_of(), loop_of(pairs__activation_tokens=1)
    step = next(kept.steps())
    for loop in (kept, cached):
        model_of(loop)
        loop.backward(step)
    gradients = [[p.grad for p in loop.model.parameters()] for loop in (kept, cached)]
    assert any(gradient is not None for gradient in gradients[0])
    for ours, theirs in zip(*gradients, strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_the_second_phase_trains_its_own_parameters_alone(loop_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    loop = loop_of()
    model = model_of(loop)
    step = next(loop.steps())
    seen: list[dict[str, Tensor]] = []
    after_step = Alternating.after_step

    def watched(self: Alternating, *arguments: Any) -> Any:
        seen.append({name: p.detach().clone() for name, p in self.named_parameters()})
        return after_step(self, *arguments)

    monkeypatch.setattr(Alternating, "after_step", watched)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    loop.own = type(loop.own)(model, loop.features.train.label_N)
    loop.take_step(step)
    (between,) = seen
    for name, parameter in model.named_parameters():
        changes = not torch.equal(before[name], between[name]), not torch.equal(between[name], parameter)
        assert changes == ((False, True) if name.startswith("critic") else (True, False)), name


def test_the_state_per_utterance_is_in_checkpoints(loop_of: Any) -> None:
    loop = loop_of()
    model, step = model_of(loop), next(loop.steps())
    loop.take_step(step)
    expected = np.zeros(len(loop.features.train), dtype=np.int64)
    expected[step.utterance_U] = 1
    np.testing.assert_array_equal(model.counts_N.numpy(), expected)
    tensors = checkpoint_tensors(model, loop.optimizer)
    assert torch.equal(tensors["model.counts_N"], model.counts_N)
    assert "optimizer.exp_avg.critic.weight" in tensors


def test_all_ranks_work_on_the_utterances_of_all(loop_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """By rising index, each once, whatever the number of ranks; a rank's own share comes second here."""
    loop = loop_of()
    given: list[tuple[list[float], list[int]]] = []

    def after_step(self: Alternating, vector_UW: Tensor, label_U: Tensor, utterance_U: Tensor) -> None:
        given.append((vector_UW[:, 0].tolist(), utterance_U.tolist()))
        np.testing.assert_array_equal(label_U.numpy(), loop.features.train.label_N[utterance_U.numpy()])

    def gather(parts: list[Any], mine: Any) -> None:
        parts[:] = [(torch.tensor([[5.0], [3.0]], dtype=torch.float64), np.array([5, 3])), mine]

    monkeypatch.setattr(Alternating, "after_step", after_step)
    monkeypatch.setattr(own_terms, "dist", SimpleNamespace(is_initialized=lambda: True, get_world_size=lambda: 2))
    monkeypatch.setattr(own_terms.dist, "all_gather_object", gather, raising=False)
    own = own_terms.OwnTerms(loop.model, loop.features.train.label_N)
    vector_UW = torch.tensor([[9.0], [3.0], [0.0]], dtype=torch.float64)
    own.after_step(vector_UW, np.array([9, 3, 0]), loop.optimizer, 1.0)
    assert given == [([0.0, 3.0, 5.0, 9.0], [0, 3, 5, 9])]
