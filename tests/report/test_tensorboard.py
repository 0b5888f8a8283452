from __future__ import annotations

import errno
import shutil
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pytest
from report.predictions import write_predictions
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import api_pb2, metadata
from tensorboard.summary.writer.record_writer import RecordWriter

from grcf_ray.config import flatten
from grcf_ray.errors import ClusterError
from grcf_ray.report import tensorboard
from grcf_ray.report.tensorboard import TAGS, TensorBoardListener, best_so_far
from grcf_ray.search.events import (
    EpochFinished,
    RetrainingsStarted,
    SearchFinished,
    SearchStarted,
    StageStarted,
    TrialEnded,
    TrialStarted,
)
from grcf_ray.search.record import RunRecord, TrialRecord
from grcf_ray.search.space import recorded_space
from grcf_ray.search.stages import config_of
from grcf_ray.storage import storage_path

if TYPE_CHECKING:
    from tests.conftest import Recorded

STORED = Path(__file__).parents[1] / "stored" / "run-2"
STAGES: tuple[Literal[1, 2], ...] = (1, 2)


def loaded(folder: Path) -> EventAccumulator:
    """A run as TensorBoard reads it."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0})
    events.Reload()
    return events


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Tag -> (step, value) of every event in a folder, none left out."""
    events = loaded(folder)
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def hparams(folder: Path) -> dict[str, Any]:
    """Tag -> content of what a folder holds for the HParams tab."""
    parse = {
        metadata.EXPERIMENT_TAG: metadata.parse_experiment_plugin_data,
        metadata.SESSION_START_INFO_TAG: metadata.parse_session_start_info_plugin_data,
        metadata.SESSION_END_INFO_TAG: metadata.parse_session_end_info_plugin_data,
    }
    events = loaded(folder)
    contents = {tag: events.SummaryMetadata(tag).plugin_data.content for tag in events.Tags()["tensors"]}
    return {tag: parse[tag](content) for tag, content in contents.items()}


def parameters(session: Any) -> dict[str, Any]:
    """A session's parameters as plain values."""
    return {name: getattr(value, value.WhichOneof("kind")) for name, value in session.hparams.items()}


def files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("events.out.tfevents.*"))


def trial(epochs: int, *, number: int = 0, stage: Literal[1, 2] = 1, state: Any = "running") -> TrialRecord:
    curve = [
        {
            "epoch": k,
            "valid/mae": 1 / k,
            "valid/pairwise_acc": None if k == 2 else 0.9 - 0.1 * k,
            "loss/bound": 0.25,
            "utterance_passes": 0.4,
        }
        for k in range(1, epochs + 1)
    ]
    passes = 0.4 * epochs
    return TrialRecord(
        number=number, stage=stage, attempt=1, params={}, seed=0, state=state, curve=curve, utterance_passes=passes
    )


def copied(folder: Path, run: Path = STORED) -> RunRecord:
    """A finished search in a folder of its own, without what TensorBoard wrote of it."""
    shutil.copytree(run, folder, ignore=shutil.ignore_patterns("tensorboard", "*.safetensors"))
    return RunRecord(storage_path(folder))


def replay(record: RunRecord) -> None:
    """Tell a listener what the record holds, as a search that goes on does."""
    with TensorBoardListener(record) as listener:
        listener(SearchStarted(1, {1: (6, 3), 2: (5, 3)}))
        for stage in STAGES:
            listener(StageStarted(stage, 6, 3, tuple(record.trials(stage))))


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> RunRecord:
    """A finished search with its TensorBoard folder, to be read only."""
    record = copied(tmp_path_factory.mktemp("shown") / "run")
    replay(record)
    return record


@pytest.fixture(scope="module")
def board(record: RunRecord) -> Path:
    return Path(str(record)) / "tensorboard"


def test_every_scalar_of_every_epoch_of_every_trial_is_there(record: RunRecord, board: Path) -> None:
    for stage in STAGES:
        folders = {path.name for path in (board / f"stage{stage}").iterdir()}
        assert folders == {f"{t.number:04d}" for t in record.trials(stage)} | {"summary"}
        for kept in record.trials(stage):
            folder = board / f"stage{stage}" / f"{kept.number:04d}"
            assert len(files(folder)) == 1
            written = scalars(folder)
            expected: dict[str, list[tuple[int, Any]]] = {}
            for metrics in kept.curve:
                for name, value in metrics.items():
                    tags = {TAGS.get(name, name)} | ({name} if name.startswith("loss/") else set())
                    for tag in tags if name != "epoch" and value is not None else ():
                        expected.setdefault(tag, []).append((metrics["epoch"], pytest.approx(value, rel=1e-6)))
            best = {tag: points for tag, points in written.items() if tag.startswith("best/")}
            assert {tag: points for tag, points in written.items() if tag not in best} == expected
            assert {"loss/total", "loss/bound", "boundary/overshoot", "lr/head", "speed/seconds"} <= written.keys()
            assert {"gradient/norm", "pairs/active_share", "pairs/mean_weight"} <= written.keys()
            assert best.keys() == {"best/pairwise_acc", "best/mae"}
            objective = best["best/pairwise_acc" if stage == 1 else "best/mae"]
            assert objective[-1] == (kept.epoch, pytest.approx(kept.objective, rel=1e-6))


