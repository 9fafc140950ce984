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

A configuration is a YAML file that says what differs from the files named under `_base_`:

```yaml
_base_: [../_base_/defaults.yaml, ../_base_/cityscapes.yaml]
model: {name: bisenetv2}
train: {global_batch: 32, steps: 160000}
```

- Files are relative to the one that names them. Later files win over earlier ones, the file itself over its `_base_`,
  `--set` over all. Sections merge key by key; a list or a mapping that is a value is replaced as a whole.
- `--set section.key=value` can be repeated, for every verb that takes `--config`. The value is read as YAML: `null`,
  `true`, `1e-3`, `[64, 96]`. Quote what the shell would touch.
- Only the keys below exist. An unknown key, a key in the wrong section or a value of the wrong type ends the program
  before it starts:

<!-- test: run -->
```console
$ python train.py --config configs/enet/enet_camvid.yaml --set data.lr=0.01
error: --set data.lr=0.01: unknown key 'data.lr'; did you mean 'optim.lr'?
```

- The resolved configuration, with every key, is written to `config.yaml` of the run folder and stored in every
  checkpoint. It is a configuration itself: `--config RUN/config.yaml` repeats the run.

Types: `int`, `float` (a whole number will do), `bool`, `str`, `dict`, `list[int]` and so on; `a/b/c` lists the only
values; a trailing `?` allows `null`. `[h, w]` is height before width, in pixels. Recipes and their sources are listed
in [configs/README.md](../configs/README.md), what the keys do in [recipes.md](recipes.md), [data.md](data.md),
[evaluation.md](evaluation.md) and [deployment.md](deployment.md).
"""
SECTIONS = {
    "model": "The network. `null` takes the network's own default; an option of another network is an error.",
    "data": "What is read, and how training samples are changed. See [data.md](data.md).",
    "loss": "The loss of the main output and of the auxiliary heads. See [recipes.md](recipes.md).",
    "optim": "Optimizer, learning rate over the steps, precision of the gradients. See [recipes.md](recipes.md).",
    "train": "Batch, length, evaluation and checkpoints while training, half precision, several devices.",
    "eval": "How a model is scored. See [evaluation.md](evaluation.md).",
    "export": "The exported model. See [deployment.md](deployment.md).",
    "runtime": "The machine. `DEVICE_TARGET` and `DEVICE_ID` in the environment win over the keys.",
}
TAIL = """
## Rules between keys

Checked when a configuration is loaded; the error names the keys and what to set.

- `model.num_classes` must be the data set's: 19 (`cityscapes`), 21 (`voc`), the length of `data.class_names` (`list`);
  one more with `data.void_class`.
- `data.name: list` needs `data.class_names`. `data.ignore_id` must not be a class.
- `loss.class_weights` has one number a class. `loss.label_stride` must divide `data.resize` or `data.crop_size`.
- `eval.resize.center_crop` needs `eval.label_size: input`. `eval.stride` must not be larger than the window.
- `train.global_batch` must be divisible by the number of devices, and a device's share by `train.device_batch`.
- `export.height` and `export.width` come together, and are at least 32, as are both sides of `data.crop_size`.
"""


def table(keys: dict[str, Key]) -> str:
    """The keys of one section as a Markdown table."""
    lines = ["| key | default | type | meaning |", "|---|---|---|---|"]
    for name, key in keys.items():
        cells = (f"`{name}`", f"`{default_text(key.default)}`", f"`{key.type}`", key.text)
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(lines)


def default_text(value: object) -> str:
    """A value as it would be written into a configuration, on one line."""
    text = yaml.safe_dump(value, default_flow_style=True, width=1000, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")


def page() -> str:
    """The whole page."""
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
