"""TensorBoard's HParams tab: the searched parameters with their ranges, and a session for each trial.

The protocol buffers are built here: TensorBoard's helpers need TensorFlow, and torch's create a second run for each
trial.
"""

from __future__ import annotations

import copy
import dataclasses
import datetime
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Literal, get_args

from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams import api_pb2, metadata
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionEndInfo, SessionStartInfo

from grcf_ray.config import Task, flatten, reads
from grcf_ray.search.record import RunRecord, TrialRecord
from grcf_ray.search.space import Dimension, Range, Space, recorded_space
from grcf_ray.search.stages import config_of
from grcf_ray.train.curve import STAGES, objective_name

_NUMBER, _WORD, _TRUTH = api_pb2.DATA_TYPE_FLOAT64, api_pb2.DATA_TYPE_STRING, api_pb2.DATA_TYPE_BOOL
_FIELDS: Mapping[Any, tuple[str, type]] = {
    _NUMBER: ("number_value", float),
    _WORD: ("string_value", str),
    _TRUTH: ("bool_value", bool),
}
_STAGE = api_pb2.HParamInfo(name="stage", type=_NUMBER)
_STATUS = {
    "complete": api_pb2.STATUS_SUCCESS,
    "pruned": api_pb2.STATUS_SUCCESS,
    "diverged": api_pb2.STATUS_FAILURE,
    "failed": api_pb2.STATUS_FAILURE,
}


def best_tag(metric: str) -> str:
    """Return the tag of a validation metric at the best epoch so far; the tab shows the last value of a tag."""
    return f"best/{metric}"


@dataclasses.dataclass(frozen=True)
class Study:
    """The parameters of a search's trials for the tab."""

    record: RunRecord
    space: Space
    task: Task

    @classmethod
    def read(cls, record: RunRecord) -> Study:
        """Read the study from run.json."""
        run = record.read_search()
        return cls(record, recorded_space(run["space"], f"{record}/space.yaml"), run["data"].get("task", "regression"))

    def experiment(self, stages: Sequence[Literal[1, 2]]) -> Summary.Value:
        """Return the columns for trials of these stages: first the parameters that all of them search.

        Views that compare trials omit trials without a value. TensorBoard uses one of several experiments, possibly of
        a run of the other task. So each experiment has all settings and the objectives of both tasks, its own first.
        """
        searched = [{name for name, info in self._infos[stage].items() if info.differs} for stage in stages]
        infos = copy.deepcopy({**self._infos[2], "stage": _STAGE})
        for name, info in infos.items():
            info.differs = name in set.intersection(*searched) or (name == "stage" and len(stages) > 1)
        ordered = sorted((1, 2), key=lambda stage: stage not in stages)
        tasks = sorted(get_args(Task), key=lambda task: task != self.task)
        names = dict.fromkeys(objective_name(stage, task) for task in tasks for stage in ordered)
        metrics = [
            api_pb2.MetricInfo(
                name=api_pb2.MetricName(tag=best_tag(name)),
                display_name=f"best valid/{name}",
                dataset_type=api_pb2.DATASET_VALIDATION,
            )
            for name in names
        ]
        experiment = api_pb2.Experiment(
            name=self.record.place.name,
            hparam_infos=sorted(infos.values(), key=lambda info: not info.differs),
            metric_infos=metrics,
        )
        return _value(metadata.EXPERIMENT_TAG, HParamsPluginData(experiment=experiment))

    def session_start(self, trial: TrialRecord) -> Summary.Value:
        """Return a trial's configuration, as far as its stage and task read it, and its start time."""
        values = {**flatten(config_of(self.space, self.record, trial)), **trial.params, "stage": trial.stage}
        # The table shows this name; with several runs, it needs the run's name too.
        name = f"stage{trial.stage}/{trial.number} {self.record.place.name}"
        session = SessionStartInfo(start_time_secs=_seconds(trial.started), group_name=name)
        for name, info in {**self._infos[trial.stage], "stage": _STAGE}.items():
            if values.get(name) is not None:
                field, kind = _FIELDS[info.type]
                setattr(session.hparams[name], field, kind(values[name]))
        return _value(metadata.SESSION_START_INFO_TAG, HParamsPluginData(session_start_info=session))

    @cached_property
    def _infos(self) -> Mapping[int, Mapping[str, api_pb2.HParamInfo]]:
        """The settings of a trial by stage; Stage 2 has those of Stage 1 too."""
        # Settings of the search do not affect a trial, and those of Stage 2 do not affect Stage 1.
        fixed = {
            path: _chosen(path, (value,), differs=False)
            for path, value in flatten(self.space.config()).items()
            if reads(self.task, path) and not path.startswith("search.") and isinstance(value, (bool, int, float, str))
        }
        of_first = {path: info for path, info in fixed.items() if not path.startswith("stage2.")}
        first, second = (
            {path: _searched(path, dimension) for path, dimension in self.space.dimensions(stage).items()}
            for stage in STAGES
        )
        if self.space.config().stage1.epochs:
            # An extended search adds finalists, which a recorded domain would hide; numbers need no domain.
            second["finalist"] = api_pb2.HParamInfo(name="finalist", type=_NUMBER, differs=True)
        # The first mapping sets the order, the last the values.
        return {1: first | of_first | first, 2: second | first | of_first | fixed | first | second}


def session_end(trial: TrialRecord) -> Summary.Value:
    """Return the final state and the end time of a trial."""
    session = SessionEndInfo(status=_STATUS[trial.state], end_time_secs=_seconds(trial.ended))
    return _value(metadata.SESSION_END_INFO_TAG, HParamsPluginData(session_end_info=session))


def _searched(path: str, dimension: Dimension) -> api_pb2.HParamInfo:
    if isinstance(dimension, Range):
        interval = api_pb2.Interval(min_value=dimension.low, max_value=dimension.high)
        return api_pb2.HParamInfo(name=path, type=_NUMBER, domain_interval=interval, differs=True)
    return _chosen(path, dimension.choices, differs=True)


def _chosen(path: str, choices: Sequence[Any], *, differs: bool) -> api_pb2.HParamInfo:
    kinds = {_TRUTH if isinstance(v, bool) else _WORD if isinstance(v, str) else _NUMBER for v in choices}
    kind = kinds.pop() if len(kinds) == 1 else _WORD
    info = api_pb2.HParamInfo(name=path, type=kind, differs=differs)
    info.domain_discrete.extend([str(choice) for choice in choices] if kind == _WORD else choices)
    return info


def _seconds(time: str | None) -> float:
    return datetime.datetime.fromisoformat(time).timestamp() if time else 0.0


def _value(tag: str, data: HParamsPluginData) -> Summary.Value:
    return Summary.Value(tag=tag, metadata=metadata.create_summary_metadata(data), tensor=metadata.NULL_TENSOR)
