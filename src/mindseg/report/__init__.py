"""Report pages: the result of an evaluation, and the comparison of several runs."""
