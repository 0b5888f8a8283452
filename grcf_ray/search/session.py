"""Start a search: check the plan, hold the run's lease, run both stages, and report an early end."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import errno
import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence

from grcf_ray.cluster import connect, leave, node_types, watched

import torch
import yaml

from grcf_ray import console
from grcf_ray.cache import cache_folder
from grcf_ray.config import RunConfig, check_gpus, check_margins, flatten, reads
from grcf_ray.data import datasets
from grcf_ray.data.features import lowercases
from grcf_ray.data.schema import TableInfo
from grcf_ray.data.store import DatasetStore
from grcf_ray.data.tokens import count_cut
from grcf_ray.errors import ClusterError, ConfigError, DataError, faults_message
from grcf_ray.model.pretrained import load_tokenizer, resolve_backbone
from grcf_ray.search.calibration import Placement, calibrate
from grcf_ray.search.comparisons import retrainings
from grcf_ray.search.direct_baseline import both_sides
from grcf_ray.search.ensemble import best_trials
from grcf_ray.search.events import (
    Event,
    Listener,
    RetrainingsStarted,
    SearchFinished,
    SearchStarted,
    StepStarted,
    TrialStarted,
)
from grcf_ray.search.host_memory import mean_tokens, worker_bytes
from grcf_ray.search.lease import Lease, unwritable
from grcf_ray.search.made_space import MadeSpace
from grcf_ray.search.nodes import check_memory, check_nodes, cluster_nodes
from grcf_ray.search.preflight import (
    Capacity,
    check_disk,
    check_modalities,
    check_parameters,
    find_capacity,
    idle_rates,
    resolve_gpus,
    resolve_precision,
)
from grcf_ray.search.record import RunRecord, TrialRecord, now
from grcf_ray.search.run_lookup import GROWING, check_encoder, encoder_of, note_encoder
from grcf_ray.search.seeds import retrain
from grcf_ray.search.space import NO_STAGE, Space, stage_budgets
from grcf_ray.search.stages import Search
from grcf_ray.search.stopping import STAGE_SHARES, Stop
from grcf_ray.search.winner import (
    export_members,
    keep_finalists,
    measure_winner,
    measured,
    test_was_read,
    versions,
)
from grcf_ray.train.assemble import prepare_features

_STORAGE_FAULTS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE, errno.EACCES, None)
"""Errors of a full, failing or unmounted disk. Errors of object storage have no number."""
_FLUSH_S = 1.0
"""Time to write what waits before the process exits: SIGKILL may follow within seconds."""
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, None)
"""Errors that only a write can raise. NumPy's own error for a full disk has no number."""


