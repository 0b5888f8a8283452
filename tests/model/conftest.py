from __future__ import annotations

from pathlib import Path

import pytest
from torch import nn

from grcf_ray.model.pretrained import load_backbone


@pytest.fixture(scope="session")
def backbone(tiny_backbone: Path) -> nn.Module:
    """The tiny backbone, to be copied and never trained."""
    return load_backbone(str(tiny_backbone))
