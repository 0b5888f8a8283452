"""The search command on faulty data, options, spaces and clusters: one message, the exit code, no trace."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from grcf_ray.errors import NoWinnerError
from grcf_ray.search.space import shipped_spaces
from tests.search.conftest import Run, copy_recorded

if TYPE_CHECKING:
    from tests.conftest import Recorded


HEADER = "id,split,text,label,audio"
ROWS = [
    f'u{k},{split},good film,{k % 5 - 2},"[[0.5, {k}]]"'
    for k, split in enumerate(["train"] * 30 + ["valid", "test"] * 10)
]


def table(*changes: tuple[int, str], header: str = HEADER, rows: list[str] = ROWS) -> str:
    """A CSV file of the rows, some of them changed."""
    lines = list(rows)
    for index, line in changes:
        lines[index] = line
    return "\n".join([header, *lines]) + "\n"


FAULTS: dict[str, tuple[str | None, tuple[str, ...], int, tuple[str, ...]]] = {
    # name: (the data file, more arguments, exit code, what the message says)
    "missing data file": (None, ("--data", "nowhere.csv"), 3, ("nowhere.csv does not exist",)),
    "missing column": (table(header="id,split,words,label,audio"), (), 3, ("own.csv", "text")),
    "duplicate ids": (table((1, ROWS[0])), (), 3, ("own.csv", "u0", "id")),
    "label out of range": (table((4, 'u4,train,good film,3.5,"[[0.5, 4]]"')), (), 3, ("u4", "3.5", "[-3, 3]")),
    "label not a number": (table((4, 'u4,train,good film,very,"[[0.5, 4]]"')), (), 3, ("u4", "very")),
    "NaN features": (table((4, 'u4,train,good film,1,"[[NaN, 4]]"')), (), 3, ("u4", "audio", "--non-finite zero")),
    "unequal widths": (table((4, 'u4,train,good film,1,"[[0.5]]"')), (), 3, ("u4", "audio")),
    "empty test split": (table(rows=[row for row in ROWS if "test" not in row]), (), 3, ("test",)),
    "unknown split": (table((4, 'u4,dev2,good film,1,"[[0.5, 4]]"')), (), 3, ("u4", "dev2")),
    "no such backbone, offline": (
        table(),
        ("--backbone", "nobody/nothing"),
        2,
        ("nobody/nothing", "not on this machine", "--backbone DIR"),
    ),
    "no such backbone folder": (table(), ("--backbone", "./nothing"), 2, ("./nothing: no such folder",)),
    "unknown setting": (
        table(),
        ("--set", "stage1.encoder_rl=1e-5"),
        2,
        ("stage1.encoder_rl: no such setting", "did you mean stage1.encoder_lr?"),
    ),
    "setting of a wrong type": (table(), ("--set", "stage1.epochs=many"), 2, ("stage1.epochs = 'many'",)),
    "faults of three rows": (
        table((1, ROWS[0]), (4, 'u4,train,good film,3.5,"[[0.5, 4]]"'), (9, 'u9,train,good film,1,"[[NaN, 4]]"')),
        (),
        3,
        ("u0", "u4", "u9"),
    ),
    "not a setting": (table(), ("--set", "stage1.epochs"), 2, ("PATH=VALUE",)),
    "no trials": (table(), ("--stage1-trials", "0"), 2, ("--stage1-trials 0: should be",)),
    "margins": (
        table(),
        ("--set", "ranking.base_margin=0.01"),
        2,
        ("ranking.base_margin = 0.01 is below ranking.intra_margin",),
    ),
    "nothing to train": (
        table(),
        ("--set", "stage1.epochs=0", "--set", "stage2.epochs=0"),
        2,
        ("are both 0",),
    ),
    "CUDA without a GPU for each trial": (
        table(),
        ("--set", "train.device=cuda", "--gpus-per-worker", "0"),
        2,
        ("--gpus-per-worker 1",),
    ),
    "two GPUs for a process": (table(), ("--gpus-per-worker", "2"), 2, ("drives one GPU", "--workers 2")),
    "a modality that the data lack": (table(), ("--set", "model.modalities=text+vision"), 2, ("vision",)),
    "no such storage": (
        table(),
        ("--storage", "gopher://bucket/runs"),
        2,
        ("gopher://bucket/runs: no such storage", "s3://bucket/runs"),
    ),
    "no such time": (table(), ("--time-budget", "2 days"), 2, ("--time-budget 2 days: should be a time such as 2h",)),
    "equal labels": (
        table(*((k, f'u{k},train,good film,1,"[[0.5, {k}]]"') for k in range(30))),
        ("--dry-run",),
        3,
        ("all labels of the train split are 1",),
    ),
    "two validation rows": (
        table(rows=[row for row in ROWS if "valid" not in row or row < "u34"]),
        ("--dry-run",),
        3,
        ("the valid split has 2 utterances",),
    ),
    "fewer than no seeds": (table(), ("--seeds", "-1"), 2, ("--seeds", "-1")),
    "label range": (table(), ("--label-range", "3", "-3"), 2, ("label range 3 -3",)),
    "two faults of --set": (
        table(),
        ("--set", "stage1.epochz=1", "--set", "stage2.head_lr=-1"),
        2,
        ("2 fault(s)", "stage1.epochz", "stage2.head_lr"),
    ),
}


@pytest.mark.parametrize("fault", list(FAULTS))
def test_every_fault_has_one_message_its_exit_code_and_no_trace(
    fault: str, run: Run, tiny_space: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content, words, code, says = FAULTS[fault]
    monkeypatch.chdir(tmp_path)
    if content is not None:
        (tmp_path / "own.csv").write_text(content)
    argv = ["--dataset", "own", "--data", "own.csv", "--label-range", "-3", "3", "--space", tiny_space]
    argv += ["--storage", tmp_path / "runs", *words]
    ended, out, err = run(*argv)
    assert ended == code
    assert err.startswith("error: ")
    assert err.count("error:") == 1
    assert "Traceback" not in err
    assert "internal" not in err
    for part in says:
        assert part in err
    assert out == ""
    assert not (tmp_path / "runs").exists()
    assert {path.name for path in tmp_path.iterdir()} <= {"own.csv", "cache"}


@pytest.mark.parametrize(
    ("choices", "words", "message"),
    [
        ("[all, text+vision], start: all", [], "model.modalities names vision, which the data lack"),
        ("[all, text+vision], start: all", ["--direct"], "model.modalities names vision, which the data lack"),
        ("[text, audio], start: audio", [], "choices with text and one without, audio"),
        ("[all, audio], start: audio", [], "choices with text and one without, audio"),
        ("[all, text], start: all", ["--set", "model.modalities=audio"], "ridge_baseline"),
    ],
)
def test_modalities_that_a_space_must_not_name(
    choices: str, words: list[str], message: str, run: Run, tiny_space: Path, tmp_path: Path
) -> None:
    (tmp_path / "own.csv").write_text(table())
    space = tiny_space.read_text().replace("[all, text, text+audio], start: all", choices)
    (tmp_path / "space.yaml").write_text(space)
    argv = ["--dataset", "own", "--data", tmp_path / "own.csv", "--label-range", "-3", "3", "--dry-run"]
    code, _, err = run(*argv, "--space", tmp_path / "space.yaml", *words)
    assert code == 2
    assert message in err


def test_a_table_without_a_fault_passes_all_of_these_checks(
    run: Run, ray_session: None, tiny_space: Path, tmp_path: Path
) -> None:
    """So each fault above is what was refused."""
    (tmp_path / "own.csv").write_text(table())
    argv = ["--dataset", "own", "--data", tmp_path / "own.csv", "--label-range", "-3", "3", "--space", tiny_space]
    code, _, err = run(*argv, "--storage", tmp_path / "runs", "--dry-run")
    assert code == 0, err
    assert "without effect" not in err


def test_a_learning_rate_that_no_layer_has_is_named(
    run: Run, ray_session: None, tiny_space: Path, tmp_path: Path
) -> None:
    (tmp_path / "own.csv").write_text(table())
    argv = ["--dataset", "own", "--data", tmp_path / "own.csv", "--label-range", "-3", "3", "--space", tiny_space]
    code, _, err = run(*argv, "--storage", tmp_path / "runs", "--dry-run", "--set", "model.frozen_layers=all")
    assert code == 0, err
    assert "searched without effect, since no trained layer has them: stage1.encoder_lr, stage2.encoder_top_lr" in err


@pytest.mark.parametrize(
    ("content", "words", "code", "says"),
    [
        (lambda text: text, (), 0, "reviews, 30/10/10 utterances"),
        (lambda text: text.replace("text", "a").replace("label", "b"), (), 3, "--text-column NAME --label-column NAME"),
        (
            lambda text: text.replace("text", "a").replace("label", "b"),
            ("--text-column", "a", "--label-column", "b"),
            0,
            "columns: text from 'a', label from 'b'",
        ),
        (lambda text: text.replace("label", "stars,score"), (), 3, "--label-column stars"),
        (lambda text: text.replace("id,split", "id,when"), ("--split-column", "when"), 0, "30/10/10"),
        (lambda text: text.replace("id,split", "id,when"), (), 3, "enough to draw 5 for valid"),
    ],
)
def test_a_file_alone_is_searched(
    content: Callable[[str], str],
    words: tuple[str, ...],
    code: int,
    says: str,
    run: Run,
    ray_session: None,
    tiny_space: Path,
    tmp_path: Path,
) -> None:
    """The name, the columns, the label range and the splits come from it, or from the option that an error names."""
    header, rest = table().split("\n", 1)
    (tmp_path / "reviews.csv").write_text(f"{content(header)}\n{rest}")
    argv = ["--data", tmp_path / "reviews.csv", "--space", tiny_space, "--storage", tmp_path / "runs", "--dry-run"]
    ended, _, err = run(*argv, *words)
    assert (ended, says in err) == (code, True), err
    if code == 0:
        assert "labels from -2 to 2, by those of train and valid; --label-range A B sets others" in err


def test_without_data_the_message_says_what_is_needed_and_where_it_is(run: Run, tmp_path: Path) -> None:
    code, _, err = run("--dataset", "mosi", "--storage", tmp_path / "runs")
    assert code == 3
    for part in ("no data for mosi", "needed:", "from:", "python -m grcf_ray.data import"):
        assert part in err
    assert not (tmp_path / "runs").exists()


def test_an_unknown_data_set_names_the_nearest(run: Run, tmp_path: Path) -> None:
    code, _, err = run("--dataset", "mossi", "--storage", tmp_path / "runs")
    assert code == 2
    assert err.startswith("error: ")
    for part in ("mossi", "Did you mean mosi?", "data import FILE"):
        assert part in err


def test_margins_follow_the_labels_of_the_data(run: Run, tmp_path: Path) -> None:
    """A shipped space on data labelled 1 to 5: two thirds of MOSI's; what is set stays."""
    rows = [f"{split}{i},{split},text,{1 + i % 5}" for split in ("train", "valid", "test") for i in range(25)]
    (tmp_path / "own.csv").write_text("id,split,text,label\n" + "\n".join(rows) + "\n")
    argv = ["--dataset", "own", "--data", tmp_path / "own.csv", "--label-range", "1", "5"]
    space = shipped_spaces()["mosi_cpu"]
    code, out, err = run(*argv, "--space", space, "--print-config", "--set", "ranking.margin_step=0.1")
    assert (code, "mosi" in err) == (0, True)
    ranking = yaml.safe_load(out)["ranking"]
    assert (ranking["intra_margin"], ranking["base_margin"]) == pytest.approx((0.2 / 3, 1 / 3), abs=1e-6)
    assert ranking["margin_step"] == 0.1
    assert yaml.safe_load(out)["stage1"]["reg_margin"] == pytest.approx(0.003 * 4 / 9, abs=1e-6)


