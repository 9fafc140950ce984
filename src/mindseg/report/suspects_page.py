"""Page with the images whose labels disagree most with a network."""
from collections.abc import Sequence
from pathlib import Path

from mindseg.data.datasets import DatasetInfo
from mindseg.drawing import CORRECT, UNSCORED, WRONG
from mindseg.evaluation.evaluator import Example
from mindseg.evaluation.suspects import Suspect, Suspects
from mindseg.report.pages import PICTURE_BYTES, draw_example, write_page


def write_suspects(path: Path, title: str, checkpoint: str, info: DatasetInfo, suspects: Suspects,
                   examples: Sequence[tuple[Suspect, Example]]) -> Path:
    """Writes the page.

    Args:
        path: File to write.
        title: Heading.
        checkpoint: Name of the network's file.
        info: Classes and colours.
        suspects: All images of the data set.
        examples: The most suspicious images, with input, prediction and label.

    Returns:
        ``path``.

    Raises:
        UserError: The file cannot be written.
    """
    budget = PICTURE_BYTES // (4 * max(1, len(examples)))
    drawn = [(suspect, image, draw_example(image, info.palette, budget)) for suspect, image in examples]
    return write_page(path, "suspects.html", title=title, checkpoint=checkpoint, count=len(suspects.names),
                      classes=info.classes, palette=info.palette, error_colours=(CORRECT, WRONG, UNSCORED),
                      examples=drawn, class_rows=suspects.classes())
