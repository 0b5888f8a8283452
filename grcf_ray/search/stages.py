"""The search: Stage 1 -> finalists -> Stage 2 -> winner -> the test split, once."""

from __future__ import annotations

import dataclasses
import shutil
import signal
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import ray
from ray import tune

from grcf_ray.config import RunConfig, check_margins
from grcf_ray.data.features import Features
from grcf_ray.errors import NoWinnerError
from grcf_ray.files import write_json
from grcf_ray.metrics import Protocol
from grcf_ray.search.events import Event, Listener, StageEnded, StageStarted, WinnerFixed
from grcf_ray.search.halving import build_scheduler
from grcf_ray.search.keeper import GiveUp, RecordKeeper
from grcf_ray.search.proposals import Proposals, distributions, startup_trials
from grcf_ray.search.record import RunRecord, TrialRecord
from grcf_ray.search.space import Choice, Dimension, Space
from grcf_ray.search.trial import Shared, TrialTrainable
from grcf_ray.train.checkpoint import export_weights

__all__ = ["Search", "cluster_nodes"]

RETRIES = 2
"""Times that Tune starts a trial again whose process died."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Search:
    """A search over both stages on a connected cluster; the record in its folder is the truth."""

    record: RunRecord
    space: Space
    features: Features
    protocol: Protocol
    concurrent: int
    listeners: Sequence[Listener] = ()

    def run(self) -> TrialRecord:
        """Run what the record still lacks; the winner. NoWinnerError where no trial has a usable result."""
        config = self.space.config()
        stages = [stage for stage, part in ((1, config.stage1), (2, config.stage2)) if part.epochs]
        if 1 in stages:
            self._run_stage(1, config, self.space.stage1)
        if 2 in stages:
            finalists = self._hand_over(config) if 1 in stages else []
            dimensions: dict[str, Dimension] = dict(self.space.stage2)
            if finalists:
                dimensions["finalist"] = Choice(tuple(finalists), finalists[0])
            self._run_stage(2, config, dimensions)
        winner = self._best(stages[-1])
        self._tell(WinnerFixed(winner))
        return winner

    def config_of(self, trial: TrialRecord) -> RunConfig:
        """The whole configuration of a trial; Stage 2 inherits what its finalist's trial searched."""
        return self.space.config(self._params(trial.stage, trial.params))

    def _params(self, stage: Literal[1, 2], params: dict[str, Any]) -> dict[str, Any]:
        own = {path: value for path, value in params.items() if path != "finalist"}
        if stage == 1 or "finalist" not in params:
            return own
        inherited = next(t for t in self.record.trials(1) if t.number == int(params["finalist"]))
        return {**inherited.params, **own}

    def _run_stage(self, stage: Literal[1, 2], config: RunConfig, dimensions: Mapping[str, Dimension]) -> None:
        search = config.search
        budget, epochs = (
            (search.stage1_trials, config.stage1.epochs) if stage == 1 else (search.stage2_trials, config.stage2.epochs)
        )
        trials = self.record.trials(stage)
        left = budget - sum(trial.finished for trial in trials)
        self._tell(StageStarted(stage, budget, epochs, tuple(trials)))
        if left > 0:
            keeper = RecordKeeper(
                self.record,
                stage,
                seed=config.seed,
                epochs=epochs,
                choices=search.finalists if stage == 1 else 1,
                config_of=self.config_of,
                tell=self._tell,
            )
            space = distributions(dimensions)
            proposals = Proposals(
                space,
                start={path: dimension.start for path, dimension in dimensions.items()},
                trials=trials,
                stage=stage,
                epochs=epochs,
                seed=config.seed,
                n_startup_trials=startup_trials(budget),
                feasible=lambda params: self._feasible(stage, dict(params)),
                launch=keeper.launch,
            )
            scheduler = build_scheduler(search, stage=stage, epochs=epochs, trials=trials)
            self._fit(stage, config, proposals, scheduler, keeper, left)
        self.record.export_trials(stage)
        self._tell(StageEnded(stage))

    def _feasible(self, stage: Literal[1, 2], params: dict[str, Any]) -> bool:
        return stage == 2 or not check_margins(self.space.config(params), self.features.half_range)

    def _fit(
        self,
        stage: Literal[1, 2],
        config: RunConfig,
        proposals: Proposals,
        scheduler: tune.schedulers.TrialScheduler,
        keeper: RecordKeeper,
        left: int,
    ) -> None:
        search = config.search
        shared = Shared(self.features, stage, self.protocol, search.cpus_per_worker, search.gpus_per_worker > 0)
        bundle = {"CPU": search.cpus_per_worker, "GPU": search.gpus_per_worker}
        resources = tune.PlacementGroupFactory([{name: amount for name, amount in bundle.items() if amount}])
        scratch = Path(tempfile.mkdtemp(prefix="grcf-tune-"))
        on_interrupt = signal.getsignal(signal.SIGINT)
        try:
            tune.Tuner(
                tune.with_resources(tune.with_parameters(TrialTrainable, shared=shared), resources),
                tune_config=tune.TuneConfig(
                    search_alg=proposals,
                    scheduler=scheduler,
                    num_samples=left,
                    max_concurrent_trials=min(self.concurrent, left),
                    reuse_actors=True,
                ),
                run_config=tune.RunConfig(
                    name=f"stage{stage}",
                    storage_path=str(scratch),
                    verbose=0,
                    callbacks=[keeper],
                    stop=GiveUp(keeper),
                    failure_config=tune.FailureConfig(max_failures=RETRIES),
                    checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                ),
            ).fit()
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
            if threading.current_thread() is threading.main_thread():
                # Tune leaves a handler that would swallow the next Ctrl-C.
                signal.signal(signal.SIGINT, on_interrupt)
        if keeper.hopeless:
            raise NoWinnerError(_no_result(stage, self.record))
        # Tune takes the first Ctrl-C for itself and returns.
        if len([trial for trial in self.record.trials(stage) if trial.finished]) < keeper.expected(left):
            raise KeyboardInterrupt

    def _hand_over(self, config: RunConfig) -> list[str]:
        """Copy the best checkpoints, one per trial, to a place where no trial writes; their numbers as words."""
        ranked = self.record.ranked(1)[: config.search.finalists]
        if not ranked:
            raise NoWinnerError(_no_result(1, self.record))
        for trial in ranked:
            folder = self.record.finalist_folder(trial.number)
            if (folder / "trial.json").exists():
                continue
            assert trial.checkpoint is not None
            best = self.record.folder / trial.checkpoint
            source = best if config.stage2.start == "best" else best.with_name("last.safetensors")
            digest = export_weights(source, folder / "model.safetensors")
            write_json(
                folder / "trial.json",
                {
                    "trial": trial.number,
                    "objective": trial.objective,
                    "params": trial.params,
                    "sha256": digest,
                },
            )
            # What the attempts hold beyond this, the optimizer above all, is of no more use.
            trial.checkpoint = str((folder / "model.safetensors").relative_to(self.record.folder))
            self.record.write_trial(trial)
            shutil.rmtree(self.record.attempt_folder(trial).parent, ignore_errors=True)
        self.record.export_trials(1)
        return [str(trial.number) for trial in ranked]

    def _best(self, stage: int) -> TrialRecord:
        ranked = self.record.ranked(stage)
        if not ranked:
            raise NoWinnerError(_no_result(stage, self.record))
        return ranked[0]

    def _tell(self, event: Event) -> None:
        for listener in self.listeners:
            listener(event)


def _no_result(stage: int, record: RunRecord) -> str:
    trials = record.trials(stage)
    errors = sorted({trial.error for trial in trials if trial.error})
    why = f" The errors: {'; '.join(errors[:3])}" if errors else ""
    return f"stage {stage}: none of {len(trials)} trials has a usable result.{why} The record: {record.folder}"


def cluster_nodes() -> list[dict[str, float]]:
    """The resources of each node that is alive."""
    return [dict(node["Resources"]) for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