def test_more_gpus_than_there_are(run: Run, ray_session: None, tiny_argv: list[Any], tmp_path: Path) -> None:
    code, out, err = run(*tiny_argv, "--gpus-per-worker", "1", "--accelerator-type", "none")
    assert (code, out) == (5, "")
    assert err.startswith(
        "error: a trial asks for 1 CPU and 1 GPU and a GPU of kind none on one node, but no node has "
    )
    assert err.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_a_place_that_cannot_be_written(run: Run, ray_session: None, tiny_argv: list[Any], tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file")
    code, _, err = run(*tiny_argv)
    assert code == 2
    assert f"{tmp_path / 'runs'} cannot be written" in err.splitlines()[-1].replace("/tiny-tiny-bert-seed42", "")
    assert (tmp_path / "runs").read_text() == "a file"


def test_a_fault_found_while_preparing_leaves_nothing(
    run: Run, ray_session: None, tiny_argv: list[Any], tmp_path: Path
) -> None:
    code, out, err = run(*tiny_argv, "--set", "model.frozen_layers=9")
    assert (code, out) == (2, "")
    assert err.splitlines()[-1].startswith("error: model.frozen_layers = 9: the backbone has 2 layers")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("error", "code", "state", "says"),
    [
        (KeyboardInterrupt(), 130, "interrupted", "To resume: python -m grcf_ray.search --dataset tiny --data "),
        (OSError(errno.ENOSPC, "Disk full"), 5, "failed", "can no longer be written (Disk full); every finished epoch"),
        (OSError("AWS Error"), 5, "failed", "can no longer be written (AWS Error); every finished epoch is kept."),
        (FileNotFoundError(errno.ENOENT, "odd"), 1, "failed", "internal error: FileNotFoundError: [Errno 2] odd"),
        (NoWinnerError("stage 1: none of 3 trials has a usable result"), 4, "failed", "error: stage 1: none of 3"),
        (ValueError("odd"), 1, "failed", "internal error: ValueError: odd"),
    ],
)
def test_a_search_that_does_not_end_well_says_how(
    error: BaseException,
    code: int,
    state: str,
    says: str,
    run: Run,
    recorded: Recorded,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """While trials run, or after them: the record has the state, and the same command goes on."""

    def fail(*_: Any, **__: Any) -> None:
        raise error

    argv = copy_recorded(recorded, tmp_path)
    path = tmp_path / "recorded" / "run.json"
    path.write_text(path.read_text().replace('"finished"', '"interrupted"'))
    measured = not isinstance(error, (KeyboardInterrupt, NoWinnerError))
    where = f"grcf_ray.search.session.{'Search.run' if measured else 'measure_winner'}"
    if not measured:
        (tmp_path / "recorded" / "best" / "metrics.json").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(where, fail)
        ended, out, err = run(*argv)
    assert (ended, out) == (code, "")
    assert says in err
    assert "Traceback" not in err
    assert json.loads(path.read_text())["state"] == state
    ended, out, _ = run(*argv)
    assert ended == 0
    assert json.loads(out)["test"] == json.loads(recorded.out)["test"]
    assert json.loads(path.read_text())["state"] == "finished"
    # Figures that are there are not measured again; else the first look stays on record beside the second.
    reads = json.loads((tmp_path / "recorded" / "best" / "provenance.json").read_text())["test_reads"]
    assert [read["models"] for read in reads] == [json.loads(out)["ensemble"]["members"]] * (1 if measured else 2)
    assert [start["command"].split()[:3] for start in json.loads(path.read_text())["starts"]] == [
        ["python", "-m", "grcf_ray.search"]
    ] * 3
