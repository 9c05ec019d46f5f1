"""``python -m jaxscape``: the command line."""

from jaxscape.cli import run

if __name__ == "__main__":
    run()
