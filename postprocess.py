"""Scores the runner's results without an installation; ``mindseg postprocess`` is the same."""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "src"))

from mindseg.commands.postprocess import main
from mindseg.errors import run_main

if __name__ == "__main__":
    run_main(main)