def test_a_session_holds_the_trials_whole_configuration(record: RunRecord, board: Path) -> None:
    space = recorded_space(record.read_run()["space"], "space")
    for stage in STAGES:
        for kept in record.trials(stage):
            contents = hparams(board / f"stage{stage}" / f"{kept.number:04d}")
            session = parameters(contents[metadata.SESSION_START_INFO_TAG])
            config = flatten(config_of(space, record, kept))
            assert session.pop("stage") == stage
            assert session.keys() >= kept.params.keys()
            if stage == 2:
                assert session.pop("finalist") == int(kept.params["finalist"])
            assert {path: config[path] for path in session} == session
            assert {"pairs.pairs_per_epoch", "model.backbone", "stage1.head_lr", "seed"} <= session.keys()
            assert ("stage2.head_lr" in session) == (stage == 2)
            # What neither the task nor the stage reads would be noise.
            assert not [path for path in session if path.startswith(("classes.", "search."))]
            good = kept.state in ("complete", "pruned")
            status = api_pb2.STATUS_SUCCESS if good else api_pb2.STATUS_FAILURE
            assert contents[metadata.SESSION_END_INFO_TAG].status == status


def test_an_experiment_names_what_is_searched_and_the_objective(record: RunRecord, board: Path) -> None:
    def columns(folder: Path) -> tuple[dict[str, Any], list[str]]:
        experiment = hparams(folder)[metadata.EXPERIMENT_TAG]
        searched = {info.name: info for info in experiment.hparam_infos if info.differs}
        # Those come first.
        assert [info.name for info in experiment.hparam_infos][: len(searched)] == list(searched)
        return searched, [info.name.tag for info in experiment.metric_infos]

    space = recorded_space(record.read_run()["space"], "space")
    first, metrics = columns(board / "stage1" / "summary")
    assert metrics == ["best/pairwise_acc", "best/mae", "best/bce"]
    assert first.keys() == space.stage1.keys()
    interval = first["stage1.head_lr"].domain_interval
    assert (interval.min_value, interval.max_value) == (1e-4, 1e-2)
    choices = [value.string_value for value in first["model.modalities"].domain_discrete.values]
    assert choices == ["all", "text", "text+audio"]
    second, metrics = columns(board / "stage2" / "summary")
    assert metrics == ["best/mae", "best/pairwise_acc", "best/bce"]
    assert second.keys() == {*space.stage1, *space.stage2, "finalist"}
    both, metrics = columns(board)
    assert metrics == ["best/pairwise_acc", "best/mae", "best/bce"]
    # What every row has.
    assert both.keys() == {*space.stage1, "stage"}


def test_the_summary_shows_the_best_so_far_by_trials_and_by_cost(record: RunRecord, board: Path) -> None:
    for stage in STAGES:
        written, trials = scalars(board / f"stage{stage}" / "summary"), record.trials(stage)
        best = pytest.approx(record.ranked(stage)[0].objective, rel=1e-6)
        assert written["search/best_by_trials"][-1] == (len(trials), best)
        step, value = written["search/best_by_utterance_passes"][-1]
        assert value == best
        assert step == pytest.approx(sum(t.utterance_passes for t in trials), abs=len(trials))


def test_epochs_are_written_as_they_end(tmp_path: Path) -> None:
    """Readable while the trial runs: nothing waits in a buffer."""
    folder = tmp_path / "tensorboard" / "stage1" / "0000"
    with TensorBoardListener(RunRecord(storage_path(tmp_path))) as listener:
        listener(StageStarted(1, 1, 3, ()))
        listener(TrialStarted(trial(0)))
        listener(EpochFinished(trial(1)))
        assert scalars(folder)["valid/mae"] == [(1, 1.0)]
        listener(EpochFinished(trial(2)))
        written = scalars(folder)
    assert written["valid/mae"] == [(1, 1.0), (2, 0.5)]
    assert written["loss/bound"] == written["boundary/overshoot"] == [(1, 0.25), (2, 0.25)]
    assert [step for step, _ in written["valid/pairwise_acc"]] == [1]


