"""`python -m grcf_ray.predict`: the same command as `grcf predict`."""

from grcf_ray.cli import main

if __name__ == "__main__":
    main("predict")
