"""The paper's experiments on finished runs: the command `grcf reproduce`."""
