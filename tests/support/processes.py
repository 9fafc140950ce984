"""Functions in processes of their own."""
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any


def in_a_process(function: Callable, *arguments: Any) -> Any:
    """Result of a function that changes MindSpore for the rest of its process.

    Args:
        function: Function of a module.
        *arguments: Its arguments, which can be pickled.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()