@dataclasses.dataclass(kw_only=True)
class Session:
    """One search command with its data, space and record.

    space: `check` fixes its GPUs per worker and its precision. command: the command as the user typed it, for messages
    that say how to resume. time_budget: seconds.
    """

    record: RunRecord
    space: Space
    store: DatasetStore
    seeds: int
    reopen: bool
    time_budget: float | None
    command: str
    write_card: Callable[[RunRecord, TableInfo], None]
    """Writes the model card of a run."""
    listeners: Sequence[Listener] = ()
    shared: bool = False
    """Let other users read the run, as the user's umask allows."""
    made: MadeSpace | None = None
    """The made space that `space` comes from; None for a space file."""
    measures: bool = True
    """Save the winner and measure it on test. Without, the search ends with its trials and opens no test split."""

    @property
    def config(self) -> RunConfig:
        """The starting point."""
        return self.space.config()

    @property
    def budgets(self) -> dict[int, tuple[int, int]]:
        """The trials and epochs of each stage that has epochs."""
        return dict(stage_budgets(self.config).items())

    def finished(self) -> bool:
        """Return whether the record holds the whole search, its best model and the retrainings."""
        if not self.record.exists or self.reopen:
            return False
        info = self.record.search_info()
        same = all(info.settings[key] == value for key, value in flatten(self.config).items() if key in GROWING)
        if info.state != "finished" or not same or info.seeds < self.seeds:
            return False
        if not self.measures:
            return True
        if info.winner is None:
            return False
        if info.winner not in measured(self.record)[:1]:
            console.progress(
                f"{self.record.place / 'best'} is missing or incomplete; saving and measuring the winner again"
            )
            return False
        return not self.seeds or retrainings(self.record, info.winner) is not None

    def check(self) -> Capacity:
        """Join the cluster, return how the trials fit it, and fix the GPUs per worker and the precision in the space.

        Raises ConfigError, DataError or ClusterError if the search can never run.
        """
        if self.seeds < 0:
            raise ConfigError(f"--seeds {self.seeds}: should be 0 or more")
        config = self.config
        task = self.store.info.task
        if faults := check_margins(config, self.store.info.half_range, task):
            raise ConfigError(
                faults_message(f"{self.space.source}: the margins of the starting point contradict each other", faults)
                + "\nSet others, such as --set ranking.base_margin=VALUE, or remove your --set options"
            )
        searched = {**self.space.stage1, **self.space.stage2}
        if unread := [path for path in searched if not reads(task, path)]:
            raise ConfigError(
                f"{self.space.source} searches {', '.join(unread)}, which {task} does not use; "
                f"give a search space for {task}: --space FILE"
            )
        notes = self.store.check_trainable()
        check_modalities(self.space, self.store.info)
        if not self.budgets:
            raise ConfigError(NO_STAGE)
        if config.train.device == "cuda" and config.search.gpus_per_worker == 0:
            raise ConfigError(
                "train.device = cuda, but trials have no GPU; give --gpus-per-worker 1, or a fraction of a GPU"
            )
        if not self.record.exists:
            # A run of an earlier release may have more.
            check_gpus(config.search.gpus)
        if config.model.sees_text:
            resolve_backbone(config.model.backbone)
        self._check_encoder()
        connect()
        nodes, types = cluster_nodes(), node_types()
        gpus = resolve_gpus(config, nodes, types)
        if not gpus and config.search.gpus_per_worker == "auto" and config.train.device == "auto":
            check_parameters(config, self.store.info, {"gpus": self._command_with(1), "cpus": self._command_with(0)})
        self.space = self.space.with_settings({"search.gpus_per_worker": gpus})
        config = self.config
        tokens = mean_tokens(config, self.store) if config.model.sees_text else 0.0
        room = find_capacity(
            nodes,
            config,
            [trials for trials, _ in self.budgets.values()],
            types=types,
            worker_bytes=worker_bytes(config, self.store.info, tokens, gpu=gpus > 0),
        )
        check_disk(self.record.place, config, self.store.info, concurrent=room.most, seeds=self.seeds)
        memory = check_nodes(nodes, config, self.record.place)
        if idle := idle_rates(self.space, self.store.info):
            notes.append(f"searched without effect, since no trained layer has them: {', '.join(idle)}")
        self.space = self.space.with_settings({"train.precision": resolve_precision(config, nodes)})
        return dataclasses.replace(room, memory=memory, notes=(*notes, *room.notes))

    def count_cut(self) -> tuple[int, int]:
        """Return how many texts of train and valid are longer than features.max_tokens, and how many texts there are.

        The test split is not read before the winner is fixed.
        """
        settings, store = self.config.features, self.store
        if not self.config.model.sees_text:
            return 0, 0
        texts = [text for split in ("train", "valid") for text in store.texts(split)]
        if lowercases(store, settings):
            texts = [text.lower() for text in texts]
        tokenizer = load_tokenizer(self.config.model.backbone)
        return count_cut(texts, tokenizer, max_tokens=settings.max_tokens), len(texts)

    def calibrate(self) -> list[Placement]:
        """Return the throughput of concurrent trials on the cluster that `check` joined."""
        features = prepare_features(self.store, self.config)
        return calibrate(features, self.config, lambda trials: console.progress(f"Timing:  {trials}"))

    def run(self, room: Capacity) -> None:
        """Search, save and measure the winner, and retrain it under fresh seeds; skip the steps that are on record."""
        self._make_folder()
        stop = Stop(time_budget=self.time_budget, last_words=self._leave)
        # Ray reports its processes on standard output, which is reserved for the result.
        aside = contextlib.redirect_stdout(sys.stderr)
        with Lease(self.record.place, self.command), aside:
            with stop.on_signals():
                self._search_to_record(room, stop)
            self._tell(SearchFinished())

    def _search_to_record(self, room: Capacity, stop: Stop) -> None:
        """Search; an early end is noted in the record and on the terminal."""
        try:
            with watched(self._lose_cluster):
                self._search(room, stop)
        except KeyboardInterrupt:
            self._leave("Interrupted")
            raise
        except OSError as error:
            self._note_state("failed")
            if error.errno not in _STORAGE_FAULTS:
                raise
            raise ClusterError(
                f"{self.record} can no longer be written ({error.strerror or error}); every finished epoch is "
                f"kept. Once it can be written again, go on: {self.command}"
            ) from error
        except BaseException:
            self._note_state("failed")
            raise

    def _search(self, room: Capacity, stop: Stop) -> None:
        record, config, store = self.record, self.config, self.store
        torch.set_num_threads(os.cpu_count() or 1)
        console.progress("Preparing features")
        try:
            features = prepare_features(store, config)
        except OSError as error:
            cache = cache_folder()
            if error.errno not in _FULL and not str(error.filename or "").startswith(str(cache)):
                raise
            raise ClusterError(
                f"{cache}, the feature cache, cannot be written ({error.strerror or error}). Free some space, or give "
                f"another folder: GRCF_CACHE=DIR {self.command}"
            ) from error
        check_memory(features.train.nbytes + features.valid.nbytes, room.memory)
        seconds = {
            stage: left for stage in self.budgets if (left := stop.seconds_until(STAGE_SHARES[stage])) is not None
        }
        self._open_record(seconds)
        self._tell(SearchStarted(room.concurrent, self.budgets, store.info.task, self.seeds, seconds))
        listeners = [*self.listeners, self._note_trials_after_test()] if test_was_read(record) else self.listeners
        job = Search(
            record=record,
            space=self.space,
            features=features,
            protocol=record.search_info().data.protocol,
            concurrent=room.concurrent if config.search.concurrent else room.fitting.follow(),
            resources=room.fitting.resources,
            listeners=listeners,
            stop=stop,
            reopen=self.reopen,
        )
        winner, complete = job.run(), job.complete
        if self.measures:
            complete &= self._measure(job, winner)
        # Trials that were not cut by the time budget were left unfinished after failures outside of them.
        state = "finished" if complete else "time is up" if record.info().cut else "unfinished"
        record.update_run(state=state, ended=now(), seeds=max(self.seeds, record.search_info().seeds))

    def _measure(self, job: Search, winner: TrialRecord) -> bool:
        """Save and measure the ensemble, and retrain the winner under fresh seeds; return whether all are trained."""
        record, store = self.record, self.store
        members = best_trials(job)
        if measured(record) != [trial.name for trial in members]:
            self._tell(StepStarted("saving the best models", len(members)))
            members = export_members(job, members, store)
            self._tell(StepStarted("measuring them on valid and test", len(members)))
            measure_winner(job, members, store)
        record.update_run(winner=winner.name)
        self._step("saving the finalists' scores")
        keep_finalists(job, store)
        self._write_card()
        if not self.seeds:
            return True
        complete: bool = retrain(job, winner, self.seeds, store)["complete"]
        self._write_card()
        return complete

    def _open_record(self, seconds: Mapping[int, float]) -> None:
        """Write run.json, or add this start to it. seconds: until each stage ends by the time budget, empty without."""
        record, started = self.record, {"time": now(), "command": self.command, "seeds": self.seeds}
        if seconds:
            begun = datetime.datetime.now(datetime.timezone.utc)
            ends = {str(stage): begun + datetime.timedelta(seconds=left) for stage, left in seconds.items()}
            started["stage_ends"] = {stage: end.isoformat(timespec="seconds") for stage, end in ends.items()}
        settings = flatten(self.config)
        if record.exists:
            run = record.read_search()
            if lacking := record.lacks():
                console.progress(f"An earlier release wrote this run; its record lacks {' and '.join(lacking)}")
            starts = [*run["starts"], started]
            record.write_run({**run, "state": "running", "settings": settings, "starts": starts, "cut": []})
            note_encoder(record, self.config)
            return
        record.write_space(yaml.safe_dump(self.space.as_dict(), sort_keys=False))
        record.write_run(
            {
                "state": "running",
                "starts": [started],
                "space": self.space.as_dict(),
                **({"made": self.made.as_dict()} if self.made else {}),
                "settings": settings,
                "data": {
                    "folder": str(self.store.folder.absolute()),
                    "name": self.store.info.name,
                    "task": self.store.info.task,
                    "fingerprint": self.store.info.fingerprint,
                    "label_range": list(self.store.info.label_range),
                    "columns": dict(self.store.info.columns),
                    "metrics": datasets.protocol_of(self.store.info.name, self.store.info.task),
                },
                "encoder": encoder_of(self.config),
                "versions": versions(),
            }
        )

    def _leave(self, how: str) -> None:
        """Write what waits and print how to resume; the record needs no other clean-up."""
        self.record.background.flush(_FLUSH_S)
        self._note_state("interrupted")
        console.progress(f"{how}; every finished epoch is kept. To resume: {self.command}")

    def _lose_cluster(self, loss: str) -> None:
        try:
            self.record.background.flush(_FLUSH_S)
            self._note_state("interrupted")
        finally:
            leave(f"{loss}; every finished epoch is kept. To resume: {self.command}")

    def _note_state(self, state: str) -> None:
        # The search may be ending because the disk is full, or because the record is damaged or missing.
        # It does not wait for storage that fails, for example when SIGKILL may follow.
        record = RunRecord(self.record.place.rooted())
        with contextlib.suppress(OSError, DataError):
            if record.exists:
                record.update_run(state=state)

    def _note_trials_after_test(self) -> Listener:
        choosing = True

        def note(event: Event) -> None:
            nonlocal choosing
            # Nothing is chosen among the retrainings.
            choosing &= not isinstance(event, RetrainingsStarted)
            if choosing and isinstance(event, TrialStarted) and not self.record.search_info().test_seen:
                self.record.update_run(test_seen=True)

        return note

    def _write_card(self) -> None:
        self._step("writing the model card")
        self.write_card(self.record, self.store.info)

    def _step(self, description: str) -> None:
        self._tell(StepStarted(description))

    def _tell(self, event: Event) -> None:
        for listener in self.listeners:
            listener(event)

    def _command_with(self, gpus: int) -> str:
        """Return the command, or the call of `run_search`, with a number of GPUs per worker."""
        if self.command.endswith(")"):
            return f"{self.command[:-1]}, gpus_per_worker={gpus})"
        return f"{self.command} --gpus-per-worker {gpus}"

    def _make_folder(self) -> None:
        """Create the run's folder. Raises ConfigError if it cannot be written, DataError if it holds links."""
        place = self.record.place
        try:
            place.make_private()
            if self.shared:
                place.share()
            place.check_links()
            if place.local is not None:
                tempfile.TemporaryFile(dir=place.local).close()
        except OSError as error:
            raise unwritable(place, error) from error

    def _check_encoder(self) -> None:
        otherwise = "start a new search under another name: --name NAME"
        check_encoder(self.record, self.config, otherwise=otherwise)
        (other,) = [side for side in both_sides(self.record.place).values() if side.name != self.record.place.name]
        # A run that cannot be read is not compared either.
        with contextlib.suppress(DataError, OSError):
            check_encoder(RunRecord(other), self.config, otherwise=otherwise)
