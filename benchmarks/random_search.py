"""The command `grcf search` with random proposals instead of TPE's. The options are the same.

python benchmarks/random_search.py --dataset demo --seed 1
"""

from __future__ import annotations

from unittest.mock import patch

import policies

from grcf_ray.cli import main
from grcf_ray.search import session
from grcf_ray.search.stages import Search


class RandomSearch(Search):
    """A search with random proposals, the trials of a simulated one."""

    searcher = policies.RandomSearch.searcher


if __name__ == "__main__":
    with patch.object(session, "Search", RandomSearch):
        main("search")
