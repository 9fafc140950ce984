"""Helpers of the tests: toy data sets, small networks, ways to start programs."""
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
