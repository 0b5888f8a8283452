"""The training loop of one stage: optimizer steps, validation, checkpoints. Plain torch, for one rank or several.

Every random choice of an epoch is seeded from (seed, stage, epoch), so a checkpoint restarts a run exactly without
stored random states.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch import distributed as dist

from grcf_ray.config import RunConfig, TrainConfig, flatten
from grcf_ray.data.batches import Batch, length_sorted, micro_batches
from grcf_ray.data.features import Features, SplitFeatures
from grcf_ray.data.pairs import Group, Step, draw_pairs, epoch_steps, pairs_per_epoch
from grcf_ray.errors import ClusterError, ConfigError, DamagedError, DivergedError
from grcf_ray.metrics import MetricProtocol, split_metrics
from grcf_ray.model.base import MultimodalModel
from grcf_ray.model.text_encoder import position_limit
from grcf_ray.storage import LocalPath, StoragePath
from grcf_ray.train.curve import best_epoch, finite
from grcf_ray.train.feed import Feed
from grcf_ray.train.gradient_cache import GradientCache, average_gradients, random_state, set_random_state
from grcf_ray.train.limits import StepLimits, limit_memory
from grcf_ray.train.objectives import Arrays, choose_objective
from grcf_ray.train.optimizer import build_optimizer, learning_rate_factor
from grcf_ray.train.own_terms import OwnTerms
from grcf_ray.train.precision import cpu_length_multiple
from grcf_ray.train.resuming import find_checkpoint, scratch_of, share_checkpoint
from grcf_ray.train.saving import CheckpointSaver, Kind

_NO_NUMBERS = ("search.", "checkpoint.")
"""Sections of settings that change no result."""
_IDLE = Group(np.zeros(1, dtype=np.int64), np.zeros((0, 2), dtype=np.int64), 0.0)


class StageLoop:
    """Train a model through one stage, one epoch at a time.

    `run_epoch` returns the metrics of the epoch: `loss/*` by term (means over the epoch's groups of pairs), `valid/*`,
    `lr/*`, `grad_norm`, `active_pairs`, `pair_weight`, speeds, and the cost in `utterance_passes`. The cost counts the
    utterances encoded for the gradient, divided by the number of training utterances; each counts once per step and
    rank. A step that encodes twice to save memory counts once too, here and in `utterances_per_s`, so the cost does not
    depend on memory. The second pass shows in the times.

    With a folder, rank 0 saves checkpoints in the background (see `saving`), and `resume` continues from the newest. No
    other process writes to the folder. `finish` or `interrupt` ends the training.

    earlier: folders of attempts at the same training that ended early, newest first. origin: checksum of the initial
    weights. keeps_last: whether the weights after the last epoch are saved, besides the best.
    """

    def __init__(
        self,
        model: MultimodalModel,
        features: Features,
        config: RunConfig,
        stage: Literal[1, 2],
        *,
        seed: int,
        protocol: MetricProtocol,
        folder: StoragePath | None = None,
        earlier: Sequence[StoragePath] = (),
        origin: str | None = None,
        keeps_last: bool = False,
        device: torch.device | None = None,
    ) -> None:
        self.device = device or torch.device("cpu")
        self.dtype = torch.float64 if config.train.precision == "float64" else torch.float32
        self.model = model.to(self.device, self.dtype)
        if self.device.type == "cpu" and config.train.precision == "bfloat16" and model.text_encoder is not None:
            multiple = cpu_length_multiple(position_limit(model.text_encoder.backbone))
            features = dataclasses.replace(features, length_multiple=multiple)
        self.features, self.config, self.stage, self.seed = features, config, stage, seed
        self.protocol, self.folder, self.earlier = protocol, folder, earlier
        self._origin, self._keeps_last = origin, keeps_last
        self.epochs = (config.stage1 if stage == 1 else config.stage2).epochs
        self.rank, self.world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        if self.world > config.pairs.groups_per_step:
            raise ConfigError(
                f"pairs.groups_per_step = {config.pairs.groups_per_step} is too small for {self.world} workers; "
                f"use at most {config.pairs.groups_per_step} workers"
            )
        self.optimizer = build_optimizer(self.model, config, stage)
        self.objective = choose_objective(features.task, config, stage, features.half_range, features.train.label_N)
        self.own = OwnTerms(self.model, features.train.label_N)
        fits = features.train.nbytes <= config.train.device_features_gb * 1e9
        self.feed = Feed(features, self.device, self.dtype, resident=fits and self.device.type != "cpu")
        self.limits = StepLimits(config, self.device)
        self.n_pairs = pairs_per_epoch(config.pairs, len(features.train))
        self.steps_per_epoch = math.ceil(self.n_pairs / (config.pairs.pairs_per_group * config.pairs.groups_per_step))
        self.curve: list[dict[str, Any]] = []
        self.saver: CheckpointSaver | None = None
        if folder is not None and self.rank == 0:
            self.saver = CheckpointSaver(folder, self._scratch(folder), minutes=config.checkpoint.minutes)
        self.notes: list[str] = []
        """Events of this training that its metrics do not show."""

    @property
    def epoch(self) -> int:
        """Number of finished epochs."""
        return len(self.curve)

    @property
    def done(self) -> bool:
        """Whether all epochs have run."""
        return self.epoch >= self.epochs

    def resume(self) -> bool:
        """Resume from the newest intact checkpoint, of this node or in the folders; return whether there was one.

        All ranks together get the one that rank 0 finds. Damaged ones are skipped, with a note.
        """
        if self.folder is None:
            return False
        faults: list[DamagedError] = []
        newest, fault = None, None
        if self.saver is not None:
            folders = [
                place for folder in (self.folder, *self.earlier) for place in (LocalPath(self._scratch(folder)), folder)
            ]
            try:
                chosen = find_checkpoint(folders, stage=self.stage, epochs=self.epochs, faults=faults)
            except Exception as error:  # Whatever it is, the other ranks wait to be told.
                fault = error
            else:
                newest = chosen[0] if chosen else None
        newest = share_checkpoint(newest, fault)
        if newest is not None:
            newest.restore(self.model, self.optimizer)
            self.curve = newest.state["curve"]
            if self.saver is not None and chosen is not None:
                self.saver.adopt(chosen[1])
        self.notes += [f"{fault}; trained again from epoch {self.epoch + 1}" for fault in faults]
        return self.epoch > 0

    def _scratch(self, folder: StoragePath) -> Path:
        """Return the scratch folder of this training in a folder: no other training's checkpoints are in it."""
        settings = {path: v for path, v in flatten(self.config).items() if not path.startswith(_NO_NUMBERS)}
        return scratch_of(json.dumps([folder.uri, self.stage, self.seed, self._origin, self.features.key, settings]))

    def finish(self, *, keep: bool = True) -> None:
        """End the training for good, also before its last epoch. keep: keep its weights; otherwise delete its files."""
        if self.saver is None or self.folder is None:
            return
        if not keep:
            self.saver.discard()
            # The driver deletes it too, perhaps before the last upload ended.
            with contextlib.suppress(OSError):
                self.folder.delete()
            return
        if self._keeps_last and self.curve and not self.done:
            self._save_as("last")
        self.saver.finish()
        self.saver.drop_rest()

    def interrupt(self) -> None:
        """End the training so that it can be resumed on another node from its present epoch."""
        if self.saver is not None:
            self.saver.interrupt()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield the metrics of the remaining epochs; each runs when it is requested."""
        while not self.done:
            yield self.run_epoch()

    def run_epoch(self) -> dict[str, Any]:
        """Train one epoch, validate, save; return the metrics. DivergedError if numbers are no longer finite."""
        start = time.perf_counter()
        seed_torch(self.seed, self.stage, self.epoch, self.rank)
        self.model.train()
        sums = torch.zeros((), device=self.device, dtype=torch.float64)
        encoded = 0
        for index, step in enumerate(self.steps()):
            rates = self._set_learning_rates(self.epoch * self.steps_per_epoch + index)
            terms, norm = self.take_step(step)
            encoded += len(step.utterance_U)
            # Read at the end of the epoch only: a GPU would have to finish the step first.
            sums = sums + torch.stack([*terms.values(), norm.double()]) / self.steps_per_epoch
        metrics = self._epoch_metrics([*terms, "grad_norm"], sums, encoded, start, rates)
        if not math.isfinite(metrics["loss/total"]) or not math.isfinite(metrics["grad_norm"]):
            raise DivergedError(f"the loss or its gradient is no longer finite after epoch {self.epoch + 1}")
        metrics |= self._validate()
        metrics["seconds"] = time.perf_counter() - start
        # In the form of a checkpoint, so that a resumed curve equals an uninterrupted one.
        self.curve += finite([metrics])
        self._save()
        return self.curve[-1]

    def steps(self) -> Iterator[Step]:
        """Yield the optimizer steps of the next epoch, with the groups of this rank."""
        pairs_M2 = draw_pairs(
            len(self.features.train),
            self.n_pairs,
            np.random.default_rng([self.seed, self.stage, self.epoch if self.config.pairs.redraw else 0]),
        )
        return epoch_steps(pairs_M2, self.config.pairs, rank=self.rank, world=self.world)

    def take_step(self, step: Step) -> tuple[dict[str, Tensor], Tensor]:
        """Run one optimizer step; return its loss terms as `backward` does, and the gradient norm before clipping."""
        self.optimizer.zero_grad(set_to_none=True)
        terms = self.backward(step)
        self.own.keep_apart()
        clip_norm = self.config.train.clip_norm
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), clip_norm)
        self.optimizer.step()
        # A rank without a group encodes an utterance that is not in the step.
        own = len(self._order_U) if step.groups else 0
        self.own.after_step(self._vector_UW[:own], self._order_U[:own], self.optimizer, clip_norm)
        return terms, norm

    def backward(self, step: Step) -> dict[str, Tensor]:
        """Compute the gradients of one step; return its loss terms on this rank, weighted like the loss.

        Each distinct utterance is encoded once, in length-sorted micro-batches; each group of pairs has its own losses.
        If the encoder's activations need too much memory, they are computed twice, with the same gradients. If a GPU
        runs out of memory, the step starts again with lower limits. Several ranks average their gradients at the end,
        so each can use the memory that it has. Nothing in a step waits for a GPU.

        Raises torch.OutOfMemoryError if the memory does not suffice for one utterance at a time.
        """
        order_U = length_sorted(self.features.train, step.utterance_U)
        position_U = np.empty(len(order_U), dtype=np.int64)
        position_U[np.searchsorted(step.utterance_U, order_U)] = np.arange(len(order_U))
        # A rank without a group still takes part in the exchange of gradients and loss terms.
        groups = step.groups or (_IDLE,)
        arrays = self.objective.constants(step.utterance_U, groups)
        arrays |= self.own.constants(step.utterance_U, position_U, groups)
        arrays["place_S"] = position_U[np.concatenate([group.slot_S for group in groups])]
        state = random_state(self.model)
        while (terms := self._gradients(order_U, arrays)) is None:
            self.optimizer.zero_grad(set_to_none=True)
            set_random_state(self.model, state)
            torch.cuda.empty_cache()
        if self.world > 1:
            average_gradients(self.model)
        return terms

    def _gradients(self, order_U: NDArray[np.int64], arrays: Arrays) -> dict[str, Tensor] | None:
        """Compute the gradients of this rank; None if memory ran out, with a lower limit for the next attempt."""
        batches: list[Batch] = []
        try:
            batches, known = self.feed.send(order_U, self.limits.micro_batch_tokens, arrays)
            if self.limits.activation_tokens is None:
                self.limits.measure(self.model, batches[-1], self.optimizer, self.autocast)
            with self.autocast():
                cached = None if self.limits.keeps(batches) else GradientCache(self.model, batches)
                vector_UW = self.model.encode_all(batches) if cached is None else cached.vector_UW
                score_S = self.model.score(vector_UW[known["place_S"]])
            terms, loss = self.totals(score_S, known, self.own.terms(vector_UW, known))
            loss.backward()  # type: ignore[no-untyped-call]
            if cached is not None:
                cached.backward(self.autocast)
            self._vector_UW, self._order_U = vector_UW.detach(), order_U
            return terms
        except torch.OutOfMemoryError as error:
            if (note := self.limits.lower(batches)) is None:
                raise torch.OutOfMemoryError(
                    "out of memory with one utterance at a time. Give each trial more of a GPU (--gpus-per-worker 1), "
                    "use a smaller backbone, or lower the memory of a text: --set features.max_tokens=N, or "
                    f"--set model.frozen_layers=N ({error})"
                ) from error
            self.notes.append(f"out of memory in epoch {self.epoch + 1}: {note}")
        return None

    def totals(
        self, score_S: Tensor, known: Mapping[str, Tensor], own: Mapping[str, Tensor] | None = None
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Return the step's loss terms on this rank, and its loss, from the scores of all groups' slots.

        known: `Objective.constants`, on the device. own: the model's own terms, which add to the loss.
        """
        terms = self.objective.terms(score_S, known)
        if own:
            terms |= {**own, "loss/total": terms["loss/total"] + torch.stack(list(own.values())).sum(0)}
        weight_G = known["weight_G"]
        sum_T = (torch.stack(list(terms.values())).detach() * (weight_G / self.world)).sum(-1)
        return dict(zip(terms, sum_T.unbind(), strict=True)), (weight_G * terms["loss/total"]).sum()

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Return the context that sets the precision of the model."""
        precision = self.config.train.precision
        # New trainings have no `auto`. In those of earlier releases it means bfloat16 on GPUs alone.
        if precision == "bfloat16" or (precision == "auto" and self.device.type == "cuda"):
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return contextlib.nullcontext()

    def _set_learning_rates(self, step: int) -> dict[str, float]:
        factor = learning_rate_factor(step, self.steps_per_epoch * self.epochs, self.config.train.warmup_fraction)
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor
        return {f"lr/{group['name']}": group["lr"] for group in self.optimizer.param_groups}

    def _epoch_metrics(
        self, names: list[str], sums: Tensor, encoded: int, start: float, rates: dict[str, float]
    ) -> dict[str, Any]:
        # Loss terms are sums over this rank's groups. The gradient norm is equal on all ranks. `encoded` adds up.
        sums = torch.cat([sums, sums.new_tensor([encoded])])
        if self.world > 1:
            sums[names.index("grad_norm")] /= self.world
            dist.all_reduce(sums)
        *values, encoded_all = sums.tolist()
        # A GPU has finished the epoch only now.
        seconds = time.perf_counter() - start
        return {
            "epoch": self.epoch + 1,
            **dict(sorted(zip(names, values, strict=True))),
            **rates,
            "utterance_passes": encoded_all / len(self.features.train),
            "utterances_per_s": encoded_all / seconds,
            "pairs_per_s": self.n_pairs / seconds,
        }

    def _validate(self) -> dict[str, float]:
        with self.autocast():
            score_N = predict(
                self.model,
                self.features,
                self.features.valid,
                device=self.device,
                token_budget=self.limits.micro_batch_tokens,
            )
        if not np.isfinite(score_N).all():
            raise DivergedError(f"the model's scores are no longer finite after epoch {self.epoch + 1}")
        return self._measured(score_N, self.features.valid.label_N)

    def _measured(self, score_N: NDArray[np.float64], label_N: NDArray[np.float64]) -> dict[str, float]:
        metrics = split_metrics(
            score_N,
            label_N,
            protocol=self.protocol,
            limit=self.features.half_range,
            origin=self.features.center,
            ties=self.config.metrics.ties,
        )
        return {f"valid/{name}": value for name, value in metrics.items()}

    def _save(self) -> None:
        kinds: list[Kind] = ["best"] if self.best_epoch == self.epoch else []
        if not self.done:
            kinds.append("whole")
        elif self._keeps_last:
            kinds.append("last")
        self._save_as(*kinds)

    def _save_as(self, *kinds: Kind) -> None:
        if self.saver is not None and kinds:
            state = {"stage": self.stage, "epoch": self.epoch, "seed": self.seed, "curve": self.curve}
            self.saver.save(self.model, self.optimizer, state, kinds)

    @property
    def best_epoch(self) -> int:
        """The epoch with the best objective, the earliest of equals; 0 before the first."""
        best = best_epoch(self.stage, self.curve)
        return int(best["epoch"]) if best else 0


@torch.no_grad()
def predict(
    model: MultimodalModel,
    features: Features,
    split: SplitFeatures,
    *,
    device: torch.device,
    token_budget: int,
    state_ND: NDArray[np.float32] | None = None,
) -> NDArray[np.float64]:
    """Return the scores [N] of a split about the centre of the label range, in its order, on every rank.

    state_ND: an array that receives z_final of the utterances that this rank scores, if given.
    """
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    training = model.training
    model.eval()
    mine = length_sorted(split, np.arange(len(split)))[rank::world]
    scores: list[Tensor] = []
    done = 0
    for batch in micro_batches(features, split, mine, token_budget, device=device):
        state_BD = model.represent(model.encode(batch.to(device, model.dtype)))
        scores.append(model.decide(state_BD))
        if state_ND is not None:
            state_ND[mine[done : done + len(state_BD)]] = state_BD.float().cpu().numpy()
        done += len(state_BD)
    score_N = torch.zeros(len(split), dtype=torch.float64, device=device)
    if scores:
        score_N[torch.from_numpy(mine).to(device)] = torch.cat(scores).double()
    if world > 1:
        dist.all_reduce(score_N)
    model.train(training)
    return score_N.cpu().numpy()


def stage_seed(*parts: int) -> int:
    """Return a seed derived from others, such as (run, stage, trial)."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint32)[0])


def seed_torch(*parts: int) -> None:
    """Seed torch's generators, which draw dropout masks and initial weights."""
    torch.manual_seed(stage_seed(*parts))


def choose_device(train: TrainConfig, *, granted: float) -> torch.device:
    """Return the device of the setting. ClusterError if the setting is `cuda` and no GPU is available.

    granted: the GPUs that the process has been given. Ray shows all GPUs of a machine to a trial without one. A process
    that has a fraction can allocate no more than this fraction of the GPU's memory.
    """
    usable = granted > 0 and torch.cuda.is_available()
    if train.device == "cuda" and not usable:
        raise ClusterError("train.device = cuda, but there is no GPU to take; request one with --gpus-per-worker 1")
    if not usable or train.device == "cpu":
        return torch.device("cpu")
    if granted < 1:
        limit_memory(granted)
    return torch.device("cuda")


def use_deterministic_torch(threads: int) -> None:
    """Make results repeatable bit for bit for a seed, on one machine type and number of threads."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if not os.environ.keys() & {"PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"}:
        # The sizes of micro-batches differ from step to step, which fragments segments of fixed size. Torch 2.9 applies
        # this setting under the older of the two names only.
        os.environ["PYTORCH_CUDA_ALLOC_CONF"] = setting = "expandable_segments:True"
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            # Ray Train uses a worker's GPU before it runs our code, and torch reads the variable at the first use only.
            _change_allocator(setting)
    torch.set_num_threads(threads)
    # Some CUDA kernels have no deterministic form. warn_only trains with them instead of failing. Attention has
    # deterministic kernels besides the two that are disabled here.
    torch.use_deterministic_algorithms(True, warn_only=torch.cuda.is_available())
    torch.backends.cuda.enable_mem_efficient_sdp(False)
    torch.backends.cuda.enable_cudnn_sdp(False)
    # No code reads uninitialised memory, so filling it would only cost time.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def _change_allocator(setting: str) -> None:
    """Change a setting of the memory allocator of a GPU that is in use. Torch has no public function for it."""
    if hasattr(torch._C, "_accelerator_setAllocatorSettings"):
        torch._C._accelerator_setAllocatorSettings(setting)
    else:  # Torch 2.8 and older.
        torch.cuda.memory._set_allocator_settings(setting)
