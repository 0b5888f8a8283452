"""`python -m grcf_ray.evaluate`: the same command as `grcf evaluate`."""

from grcf_ray.cli import main

if __name__ == "__main__":
    main("evaluate")
