from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from grcf_ray.config import (
    _CLASSIFICATION,
    _REGRESSION,
    DROPOUTS,
    check_margins,
    flatten,
    known_paths,
    parse_assignments,
    reads,
)
from grcf_ray.data import datasets
from grcf_ray.errors import ConfigError
from grcf_ray.search.space import Choice, Range, Space, load_space, space_for

SHIPPED = sorted((Path(__file__).parents[2] / "search_spaces").glob("*.yaml"))

# Table 13 of the paper, row by row: MOSI, MOSEI, SIMS v2.
TABLE_13: dict[str, tuple[float, float, float]] = {
    "stage1.epochs": (17, 30, 16),
    "stage1.head_lr": (1e-5, 1e-5, 3e-5),
    "stage1.encoder_lr": (8e-6, 1e-5, 4e-6),
    "stage1.weight_decay": (2e-2, 2e-4, 1e-4),
    "model.fusion_dropout": (0.4, 0.2, 0.3),
    "model.unified_dropout": (0.2, 0.5, 0.5),
    "stage1.group_weight": (0.9, 1, 1),
    "ranking.intra_margin": (0.1, 0.09, 0.03),
    "ranking.base_margin": (0.5, 0.2, 0.1),
    "stage1.reg_weight": (5e-3, 3e-2, 6e-2),
    "stage1.reg_margin": (1, 1, 0.3),
    "stage1.boundary_weight": (1e-3, 5e-4, 0.2),
    "stage2.epochs": (5, 9, 18),
    # The table has one dropout of each kind.
    "stage2.fusion_dropout": (0.4, 0.2, 0.3),
    "stage2.unified_dropout": (0.2, 0.5, 0.5),
    "stage2.weight_decay": (1e-2, 4e-3, 5e-3),
    "stage2.head_lr": (1e-4, 4e-5, 1e-4),
    "stage2.encoder_top_lr": (4e-5, 2e-5, 6e-5),
    "stage2.encoder_base_lr": (2e-5, 2e-6, 2e-6),
    "stage2.group_weight": (0.3, 0.8, 1),
    "stage2.mae_weight": (0.3, 2, 3),
    "stage2.boundary_weight": (2e-2, 7e-3, 1),
}
TABLE_13_GENERAL = {
    "pairs.pairs_per_group": 96,
    "pairs.groups_per_step": 8,
    "seed": 42,
    "ranking.groups": "overlap,5",
    "ranking.margin_step": 0.1,
}
OWN_RANGES = {"ict_mmmo": (1.0, 5.0)}
PAPER_SETS = ("mosi", "mosei", "sims_v2")

SMALL = """
dataset: own
fixed:
  stage1.epochs: 2
stage1:
  stage1.encoder_lr: {low: 1e-6, high: 1e-4, log: true, start: 1e-5}
  ranking.base_margin: {low: 0.2, high: 1, start: 0.5}
  model.modalities: {choices: [text, text+audio], start: text}
stage2:
  stage2.head_lr: {low: 1e-5, high: 1e-3, log: true, start: 1e-4}
"""


def load(folder: Path, text: str) -> Space:
    path = folder / "space.yaml"
    path.write_text(text, encoding="utf-8")
    return load_space(path)


def faults_of(folder: Path, text: str) -> list[str]:
    """The fault lines of the ConfigError that the file gives."""
    with pytest.raises(ConfigError) as caught:
        load(folder, text)
    assert caught.value.exit_code == 2
    head, *lines = str(caught.value).splitlines()
    assert str(folder / "space.yaml") in head
    return [line.strip() for line in lines]