def test_the_best_so_far_is_the_best_epoch_by_the_stages_own_objective() -> None:
    assert best_so_far(trial(3, stage=2)) == [
        {"best/mae": 1.0, "best/pairwise_acc": 0.8},
        # Undefined there.
        {"best/mae": 1 / 2},
        {"best/mae": 1 / 3, "best/pairwise_acc": pytest.approx(0.6)},
    ]
    assert best_so_far(trial(3)) == 3 * [{"best/pairwise_acc": 0.8, "best/mae": 1.0}]
    undefined = trial(2)
    undefined.curve = undefined.curve[1:]
    assert best_so_far(undefined) == [{}]


def test_a_resumed_stage_adds_no_duplicates(tmp_path: Path) -> None:
    record = RunRecord(storage_path(tmp_path))
    with TensorBoardListener(record) as listener:
        listener(StageStarted(2, 2, 4, ()))
        listener(TrialEnded(trial(4, stage=2, state="complete")))
        listener(EpochFinished(trial(2, number=1, stage=2)))
    with TensorBoardListener(record) as listener:
        kept = (trial(4, stage=2, state="complete"), trial(2, number=1, stage=2))
        listener(StageStarted(2, 2, 4, kept))
        listener(TrialStarted(trial(2, number=1, stage=2)))
        # Its last checkpoint was damaged: it does its second epoch again.
        listener(EpochFinished(trial(2, number=1, stage=2)))
        listener(EpochFinished(trial(3, number=1, stage=2)))
        listener(TrialEnded(trial(4, number=1, stage=2, state="complete")))
    stage = tmp_path / "tensorboard" / "stage2"
    for number, count in ((0, 1), (1, 2)):
        steps = [step for step, _ in scalars(stage / f"{number:04d}")["valid/mae"]]
        assert steps == [1, 2, 3, 4]
        assert len(files(stage / f"{number:04d}")) == count
    assert [step for step, _ in scalars(stage / "summary")["search/best_by_trials"]] == [1, 2]


def test_stages_that_overlap_have_their_own_progress(tmp_path: Path) -> None:
    with TensorBoardListener(RunRecord(storage_path(tmp_path))) as listener:
        listener(StageStarted(1, 2, 4, ()))
        listener(TrialEnded(trial(4, state="complete")))
        listener(StageStarted(2, 2, 4, ()))
        listener(TrialEnded(trial(4, stage=2, state="complete")))
        listener(TrialEnded(trial(4, number=1, state="complete")))
    for stage, count in ((1, 2), (2, 1)):
        written = scalars(tmp_path / "tensorboard" / f"stage{stage}" / "summary")["search/best_by_trials"]
        assert [step for step, _ in written] == list(range(1, count + 1))
        assert [value for _, value in written] == pytest.approx([0.8 if stage == 1 else 1 / 4] * count)


def test_a_finished_search_that_is_told_again_writes_nothing(record: RunRecord, board: Path) -> None:
    before = {path: path.read_bytes() for path in files(board)}
    replay(record)
    assert {path: path.read_bytes() for path in files(board)} == before


@pytest.mark.integration
def test_a_search_writes_epoch_by_epoch_what_a_replay_writes(recorded: Recorded, tmp_path: Path) -> None:
    replay(copied(tmp_path / "recorded", recorded.folder))
    written = recorded.folder / "tensorboard"
    assert loaded(written / "best").Tags()["images"] == ["predictions/test", "confusion/test"]
    for path in written.rglob("stage*/00*"):
        again = tmp_path / "recorded" / path.relative_to(recorded.folder)
        assert scalars(again) == scalars(path)
        assert hparams(again) == hparams(path)


def test_what_a_dead_driver_did_not_write_is_added(tmp_path: Path) -> None:
    """It had recorded the second epoch, and died in the midst of telling of it."""
    record = RunRecord(storage_path(tmp_path))
    folder = tmp_path / "tensorboard" / "stage1" / "0000"
    with TensorBoardListener(record) as listener:
        listener(EpochFinished(trial(2)))
    (file,) = files(folder)
    file.write_bytes(file.read_bytes()[:-7])
    assert [step for step, _ in scalars(folder)["valid/mae"]] == [1]
    with TensorBoardListener(record) as listener:
        listener(StageStarted(1, 1, 3, (trial(2),)))
        listener(TrialEnded(trial(3, state="complete")))
    assert [step for step, _ in scalars(folder)["valid/mae"]] == [1, 2, 3]


