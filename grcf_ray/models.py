"""`python -m grcf_ray.models`: the same command as `grcf models`."""

from grcf_ray.cli import main

if __name__ == "__main__":
    main("models")
