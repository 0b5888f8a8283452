"""A run as Python sees it: its best model, its trials, its report."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from grcf_ray.search.record import RunRecord
from grcf_ray.storage import storage_path

if TYPE_CHECKING:
    import pandas as pd

    from grcf_ray.report.summary import RunSummary
    from grcf_ray.train.export import SavedModel
    from grcf_ray.train.scoring import Ensemble


class Run:
    """A run directory. It shows the record as it is when it is asked, while a search goes on too."""

    def __init__(self, record: RunRecord) -> None:
        self.record = record

    @property
    def path(self) -> str:
        """The run directory, a path or a URI."""
        return str(self.record)

    @property
    def state(self) -> str:
        """The search's state: running, finished, interrupted or failed."""
        state: str = self.record.read_run()["state"]
        return state

    @functools.cached_property
    def best(self) -> SavedModel:
        """The best model, on the CPU, verified. DataError if the search has none yet."""
        from grcf_ray.search.saved_model import load_model

        return load_model(self.record.place.uri)

    @functools.cached_property
    def ensemble(self) -> Ensemble:
        """The search's best models, whose mean score is more accurate than the best one's. DataError without any."""
        from grcf_ray.search.ensemble import load_ensemble

        return load_ensemble(self.record.place)

    @property
    def trials(self) -> pd.DataFrame:
        """The trials of both stages, a row each, with the columns that `grcf runs export` writes.

        Among them: state, objective, epochs, seconds, parameters by path, and the metrics of the best epoch.
        """
        import pandas as pd

        from grcf_ray.report.trials import trial_rows
        from grcf_ray.report.view import RunView

        view = RunView.read(self.record)
        return pd.DataFrame([*trial_rows(view, 1), *trial_rows(view, 2)])

    @property
    def summary(self) -> RunSummary:
        """The result: winner, metrics on valid and test, cost; `summary.as_json()` is what `search --json` prints."""
        from grcf_ray.report.summary import RunSummary
        from grcf_ray.report.view import RunView

        return RunSummary.of(RunView.read(self.record))

    def report(self) -> str:
        """Write the report page and return its path or URI."""
        from grcf_ray.report.page import write_report

        return str(write_report(self.record))

    def predict(self, rows: Any, *, ensemble: bool = False) -> NDArray[np.float64]:
        """Return [N] scores by the best model, or by the ensemble, in label units, or logits of the positive class.

        rows: a DataFrame, an Arrow table, dictionaries, or texts, as for `SavedModel.score`.
        """
        return (self.ensemble if ensemble else self.best).score(rows)

    def __repr__(self) -> str:
        return f"Run({self.path!r})"


def open_run(where: str | Path) -> Run:
    """Open a run directory, a path or a URI. DataError if it holds no run.

    >>> run = open_run("runs/demo-all-MiniLM-L6-v2-seed42")
    """
    record = RunRecord(storage_path(where, check=True))
    record.read_run()
    return Run(record)
