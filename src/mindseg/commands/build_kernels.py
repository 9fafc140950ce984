"""Compiles the C++ operators that make training and evaluation on a CPU faster and smaller; once an installation."""
from mindseg.commands.arguments import create_parser
from mindseg.cpu_kernels.library import build_library

EXAMPLES = """examples:
  mindseg build-kernels

MINDSEG_CPU_KERNELS=0 in the environment of a program makes it use MindSpore's operators instead."""


def main() -> None:
    """Compiles the library, if it is not there, and prints its place."""
    create_parser(__doc__, EXAMPLES).parse_args()
    print(build_library())
