from __future__ import annotations

import dataclasses
import math
from typing import Any

import pandas as pd
import pytest
import yaml

from grcf_ray.config import (
    ABLATIONS,
    RunConfig,
    build_config,
    check_margins,
    config_faults,
    flatten,
    parse_assignments,
    to_yaml,
)
from grcf_ray.errors import ConfigError

OTHERS: dict[str, Any] = {
    "seed": 7,
    "features.max_tokens": 32,
    "features.lowercase": "no",
    "model.frozen_layers": "all",
    "model.modalities": "text+audio",
    "pairs.pairs_per_epoch": 960,
    "ranking.groups": "strict,5",
    "stage1.encoder_lr": 3.14e-7,
    "stage2.top_layers": 0,
    "train.precision": "float64",
    "search.gpus_per_worker": 0.5,
}


def test_flat_paths_and_yaml_give_the_same_configuration_back() -> None:
    config = build_config(OTHERS)
    assert {path: flatten(config)[path] for path in OTHERS} == OTHERS
    assert build_config(flatten(config)) == config
    assert build_config({}) == RunConfig()
    sections = yaml.safe_load(to_yaml(config))
    assert build_config(pd.json_normalize(sections, sep=".").iloc[0].to_dict()) == config


def test_configurations_are_frozen() -> None:
    for part in (RunConfig(), *(getattr(RunConfig(), field.name) for field in dataclasses.fields(RunConfig)[1:])):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(part, dataclasses.fields(part)[0].name, 1)


def test_unknown_setting_names_the_nearest() -> None:
    for path, near in (("stage1.encoder_rl", "stage1.encoder_lr"), ("model.drop", "model.fusion_dropout")):
        assert config_faults({path: 1}) == [f"{path}: no such setting; did you mean {near}?"]
    assert config_faults({"xyzzy": 1}) == ["xyzzy: no such setting"]
    assert config_faults({"stage1": {"epochs": 3}})[0].startswith("stage1: no such setting")
    assert config_faults({"seed.run": 3})[0].startswith("seed.run: no such setting")


def test_all_faults_are_told_together() -> None:
    values = {
        "stage1.epoch": 3,
        "stage1.head_lr": 0,
        "model.fusion_dropout": 1.0,
        "ranking.groups": "overlap,4",
        "stage1.epochs": 4,
        "model.frozen_layers": "some",
    }
    with pytest.raises(ConfigError) as caught:
        build_config(values, source="space.yaml")
    lines = str(caught.value).splitlines()
    assert lines[0] == "space.yaml: 5 fault(s)"
    assert len(lines) == 6
    told = "\n".join(lines)
    for fault in ("stage1.epoch:", "stage1.head_lr = 0:", "model.fusion_dropout = 1.0:", "'overlap,4'", "= 'some':"):
        assert fault in told
    assert "stage1.epochs = " not in told


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("stage1.head_lr", math.nan),
        ("stage1.head_lr", math.inf),
        ("stage1.head_lr", None),
        ("stage1.head_lr", {"low": 1, "high": 2}),
        ("model.fusion_dropout", math.nan),
        ("model.fusion_dropout", -0.1),
        ("model.frozen_layers", -1),
        ("stage1.epochs", -1),
        ("stage1.epochs", 2.5),
        ("pairs.groups_per_step", 0),
        ("features.max_tokens", 3),
        ("search.reduction_factor", 1),
        ("train.warmup_fraction", 1),
        ("ranking.advantage_weighting", "perhaps"),
        ("seed", [1]),
    ],
)
def test_inadmissible_values(path: str, value: Any) -> None:
    (fault,) = config_faults({path: value})
    assert fault.startswith(f"{path} = {value!r}: should be ")


@pytest.mark.parametrize("word", ["yes", "true", "010", "0x10", "0o17", "1:30", "1_000", "1e", "''", "+-1"])
def test_numbers_are_in_decimal_digits(word: str) -> None:
    """YAML 1.1 takes some of these for numbers, and pydantic others: 010 for 8, 1:30 for 90, true for 1."""
    numbers = [
        path
        for path, default in flatten(RunConfig()).items()
        if (default is None and path != "search.accelerator_type") or type(default) in (int, float)
    ]
    with pytest.raises(ConfigError) as caught:
        parse_assignments([f"{path}={word}" for path in numbers])
    assert caught.value.exit_code == 2
    assert str(caught.value).startswith(f"--set: {len(numbers)} fault(s)")


