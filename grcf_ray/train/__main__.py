"""`python -m grcf_ray.train`: the same command as `grcf train`."""

from grcf_ray.cli import main

main("train")
