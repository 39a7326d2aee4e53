"""``python -m medi3d``, which is also how launchers start it: ``torchrun --nproc-per-node 2 -m medi3d train …``."""

from medi3d.cli.main import run

if __name__ == "__main__":
    run()
