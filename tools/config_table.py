"""Writes docs/configuration.md, a table of every configuration key, from configs/_base_/defaults.yaml."""
import argparse
import os
from pathlib import Path

import yaml

from mindseg.config import Key, load_schema
from mindseg.errors import UserError, run_main

PAGE = Path(__file__).resolve().parents[1] / "docs" / "configuration.md"
EXAMPLES = """examples:
  python tools/config_table.py                        writes docs/configuration.md
  python tools/config_table.py --output keys.md"""
HEAD = """# Configuration

Written by `python tools/config_table.py` from `configs/_base_/defaults.yaml`; change that file, not this one.

A configuration is a YAML file that sets what differs from the files listed under `_base_`:

```yaml
_base_: [../_base_/defaults.yaml, ../_base_/cityscapes.yaml]
model: {name: bisenetv2}
train: {global_batch: 32, steps: 160000}
```

- File names are relative to the file that lists them. Later files override earlier ones, the file itself overrides its
  `_base_`, and `--set` overrides all. Sections merge key by key; a value that is a list or a mapping is replaced as a
  whole.
- `--set section.key=value` works with every verb that takes `--config`, and can be repeated. For a key of type `str` or
  a choice of words the value is taken as it is, `/data/set #1` or `yes` too; where the type allows `null`, `null` and
  an empty value mean null. For other keys the value is read as YAML: `null`, `true`, `1e-3`, `[64, 96]`. Quote
  characters that the shell would change.
- A file is at most 1 MiB. Tags (`!!int`), anchors and aliases (`&a`, `*a`), and keys written twice are errors; dates
  are texts. `_base_` may lead 10 files deep.
- Unknown keys are rejected with a suggestion, and so are values of the wrong type, before anything runs:

<!-- test: run -->
```console
$ python train.py --config configs/enet/enet_camvid.yaml --set data.lr=0.01
error: --set data.lr=0.01: unknown key 'data.lr'; did you mean 'optim.lr'?
```

- The resolved configuration, with every key, is written to `config.yaml` of the run folder and stored in every
  checkpoint. It is a configuration itself: `--config RUN/config.yaml` repeats the run.

Types: `int`, `float` (also a whole number), `bool`, `str`, `dict`, `list`, `list[int]`, `list[int, 2]` (exactly two
numbers); `a/b/c` lists the choices, `list[float]/auto` is a list or that word; a trailing `?` allows `null`; `> 0` or
`>= 0, < 1` limits every number of the value. Sizes are in pixels, height before width.
[configs/README.md](../configs/README.md) lists the recipes and their sources; [recipes.md](recipes.md),
[data.md](data.md), [evaluation.md](evaluation.md) and [deployment.md](deployment.md) explain the keys.
"""
SECTIONS = {
    "model": "The network. `null` takes the network's default; options of another network are errors.",
    "data": "Data set, preprocessing and augmentation. See [data.md](data.md).",
    "loss": "The loss of the main output and of the auxiliary heads. See [recipes.md](recipes.md).",
    "optim": "Optimizer, learning-rate schedule, gradients. See [recipes.md](recipes.md).",
    "train": "Batch, length, evaluation and checkpoints while training, half precision, several devices.",
    "eval": "Inference and scoring. See [evaluation.md](evaluation.md).",
    "export": "The exported model. See [deployment.md](deployment.md).",
    "runtime": "The machine. The environment variables `DEVICE_TARGET` and `DEVICE_ID` override the keys.",
}
TAIL = """
## Rules between keys

Checked when a configuration is loaded; the error names the keys and the value to set.

- `model.num_classes` must be the data set's: 19 (`cityscapes`), 21 (`voc`), the length of `data.class_names` (`list`);
  one more with `data.void_class`.
- `data.name: list` needs `data.class_names`. `data.ignore_id` must not be a class id.
- `loss.class_weights` has one number per class. `loss.label_stride` must divide `data.resize` or `data.crop_size`, and
  the sizes of `data.crop_schedule`, which goes neither with `data.resize` nor with `train.dataset_sink_mode`.
- `eval.resize.center_crop` needs `eval.label_size: input`. `eval.stride` must not be larger than the window.
- `train.global_batch` must be divisible by the number of devices, and the samples of one device by
  `train.device_batch`.
- `export.height` and `export.width` are set together, and are at least 32.
"""


def table(keys: dict[str, Key]) -> str:
    """Formats the keys of one section as a Markdown table."""
    lines = ["| key | default | type | meaning |", "|---|---|---|---|"]
    for name, key in keys.items():
        cells = (f"`{name}`", f"`{default_text(key.default)}`", f"`{key.type}`", key.text)
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(lines)


def default_text(value: object) -> str:
    """Formats a value as in a configuration, on one line."""
    text = yaml.safe_dump(value, default_flow_style=True, width=1000, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")


def page() -> str:
    """Builds the whole page."""
    parts = [HEAD]
    for name, keys in load_schema().items():
        parts.append(f"\n## `{name}`\n\n{SECTIONS[name]}\n\n{table(keys)}\n")
    return "".join([*parts, TAIL])


def main() -> None:
    """Writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, epilog=EXAMPLES,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=PAGE, help="Markdown file (%(default)s)")
    path = parser.parse_args().output
    tmp = path.with_name(f".{path.name}.tmp")
    try:
        tmp.write_text(page(), encoding="utf-8")
        os.replace(tmp, path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); choose another --output") from None


if __name__ == "__main__":
    run_main(main)
