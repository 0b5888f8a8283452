"""The text encoder: any Hugging Face backbone, with no, some or all of its layers frozen.

B utterances, L tokens, D the encoder's width.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from grcf_ray.data.batches import Batch
from grcf_ray.errors import ConfigError
from grcf_ray.model.pooling import masked_mean


class _NoEmbeddings(nn.Module):
    """Replace a backbone's embeddings: return the hidden states, the only floating-point tensor in the arguments."""

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        return next(v for v in (*args, *kwargs.values()) if isinstance(v, Tensor) and v.is_floating_point())


class TextEncoder(nn.Module):
    """A backbone with a text vector [B, D]: the state of the first or last token, or the mean over tokens.

    frozen_layers: number of bottom layers, with the embeddings, that have no gradient and no dropout. `frozen_hidden`
    returns their output. It never changes, so a `Batch` can hold it instead of token ids.
    """

    def __init__(
        self,
        backbone: nn.Module,
        text_vector: Literal["cls", "mean", "last"],
        frozen_layers: int | Literal["all"] = 0,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.text_vector = text_vector
        config: Any = backbone.config
        try:
            self.width, self.n_layers = int(config.hidden_size), int(config.num_hidden_layers)
        except AttributeError as error:
            raise ConfigError(
                f"{_no_encoder(backbone)}: its configuration has no hidden_size or no num_hidden_layers"
            ) from error
        _, layers = layers_of(backbone)
        self.n_frozen = self.n_layers if frozen_layers == "all" else int(frozen_layers)
        if self.n_frozen > self.n_layers:
            raise ConfigError(
                f"model.frozen_layers = {frozen_layers}: the backbone has {self.n_layers} layers; "
                f"use 0 to {self.n_layers}, or all"
            )
        if 0 < self.n_frozen < self.n_layers and not len(layers):
            raise ConfigError(
                f"model.frozen_layers = {frozen_layers}: the layers of {type(backbone).__name__} share their weights; "
                "use 0, or all"
            )
        if self.n_frozen:
            backbone.requires_grad_(False)
            for layer in layers[self.n_frozen :]:
                layer.requires_grad_(True)
        if 0 < self.n_frozen < self.n_layers:
            self._check_split()
        self._gate: Callable[[Tensor, Batch], Tensor] | None = None
        self._gate_layer = 0

    def gate_at(self, layer: int, gate: Callable[[Tensor, Batch], Tensor]) -> None:
        """Pass the states [B, L, D] between two layers through a function, in `states` and so in `forward`.

        layer: the number of layers below the gate, from 0 to all. The gate lies above the frozen layers if they are
        more, since their output must not depend on it. gate: gets the states and the batch, and returns new states.
        """
        self._gate_layer = max(layer, self.n_frozen)
        inside = self._gate_layer < self.n_layers
        if inside and not len(layers_of(self.backbone)[1]):
            raise ConfigError(
                f"a gate above layer {layer}: the layers of {type(self.backbone).__name__} share their weights; "
                "use --set model.frozen_layers=all"
            )
        if inside and not next(self.backbone.parameters()).is_meta:
            self._gate = lambda states, _: states
            with self._trial() as batch:
                self.states(batch)
        self._gate = gate

    def train(self, mode: bool = True) -> TextEncoder:
        """Set the mode of the layers that are not frozen; frozen layers stay in evaluation mode, without dropout."""
        super().train(mode)
        if self.n_frozen:
            _, layers = layers_of(self.backbone)
            self.backbone.train(False)
            for layer in layers[self.n_frozen :]:
                layer.train(mode)
        return self

    def forward(self, batch: Batch) -> Tensor:
        """Return the text vectors [B, D] of a batch of token ids, frozen hidden states or frozen text vectors."""
        if batch.vector_BD is not None:
            return batch.vector_BD
        hidden = self.states(batch)
        assert batch.mask_BL is not None
        return self.pool(hidden, batch.mask_BL)

    def states(self, batch: Batch) -> Tensor:
        """Return the last layer's states [B, L, D] of a batch of token ids or frozen hidden states."""
        if self._gate is None:
            return self._last_states(batch)
        if self._gate_layer == self.n_layers:
            return self._gate(self._last_states(batch), batch)
        gated = functools.partial(_gated_input, self._gate, batch)
        hook = layers_of(self.backbone)[1][self._gate_layer].register_forward_pre_hook(gated)
        try:
            return self._last_states(batch)
        finally:
            hook.remove()

    def _last_states(self, batch: Batch) -> Tensor:
        assert batch.mask_BL is not None
        if batch.hidden_BLD is not None and self.n_frozen == self.n_layers:
            return batch.hidden_BLD
        attention_mask = None if batch.full else batch.mask_BL.long()
        if batch.hidden_BLD is not None:
            top = _view(self.backbone, slice(self.n_frozen, None), embedded=True)
            hidden = top(inputs_embeds=batch.hidden_BLD, attention_mask=attention_mask).last_hidden_state
        else:
            assert batch.token_BL is not None
            with self._with_embeddings(batch):
                hidden = self.backbone(input_ids=batch.token_BL, attention_mask=attention_mask).last_hidden_state
        states: Tensor = hidden
        return states

    def looked_up(self, batches: Sequence[Batch]) -> Sequence[Batch]:
        """Return the batches with their token embeddings, from one lookup for all of them.

        The gradient of each lookup is as large as the embedding table, though nearly all of its rows are zero.
        Batches that gain nothing by it are returned unchanged.
        """
        tokens = [batch.token_BL for batch in batches if batch.token_BL is not None]
        if len(tokens) < max(2, len(batches)) or not torch.is_grad_enabled():
            return batches
        table = self._embeddings()
        if table is None or not table.weight.requires_grad:
            return batches
        word_TD = table(torch.cat([token_BL.reshape(-1) for token_BL in tokens]))
        parts = torch.split(word_TD, [token_BL.numel() for token_BL in tokens])
        return [
            dataclasses.replace(batch, word_BLD=part_TD.reshape(*token_BL.shape, -1))
            for batch, token_BL, part_TD in zip(batches, tokens, parts, strict=True)
        ]

    def _embeddings(self) -> nn.Embedding | None:
        """Return the backbone's token embeddings; None if they are not a torch embedding."""
        try:
            table = self.backbone.get_input_embeddings()  # type: ignore[operator]
        except NotImplementedError:
            return None
        return table if isinstance(table, nn.Embedding) else None

    @contextlib.contextmanager
    def _with_embeddings(self, batch: Batch) -> Iterator[None]:
        """Make the backbone use the embeddings of `looked_up`, if the batch has them, until the context ends.

        They apply to the batch's id tensor only. Some backbones transpose (XLNet) or pad (Longformer) the ids first.
        """
        table: Any = self._embeddings() if batch.word_BLD is not None else None
        if table is None:
            yield
            return
        look_up = table.forward

        def look_up_or_reuse(ids: Tensor) -> Tensor:
            return cast(Tensor, batch.word_BLD if ids is batch.token_BL else look_up(ids))

        table.forward = look_up_or_reuse
        try:
            yield
        finally:
            del table.forward

    def pool(self, hidden_BLD: Tensor, mask_BL: Tensor) -> Tensor:
        """Return the text vectors [B, D] of the last layer's states."""
        if self.text_vector == "mean":
            return masked_mean(hidden_BLD, mask_BL)
        if self.text_vector == "cls":
            return hidden_BLD[:, 0]
        last_B = (mask_BL.sum(1) - 1).clamp_min(0)
        return hidden_BLD[torch.arange(len(hidden_BLD), device=hidden_BLD.device), last_B]

    @torch.no_grad()
    def probe(self, token_L: Tensor, pad_token_id: int = 0) -> None:
        """Raise ConfigError if the backbone cannot encode this text, or if its first state does not depend on the rest.

        The check runs the backbone, since library classes differ too much for a list of usable ones. token_L: [L]
        tokens of the longest text in the data, so that a lack of positions shows here rather than in training.
        """
        token_1L = token_L.unsqueeze(0)
        states = self._states(token_1L)
        part_1L = token_1L[:, : (len(token_L) + 1) // 2]
        padded_1L = token_1L.clone()
        padded_1L[:, part_1L.shape[1] :] = pad_token_id
        alone, padded = self._states(part_1L), self._states(padded_1L, part_1L.shape[1])[:, : part_1L.shape[1]]
        if not torch.allclose(alone, padded, rtol=1e-3, atol=1e-3):
            raise ConfigError(f"{_no_encoder(self.backbone)}: its states depend on the padding of a batch")
        if self.text_vector != "cls" or len(token_L) < 2:
            return
        # If another second token leaves the first state unchanged, that state sees the first token only.
        other_1L = token_1L.clone()
        other_1L[0, 1] = 0 if token_L[1] else 1
        if torch.equal(states[0, 0], self._states(other_1L)[0, 0]):
            raise ConfigError(
                f"model.text_vector = cls: {type(self.backbone).__name__} reads from left to right, so the state of "
                "the first token does not depend on the rest of the text; use mean or last"
            )

    def _states(self, token_BL: Tensor, length: int | None = None) -> Tensor:
        """Return the states [B, L, D] of texts of this length, by default L. ConfigError if the backbone has none."""
        mask_BL = torch.ones_like(token_BL)
        if length is not None:
            mask_BL[:, length:] = 0
        try:
            states = self.backbone(input_ids=token_BL, attention_mask=mask_BL).last_hidden_state
        except Exception as error:  # A library class can raise anything.
            raise ConfigError(
                f"{_no_encoder(self.backbone)}: it fails on a text of {token_BL.shape[1]} tokens "
                f"({type(error).__name__}: {error})"
            ) from error
        if not isinstance(states, Tensor) or states.shape != (*token_BL.shape, self.width):
            raise ConfigError(f"{_no_encoder(self.backbone)}: it does not return one state per token")
        return states

    @torch.no_grad()
    def frozen_hidden(self, batch: Batch) -> Tensor:
        """Return the output [B, L, D] of the frozen layers for the tokens of a batch."""
        assert batch.mask_BL is not None
        whole = self.n_frozen == self.n_layers
        bottom = self.backbone if whole else _view(self.backbone, slice(None, self.n_frozen), embedded=False)
        hidden: Tensor = bottom(input_ids=batch.token_BL, attention_mask=batch.mask_BL.long()).last_hidden_state
        return hidden

    @contextlib.contextmanager
    def _trial(self) -> Iterator[Batch]:
        """Give texts of 3 and 2 subwords to try the layers on, in evaluation mode and without gradient."""
        training, device = self.training, next(self.backbone.parameters()).device
        token_BL = torch.arange(5, 11, device=device).reshape(2, 3)
        mask_BL = torch.tensor([[True, True, True], [True, True, False]], device=device)
        self.eval()
        try:
            with torch.no_grad():
                yield Batch(token_BL, mask_BL, *[None] * 6)
        finally:
            self.train(training)

    def _check_split(self) -> None:
        """Raise ConfigError if the layers are no plain stack: frozen states would then give other results."""
        if next(self.backbone.parameters()).is_meta:
            return
        top = _view(self.backbone, slice(self.n_frozen, None), embedded=True)
        with self._trial() as batch:
            mask_BL = cast(Tensor, batch.mask_BL)
            try:
                whole = self.backbone(input_ids=batch.token_BL, attention_mask=mask_BL.long()).last_hidden_state
                split = top(inputs_embeds=self.frozen_hidden(batch), attention_mask=mask_BL.long()).last_hidden_state
                same = torch.allclose(whole[mask_BL], split[mask_BL], rtol=1e-4, atol=1e-4)
            except Exception:  # A library class that cannot be split can raise anything.
                same = False
        if not same:
            raise ConfigError(
                f"model.frozen_layers = {self.n_frozen}: {type(self.backbone).__name__} cannot be split between "
                "layers exactly; use 0, or all"
            )


def _gated_input(
    gate: Callable[[Tensor, Batch], Tensor], batch: Batch, layer: nn.Module, inputs: tuple[Any, ...]
) -> tuple[Any, ...]:
    """Return the inputs of a layer with its states, the first of them, passed through a gate."""
    states, *others = inputs
    assert batch.mask_BL is not None
    if states.shape[:2] != batch.mask_BL.shape:
        raise ConfigError(
            f"{type(layer).__name__} does not get the states of a batch as [texts, subwords, width], so no gate fits "
            "below it; use --set model.frozen_layers=all, or another backbone"
        )
    return (gate(states, batch), *others)


def _no_encoder(backbone: nn.Module) -> str:
    return f"the backbone, {type(backbone).__name__}, cannot be the text encoder"


def position_limit(backbone: nn.Module) -> int | None:
    """Return the number of tokens that a backbone has positions for; None for relative and rotary positions.

    Some position tables begin with rows that no token can use: those up to the padding token (RoBERTa, MPNet), or a
    fixed offset (BART, OPT).
    """
    limits = []
    for path, module in backbone.named_modules():
        name = path.rpartition(".")[2]
        if isinstance(module, nn.Embedding) and ("position" in name or name == "wpe"):
            before = getattr(module, "offset", None)
            if before is None:
                before = 0 if module.padding_idx is None else module.padding_idx + 1
            limits.append(module.num_embeddings - before)
    return min(limits, default=None)


def layers_of(backbone: nn.Module) -> tuple[str, nn.ModuleList]:
    """Return the path and the list of a backbone's transformer layers; empty if they share weights, as in ALBERT."""
    n_layers = backbone.config.num_hidden_layers  # type: ignore[union-attr]
    for path, module in backbone.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == n_layers:
            return path, module
    return "", nn.ModuleList()


def _view(backbone: nn.Module, part: slice, *, embedded: bool) -> nn.Module:
    """Return the backbone with only some of its layers; all parameters are shared.

    embedded: leave out the embeddings, so that `inputs_embeds` are the hidden states of the first layer in `part`.
    """
    path, layers = layers_of(backbone)
    view = _shallow(backbone)
    node = view
    *parents, name = path.split(".")
    for parent in parents:
        node._modules[parent] = _shallow(node._modules[parent])  # type: ignore[arg-type]
        node = node._modules[parent]  # type: ignore[assignment]
    node._modules[name] = nn.ModuleList(layers[part])
    if embedded:
        view._modules["embeddings"] = _NoEmbeddings()
    return view


def _shallow(module: nn.Module) -> nn.Module:
    """Return a copy whose submodules can be replaced without changing the original."""
    twin = copy.copy(module)
    twin._modules = dict(module._modules)
    return twin