@pytest.mark.parametrize(
    ("text", "path", "value"),
    [
        ("features.lowercase=yes", "features.lowercase", "yes"),
        ("features.lowercase=no", "features.lowercase", "no"),
        ("features.lowercase=auto", "features.lowercase", "auto"),
        ("ranking.advantage_weighting=no", "ranking.advantage_weighting", False),
        ("pairs.pairs_per_epoch=null", "pairs.pairs_per_epoch", None),
        ("model.frozen_layers=all", "model.frozen_layers", "all"),
        ("model.frozen_layers=3", "model.frozen_layers", 3),
        ("ranking.groups=overlap,3", "ranking.groups", "overlap,3"),
        (" stage1.epochs = 4", "stage1.epochs", 4),
        # YAML takes the first for a word.
        *((f"stage1.encoder_lr={word}", "stage1.encoder_lr", 1e-5) for word in ("1e-5", "1.0e-5", "0.00001", "1E-5")),
        ("model.backbone=org/name=1", "model.backbone", "org/name=1"),
    ],
)
def test_assignments(text: str, path: str, value: Any) -> None:
    """The last value of a setting counts."""
    assert flatten(build_config(parse_assignments([f"{path}=0", text])))[path] == value


def test_faults_of_assignments_are_told_together() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_assignments(["stage1.epochs", "stage1.head_lr=[1", "stage1.head_rl=1", "seed=x", "stage2.epochs=3"])
    lines = str(caught.value).splitlines()
    assert lines[0] == "--set: 4 fault(s)"
    assert [line.split(":")[0].strip() for line in lines[1:]] == [
        "'stage1.epochs'",
        "'stage1.head_lr=[1'",
        "stage1.head_rl",
        "seed = 'x'",
    ]


def test_ablations_are_table_3s_switches() -> None:
    configs = {name: build_config(settings) for name, settings in ABLATIONS.items()}
    assert configs["full"] == RunConfig()
    assert not configs["no-advantage"].ranking.advantage_weighting
    assert not configs["static-margin"].ranking.dynamic_margin
    assert (configs["no-stage1"].stage1.epochs, configs["no-stage1"].stage2) == (0, RunConfig().stage2)
    assert (configs["no-stage2"].stage2.epochs, configs["no-stage2"].stage1) == (0, RunConfig().stage1)
    direct = configs["direct-mae"]
    weights = (direct.stage2.mae_weight, direct.stage2.group_weight, direct.stage2.boundary_weight)
    assert (direct.stage1.epochs, weights) == (0, (1.0, 0.0, 0.0))


def margin_faults(half_range: float = 3.0, **ranking: Any) -> list[str]:
    return check_margins(build_config({f"ranking.{name}": value for name, value in ranking.items()}), half_range)


def test_base_margin_is_at_least_the_intra_margin() -> None:
    assert margin_faults() == margin_faults(intra_margin=0.5, base_margin=0.5) == []
    (fault,) = margin_faults(intra_margin=0.6, base_margin=0.5)
    assert "ranking.base_margin = 0.5" in fault and "ranking.intra_margin = 0.6" in fault
    assert margin_faults(intra_margin=0.6, base_margin=0.5, dynamic_margin=False) == []
    assert len(margin_faults(1.0, intra_margin=4.0, base_margin=3.0)) == 2


@pytest.mark.parametrize("half_range", [1.0, 3.0, 4.0])
def test_margins_fit_between_two_scores(half_range: float) -> None:
    """base + 4 step <= 7 S/3; without the dynamic margin there are no steps."""
    reach = 7 * half_range / 3
    assert margin_faults(half_range, base_margin=reach - 0.41, margin_step=0.1) == []
    (fault,) = margin_faults(half_range, base_margin=reach - 0.39, margin_step=0.1)
    assert f"exceeds {reach:g}" in fault
    assert margin_faults(half_range, base_margin=reach - 0.39, margin_step=0.1, dynamic_margin=False) == []
    assert margin_faults(half_range, base_margin=reach + 0.01, dynamic_margin=False) != []


@pytest.mark.parametrize(("groups", "steps"), [("overlap,3", 2), ("overlap,5", 4), ("strict,5", 4), ("overlap,7", 6)])
def test_widest_margin_is_the_farthest_groups(groups: str, steps: int) -> None:
    assert margin_faults(groups=groups, base_margin=6.99 - steps * 0.5, margin_step=0.5) == []
    (fault,) = margin_faults(groups=groups, base_margin=7.01 - steps * 0.5, margin_step=0.5)
    assert fault.startswith(f"ranking.base_margin + {steps} ranking.margin_step = 7.01 exceeds 7,")


def test_native_edges_cover_the_papers_range() -> None:
    assert margin_faults(3.0, group_edges="native") == margin_faults(1.0, group_edges="native") == []
    (fault,) = margin_faults(4.0, group_edges="native")
    assert fault.startswith("ranking.group_edges = native ")


def test_a_model_has_a_name() -> None:
    assert build_config({}).model.name == "grcf"
    (fault,) = config_faults({"model.name": "gpt"})
    assert fault.startswith("model.name = 'gpt': should be one of grcf")
    assert config_faults({"grcf.rank": 3}) == ["grcf.rank: no such option of the model grcf; it has none"]