def test_retrainings_have_folders_of_their_own(tmp_path: Path) -> None:
    """Their numbers begin anew, the search's trials keep theirs, and they are no rows among them."""
    record = copied(tmp_path / "run")
    with TensorBoardListener(record) as listener:
        listener(SearchStarted(1, {1: (2, 2)}))
        listener(StageStarted(1, 1, 2, ()))
        listener(TrialEnded(trial(2, state="complete")))
        # The time was up before this one had ended.
        listener(EpochFinished(trial(1, number=1)))
        listener(RetrainingsStarted("anew", {1: 2, 2: 2}))
        listener(StageStarted(1, 2, 3, ()))
        listener(TrialEnded(trial(3, state="complete")))
        listener(TrialEnded(trial(3, number=1, state="complete")))
    board = tmp_path / "run" / "tensorboard"
    for folder, epochs in ((board, [2, 1]), (board / "seeds", [3, 3])):
        for number in (0, 1):
            steps = [step for step, _ in scalars(folder / "stage1" / f"{number:04d}")["valid/mae"]]
            assert steps == list(range(1, epochs[number] + 1))
    assert hparams(board / "stage1" / "0000").keys() == {
        metadata.SESSION_START_INFO_TAG,
        metadata.SESSION_END_INFO_TAG,
    }
    assert not hparams(board / "seeds" / "stage1" / "0000")
    assert not (board / "seeds" / "stage1" / "summary").exists()


def test_the_result_is_shown_on_the_split_that_was_read(tmp_path: Path) -> None:
    record = copied(tmp_path / "run")
    best = tmp_path / "run" / "tensorboard" / "best"
    shutil.rmtree(tmp_path / "run" / "best" / "predictions")
    with TensorBoardListener(record) as listener:
        listener(SearchFinished())
    assert not best.exists()
    for split in ("valid", "test"):
        write_predictions(record, split)
        for _ in range(2):
            with TensorBoardListener(record) as listener:
                listener(SearchFinished())
    events = loaded(best)
    assert set(events.Tags()["images"]) == {
        f"{name}/{split}" for name in ("predictions", "confusion") for split in ("valid", "test")
    }
    for tag in events.Tags()["images"]:
        (image,) = events.Images(tag)
        assert image.encoded_image_string.startswith(b"\x89PNG")
        assert image.step == 11
    assert '"test-state.tsv"' in (best / "projector_config.pbtxt").read_text()


def test_a_fault_in_showing_the_result_is_told_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("grcf_ray.report.tensorboard.png_values", broken)
    record = copied(tmp_path / "run")
    with TensorBoardListener(record) as listener:
        listener(SearchFinished())
    assert capsys.readouterr().err.startswith(
        "TensorBoard cannot show the result; the search is not affected: No space left"
    )


@pytest.mark.s3
def test_in_object_storage_nothing_is_lost_or_doubled(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two drivers one after the other, the second without the first one's files. Uploads are seldom."""
    monkeypatch.setattr(tensorboard, "_UPLOAD_S", 3600.0)
    record = RunRecord(storage_path(s3) / uuid.uuid4().hex)
    place = record.place / "tensorboard" / "stage1" / "0000"

    def steps() -> list[int]:
        with place.reading_folder() as folder:
            return [step for step, _ in scalars(folder)["valid/mae"]]

    with TensorBoardListener(record) as listener:
        listener(StageStarted(1, 1, 3, ()))
        listener(EpochFinished(trial(1)))
        # There while the trial runs.
        assert steps() == [1]
        listener(EpochFinished(trial(2)))
        assert steps() == [1]
    assert steps() == [1, 2]
    with TensorBoardListener(record) as listener:
        listener(StageStarted(1, 1, 3, (trial(2),)))
        listener(EpochFinished(trial(3)))
        listener(TrialEnded(trial(4, state="complete")))
    assert steps() == [1, 2, 3, 4]
    assert len(place.names()) == 2
    with (record.place / "tensorboard" / "stage1" / "summary").reading_folder() as folder:
        assert [step for step, _ in scalars(folder)["search/best_by_trials"]] == [1]


def test_a_full_disk_is_told_by_what_broke_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The events that were still to be written fail a second time when the listener is closed."""
    record = copied(tmp_path / "run")

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def search() -> None:
        with TensorBoardListener(record) as listener:
            listener(SearchStarted(1, {1: (6, 3), 2: (5, 3)}))
            listener(EpochFinished(trial(1)))
            monkeypatch.setattr(RecordWriter, "write", refuse)
            with pytest.raises(OSError, match="No space left"):
                listener(EpochFinished(trial(2)))
            raise ClusterError("can no longer be written")

    with pytest.raises(ClusterError, match="can no longer be written"):
        search()
