"""Command `models`."""

from __future__ import annotations

import json

import pytest

from grcf_ray import console
from grcf_ray.cli.models import app
from grcf_ray.config import model_options
from grcf_ray.model.card import card_of
from grcf_ray.plugins import model_names


def answer(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> str:
    with pytest.raises(SystemExit) as ended:
        console.run(app, words)
    assert ended.value.code == code
    out, err = capsys.readouterr()
    return err if code else out


def test_the_list_has_every_model(capsys: pytest.CaptureFixture[str]) -> None:
    models = {model["name"]: model for model in json.loads(answer(capsys, "list", "--json"))}
    assert tuple(models) == model_names()
    # Table 12, without the text encoder.
    assert models["grcf"]["parameters"] == 186_585_724 - 183_831_552
    for name, model in models.items():
        assert (model["year"], set(model["tasks"])) == (card_of(name).year, set(card_of(name).networks))
        assert model["parameters"] > 0
    assert len(answer(capsys, "list").splitlines()) == len(models) + 2


def test_a_model_is_shown_with_its_options_and_space(capsys: pytest.CaptureFixture[str]) -> None:
    shown = json.loads(answer(capsys, "show", "lmf", "--json"))
    assert {option["path"]: option["default"] for option in shown["options"]} == model_options("lmf")
    assert all(option["meaning"].endswith(".") for option in shown["options"])
    assert shown["search"]["lmf.rank"] == {"low": 1, "high": 16, "log": True, "start": 4}
    text = answer(capsys, "show", "lmf")
    assert "lmf.rank: {low: 1, high: 16, log: true, start: 4}" in text
    assert "equations from" not in text
    assert "equations from: its abstract and its authors' code" in answer(capsys, "show", "tmson")


def test_an_unknown_model_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert "did you mean misa?" in answer(capsys, "show", "missa", code=2)
