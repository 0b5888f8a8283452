"""What a model adds to a step of the stage loop: its own loss terms, and its work after the optimizer step.

U distinct utterances of a step; W the width of the vectors of `MultimodalModel.encode`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch import distributed as dist

from grcf_ray.data.pairs import Group
from grcf_ray.model.base import MultimodalModel
from grcf_ray.train.objectives import Arrays


class OwnTerms:
    """The loss terms that a model defines, for each group of pairs.

    A group is the batch of these terms, so that they do not depend on the number of ranks either.

    label_N: the labels of the training split, as offsets from the centre of their range. For two classes the model gets
    0 and 1 in their place.
    """

    def __init__(self, model: MultimodalModel, label_N: NDArray[np.float64]) -> None:
        self._model = model
        self._label_N = (label_N > 0).astype(np.float64) if model.task == "classification" else label_N
        kind = type(model)
        self._has_terms = kind.auxiliary is not MultimodalModel.auxiliary
        self._has_after = kind.after_step is not MultimodalModel.after_step

    def constants(
        self, utterance_U: NDArray[np.int64], position_U: NDArray[np.int64], groups: Sequence[Group]
    ) -> Arrays:
        """Return the distinct utterances of each group, by name, for the device; nothing for a model without terms.

        position_U: the place of each of the step's utterances among its vectors.
        """
        arrays: Arrays = {}
        for number, group in enumerate(groups if self._has_terms else ()):
            own = np.unique(group.slot_S)
            arrays[f"own_place/{number}"] = position_U[own]
            arrays[f"own_utterance/{number}"] = utterance_U[own]
            arrays[f"own_label/{number}"] = self._label_N[utterance_U[own]]
        return arrays

    def terms(self, vector_UW: Tensor, known: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return `loss/NAME` of each group, [G] in float64. known: `constants`, on the device."""
        if not self._has_terms:
            return {}
        each = []
        for number in range(len(known["weight_G"])):
            vector_VW = vector_UW[known[f"own_place/{number}"]]
            label_V = known[f"own_label/{number}"].to(vector_VW.dtype)
            each.append(self._model.auxiliary(vector_VW, label_V, known[f"own_utterance/{number}"]))
        return {f"loss/{name}": torch.stack([terms[name].double() for terms in each]) for name in each[0]}

    def keep_apart(self) -> None:
        """Take the gradients of a step's losses from the parameters that only the loss of `after_step` trains."""
        for parameter in self._model.separate_parameters():
            parameter.grad = None

    def after_step(
        self, vector_UW: Tensor, order_U: NDArray[np.int64], optimizer: torch.optim.Optimizer, clip_norm: float
    ) -> None:
        """Let the model work on the step's vectors, and minimise the loss that it returns by a second optimizer step.

        All ranks work on the utterances of all ranks, by rising index, so that their models stay equal.
        """
        if not self._has_after:
            return
        vector_UW, order_U = _of_all_ranks(vector_UW.detach(), order_U)
        order_U, first_U = np.unique(order_U, return_index=True)
        vector_UW = vector_UW[torch.from_numpy(first_U).to(vector_UW.device)]
        label_U = torch.from_numpy(self._label_N[order_U]).to(vector_UW.device, vector_UW.dtype)
        loss = self._model.after_step(vector_UW, label_U, torch.from_numpy(order_U).to(vector_UW.device))
        if loss is None:
            return
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        separate = list(self._model.separate_parameters())
        kept = {id(parameter) for parameter in separate}
        for parameter in self._model.parameters():
            if id(parameter) not in kept:
                parameter.grad = None
        nn.utils.clip_grad_norm_(separate, clip_norm)
        optimizer.step()


def _of_all_ranks(vector_UW: Tensor, order_U: NDArray[np.int64]) -> tuple[Tensor, NDArray[np.int64]]:
    """Return the vectors and the utterances of all ranks, in the order of the ranks."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return vector_UW, order_U
    parts: list[tuple[Tensor, NDArray[np.int64]]] = [(vector_UW, order_U)] * dist.get_world_size()
    dist.all_gather_object(parts, (vector_UW.cpu(), order_U))
    return torch.cat([vector for vector, _ in parts]).to(vector_UW.device), np.concatenate([own for _, own in parts])