def values_in(path: str) -> list[float]:
    return [float(optimum) for optimum in TABLE_13[path]]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_shipped_space_is_valid_for_its_data(path: Path) -> None:
    space = load_space(path)
    facts = datasets.find(space.dataset)
    low, high = facts.label_range if facts else OWN_RANGES[space.dataset]
    # Two classes can be made of a set for regression.
    task = "classification" if "binary" in path.stem else facts.task if facts else "regression"
    assert task == "classification" or check_margins(space.config(), (high - low) / 2) == []
    assert all(reads(task, name) for name in (*space.fixed, *space.stage1, *space.stage2))
    assert space.stage1
    assert space.stage2


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_every_corner_of_a_shipped_space_is_a_configuration(path: Path) -> None:
    space = load_space(path)
    for pick in (lambda r: r.low, lambda r: r.high):
        corner = {
            name: pick(dimension) if isinstance(dimension, Range) else dimension.choices[-1]
            for name, dimension in {**space.stage1, **space.stage2}.items()
        }
        assert space.config(corner).stage1.epochs == space.fixed["stage1.epochs"]
    for name in DROPOUTS:
        assert space.stage2.get(f"stage2.{name}") == space.stage1.get(f"model.{name}")


def test_every_data_set_has_a_space() -> None:
    assert set(datasets.names()) <= {load_space(path).dataset for path in SHIPPED}


def test_every_setting_is_read_by_a_task() -> None:
    """And those that only one of them reads exist."""
    for path in known_paths():
        assert reads("regression", path) or reads("classification", path)
    assert {path for path in known_paths() if not reads("regression", path)} == set(_CLASSIFICATION)
    assert {path for path in known_paths() if not reads("classification", path)} == set(_REGRESSION)


@pytest.mark.parametrize("dataset", PAPER_SETS)
def test_first_trial_is_table_13(dataset: str) -> None:
    space = space_for(dataset, None)
    config, stages = flatten(space.config()), {**space.start(1), **space.start(2)}
    expected = {path: row[PAPER_SETS.index(dataset)] for path, row in TABLE_13.items()}
    assert {path: config[path] for path in expected} == expected
    searched = {path: value for path, value in expected.items() if not path.endswith("epochs")}
    assert {path: stages[path] for path in searched} == searched
    assert {path: config[path] for path in TABLE_13_GENERAL} == TABLE_13_GENERAL


@pytest.mark.parametrize("dataset", ["mosi", "mosei"])
def test_optima_of_all_three_sets_lie_inside(dataset: str) -> None:
    space = space_for(dataset, None)
    searched = {**space.stage1, **space.stage2}
    assert searched.keys() == {path for path in TABLE_13 if not path.endswith("epochs")}
    for path, dimension in searched.items():
        assert isinstance(dimension, Range)
        assert all(dimension.low < optimum < dimension.high for optimum in values_in(path)), path


def test_space_for_refuses_an_unknown_data_set_and_takes_a_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown data set 'reviews'"):
        space_for("reviews", None)
    (tmp_path / "own.yaml").write_text(SMALL)
    assert space_for("reviews", tmp_path / "own.yaml").dataset == "own"


def test_start_is_the_first_trial_and_the_configuration(tmp_path: Path) -> None:
    space = load(tmp_path, SMALL)
    assert space.start(1) == {"stage1.encoder_lr": 1e-5, "ranking.base_margin": 0.5, "model.modalities": "text"}
    assert space.start(2) == {"stage2.head_lr": 1e-4}
    config = space.config()
    assert (config.stage1.encoder_lr, config.stage1.epochs, config.model.modalities) == (1e-5, 2, "text")
    assert space.config({"stage1.encoder_lr": 3e-5}).stage1.encoder_lr == 3e-5


def test_words_like_1e_5_are_numbers(tmp_path: Path) -> None:
    """YAML reads 1e-5, without a point, as a word; people write it all the same."""
    assert yaml.safe_load("1e-5") == "1e-5"
    assert load(tmp_path, SMALL).stage1["stage1.encoder_lr"] == Range(1e-6, 1e-4, True, 1e-5)
    fixed = load(tmp_path, "dataset: own\nfixed: {stage1.encoder_lr: 1e-5}\n")
    assert fixed.config().stage1.encoder_lr == 1e-5


def test_settings_fix_what_was_searched(tmp_path: Path) -> None:
    space = load(tmp_path, SMALL)
    fixed = space.with_settings(parse_assignments(["stage1.encoder_lr=3e-5", "stage2.epochs=4"]))
    assert "stage1.encoder_lr" not in fixed.stage1
    assert "stage1.encoder_lr" in space.stage1
    assert fixed.stage2 == space.stage2
    assert (fixed.config().stage1.encoder_lr, fixed.config().stage2.epochs) == (3e-5, 4)


def test_as_dict_round_trip(tmp_path: Path) -> None:
    space = load(tmp_path, SMALL).with_settings({"seed": 7})
    again = load(tmp_path, yaml.safe_dump(space.as_dict(), sort_keys=False))
    assert again == space
    assert list(again.stage1) == list(space.stage1)


def test_choices_are_numbers_where_ranges_have_them(tmp_path: Path) -> None:
    space = load(
        tmp_path,
        "dataset: own\nstage1:\n  stage1.head_lr: {choices: [1e-4, 1E-3, '1e-2'], start: 1e-3}\n"
        "  pairs.redraw: {choices: [yes, no], start: no}\n"
        "  pairs.pairs_per_group: {choices: [16, 32], start: 32}\n",
    )
    assert space.stage1["stage1.head_lr"] == Choice((1e-4, 1e-3, 1e-2), 1e-3)
    assert space.stage1["pairs.redraw"] == Choice((True, False), False)
    config = space.config({"pairs.pairs_per_group": 16})
    assert (config.stage1.head_lr, config.pairs.pairs_per_group) == (1e-3, 16)


def test_faults_name_their_line(tmp_path: Path) -> None:
    text = """dataset: own
fixed:
  stage1.epochs: yes
  stage2.epochs: 010
  seed: 1:30
stage1:
  stage1.head_lr: {choices: [1e-4, 0.0001], start: 1e-4}
  pairs.pairs_per_group: {choices: [true, 8], start: 8}
  stage1.encoder_lr: {low: 010, high: 20, start: 15}
stage2:
  stage2.head_lr: 3
extra: {}
"""
    expected = [("extra", 12), ("seed = '1:30'", 5), ("stage1.epochs = 'yes'", 3), ("stage2.epochs = '010'", 4)]
    expected += [("stage1.head_lr: choices: 0.0001", 7), ("pairs.pairs_per_group: True", 8)]
    expected += [("stage1.encoder_lr: low = '010'", 9), ("stage2.head_lr", 11)]
    faults = faults_of(tmp_path, text)
    assert len(faults) == len(expected)
    for fault, (word, line) in zip(faults, expected, strict=True):
        assert word in fault
        assert fault.endswith(f"(line {line})")


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("dataset: own\ndataset: mosi\n", (1, 2)),
        ("dataset: own\nfixed:\n  seed: 1\n  stage1.epochs: 2\n  seed: 3\n", (3, 5)),
        ("dataset: own\nstage1:\n  stage1.head_lr: {low: 1, high: 2,\n    low: 3, start: 1}\n", (3, 4)),
    ],
)
def test_a_repeated_key_is_refused_with_its_lines(tmp_path: Path, text: str, lines: tuple[int, int]) -> None:
    (fault,) = faults_of(tmp_path, text)
    assert all(f"line {line}" in fault for line in lines)


BOMB = "a: &a [x, x]\n" + "".join(f"{b}: &{b} [*{a}, *{a}]\n" for a, b in pairwise("abcdefghijklmnopqrstuvwxyz"))


@pytest.mark.parametrize(
    ("text", "word"),
    [
        (BOMB, "line 1"),
        ("dataset: own\nfixed: {seed: *none}", "line 2"),
        ("dataset: own\nfixed: {seed: !!int 010}", "line 2"),
        ("dataset: !!python/name:os.system x", "line 1"),
        ("[" * 30_000, "16"),
        ("fixed:\n" + "".join(" " * (i + 1) + "a:\n" for i in range(200)), "16"),
        ("dataset: own # " + "x" * 40_000, "32 KiB"),
        ("dataset: own\n  fixed: x", "line 2"),
        ("? [a]\n: b", "line 1"),
        ("a: 1\n---\na: 2", "line 2"),
        ("dataset: \x00", "not YAML"),
        ("[1, 2]", "should be a mapping"),
        ("", "should be a mapping"),
        ("a: [", "not YAML"),
        ("dataset: own\nstage1: [1]", "stage1: should be a mapping of settings"),
        ("dataset: own\nfixed: {1: 2}", "fixed: 1: no such setting"),
        ("dataset: own\nstage1: {1: {low: 0, high: 1, start: 0}}", "stage1: 1: no such setting"),
        ("dataset: own\nstage1: {stage1.head_lr: {low: 1, high: 2, start: 1, log: maybe}}", "log = 'maybe'"),
        ("dataset: own\nstage1: {stage1.head_lr: {low: 1, high: 2, start: .nan}}", "start = nan"),
    ],
)
def test_malformed_files_and_yaml_that_is_not_plain_are_refused(tmp_path: Path, text: str, word: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    assert word in str(caught.value)
    assert str(tmp_path / "space.yaml") in str(caught.value)


def test_every_fault_is_listed_at_once(tmp_path: Path) -> None:
    text = """
    fixed:
      stage1.epochs: many
      stage1.encoder_rl: 1e-5
      stage1.weight_decay: 0.01
    stage1:
      stage1.encodr_lr: {low: 1e-6, high: 1e-4, start: 1e-5}
      stage1.head_lr: {low: 1e-3, high: 1e-5, start: 1e-4}
      stage1.group_weight: {low: 0.1, high: 1, start: 5}
      stage1.reg_weight: {low: 0, high: 1, log: true, start: 0.5}
      stage1.weight_decay: {low: 0.01, high: 0.1, start: 0.01}
      stage1.reg_margin: {low: small, high: 1, start: 1}
      stage1.boundary_weight: 0.5
      model.backbone: {choices: [a, b], start: a}
      model.fusion_dropout: {low: 0, high: 1.5, start: 0.1}
      stage2.head_lr: {low: 1e-5, high: 1e-3, start: 1e-4}
      ranking.groups: {choices: ["overlap,5", "overlap,9"], start: "overlap,5"}
      ranking.intra_margin: {low: 0.1, high: 1, strat: 0.1}
      model.modalities: {choices: [text, text+audio], start: all}
      pairs.pairing: {choices: [all], start: all}
      pairs.pairs_per_group: {low: 8, high: 32, start: 12.5}
      pairs.groups_per_step: {low: 1, high: .inf, start: 1}
      stage1.epochs: {low: 1, high: 3, start: 1}
    stage2:
      train.clip_norm: {low: 0.1, high: 1, start: 1}
      model.fusion_dropout: {low: 0.0, high: 0.5, start: 0.1}
    stage3: {}
    """
    faults = faults_of(tmp_path, text)
    expected = [
        "stage3: no such section; did you mean stage",
        "dataset: missing",
        "fixed: stage1.encoder_rl: no such setting; did you mean stage1.encoder_lr?",
        "fixed: stage1.epochs = 'many': should be",
        "stage1: stage1.encodr_lr: no such setting; did you mean stage1.encoder_lr?",
        "stage1: stage1.head_lr: bounds are crossed: low = 0.001 is not below high = 1e-05",
        "stage1: stage1.group_weight: start = 5: lies outside [0.1, 1]",
        "stage1: stage1.reg_weight: low = 0: should be positive if log is true",
        "stage1: stage1.weight_decay: is also fixed",
        "stage1: stage1.reg_margin: low = 'small': should be a number",
        "stage1: stage1.boundary_weight: should be {low, high, log, start} or {choices, start}",
        "stage1: model.backbone: can only be fixed",
        "stage1: model.fusion_dropout: 1.5: should be",
        "stage1: stage2.head_lr: cannot be searched in stage1",
        "stage1: ranking.groups: 'overlap,9': should be",
        "stage1: ranking.intra_margin: strat: unknown",
        "stage1: ranking.intra_margin: start: missing",
        "stage1: model.modalities: start = 'all': should be one of the choices",
        "stage1: pairs.pairing: choices: should be a list of two or more",
        "stage1: pairs.pairs_per_group: 12.5: should be",
        "stage1: pairs.groups_per_step: high = inf: should be a finite number",
        "stage1: stage1.epochs: can only be fixed",
        "stage2: train.clip_norm: cannot be searched in stage2, which searches stage2.*",
        "stage2: model.fusion_dropout: cannot be searched in stage2, which searches stage2.*; in Stage 2",
    ]
    assert len(faults) == len(expected)
    for fault, start in zip(faults, expected, strict=True):
        assert fault.startswith(start)


def test_missing_file_names_those_that_ship(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no such search space.*demo.*mosi") as caught:
        load_space(tmp_path / "none.yaml")
    assert caught.value.exit_code == 2
    with pytest.raises(ConfigError, match="cannot be read"):
        load_space(tmp_path)


def test_margins_follow_the_label_range() -> None:
    """Margins by the ratio, the regularisation's by its square: starting points, ranges and what is fixed."""
    mosi = space_for("mosi", None)
    scaled = mosi.for_labels("own", 1.5)
    for path, factor in (("ranking.intra_margin", 0.5), ("ranking.base_margin", 0.5), ("stage1.reg_margin", 0.25)):
        before, after = mosi.stage1[path], scaled.stage1[path]
        assert isinstance(before, Range)
        ends = (before.low * factor, before.high * factor, before.start * factor)
        assert after == Range(*ends[:2], before.log, ends[2])
    assert (mosi.fixed["ranking.margin_step"], scaled.fixed["ranking.margin_step"]) == (0.1, 0.05)
    same = {path: value for path, value in scaled.fixed.items() if path != "ranking.margin_step"}
    assert same == {path: value for path, value in mosi.fixed.items() if path != "ranking.margin_step"}
    assert scaled.stage2 == mosi.stage2
    assert scaled.for_labels("own", 1.5) == scaled


@pytest.mark.parametrize("half_range", [0.1, 0.5, 1.0, 2.0, 50.0])
@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_a_shipped_space_fits_any_label_range(path: Path, half_range: float) -> None:
    space = load_space(path)
    facts = datasets.find(space.dataset)
    if facts is not None and facts.task == "regression":
        assert check_margins(space.for_labels("own", half_range).config(), half_range) == []


def test_margins_that_need_no_scaling_stay(tmp_path: Path) -> None:
    space = space_for("mosi", None)
    assert space.for_labels("mosi", 1.0) is space
    assert space.for_labels("own", 3.0) is space
    assert space.for_labels("own", 0.5, "classification") is space
    scaled = load(tmp_path, SMALL)
    assert scaled.for_labels("other", 1.0) is scaled


def test_a_default_and_a_choice_of_margins_are_scaled(tmp_path: Path) -> None:
    text = "dataset: mosi\nstage1:\n  ranking.base_margin: {choices: [0.3, 0.6], start: 0.6}\n"
    scaled = load(tmp_path, text).for_labels("own", 1.0)
    assert scaled.stage1["ranking.base_margin"] == Choice((0.1, 0.2), 0.2)
    assert scaled.config().ranking.intra_margin == 0.0333333
    assert scaled.config({"ranking.base_margin": 0.1}).ranking.base_margin == 0.1


@pytest.mark.parametrize(
    ("dimension", "place", "value"),
    [
        (Range(1e-5, 1e-1, True, 1e-3), 0.25, 1e-4),
        (Range(-1.0, 3.0, False, 0.0), 0.25, 0.0),
        (Range(0.0, 0.5, False, 0.1), 1.0, 0.5),
        (Choice(("a", "b", "c"), "a"), 0.5, "b"),
        (Choice(("a", "b", "c"), "a"), 1.0, "c"),
        (Choice(("a",), "a"), 0.0, "a"),
    ],
)
def test_a_value_has_a_place_in_its_dimension(dimension: Range | Choice, place: float, value: float | str) -> None:
    assert dimension.place_of(value) == pytest.approx(place)  # type: ignore[arg-type]
    assert dimension.value_at(place) == value


def test_choices_have_equal_shares() -> None:
    choice = Choice((1, 2, 3), 1)
    assert [choice.value_at(place) for place in (0.0, 0.33, 0.34, 0.66, 0.67, 0.99)] == [1, 1, 2, 2, 3, 3]
