"""The page of a published model: a model card for a hub, or a section of ``weights/README.md``.

The header of a card has the keys that Hugging Face (``model-index``, ``metrics``, ``datasets``) and Modelers
(``frameworks``, ``hardwares``) read.
"""
from dataclasses import dataclass

import yaml

from mindseg.config import Config
from mindseg.yaml_text import PlainDumper

NETWORKS = {"fast_scnn": "Fast-SCNN", "fcn8s": "FCN-8s", "enet": "ENet", "bisenetv2": "BiSeNet V2"}
HARDWARE = {"CPU": "CPU", "Ascend": "NPU", "GPU": "GPU"}     # as Modelers names devices
_WEAK = 0.1     # IoU below which a class is hardly found


@dataclass(frozen=True)
class Facts:
    """Facts of a trained model.

    Attributes:
        name: Name of the configuration.
        cfg: Resolved configuration.
        epochs: Epochs of the training.
        scores: Content of ``eval.json``.
        dataset: Name of the data set, such as ``CamVid``.
        data: What the model was trained on, in words.
        domain: What the photographs show.
        terms: Terms of the data set.
    """
    name: str
    cfg: Config
    epochs: int
    scores: dict
    dataset: str
    data: str
    domain: str
    terms: str

    @property
    def network(self) -> str:
        """Name of the network as papers write it."""
        return NETWORKS[self.cfg.model.name]

    @property
    def size(self) -> str:
        """Height and width in training."""
        return "x".join(map(str, self.cfg.data.resize or self.cfg.data.crop_size))

    @property
    def miou(self) -> str:
        """Mean IoU in percent."""
        return _percent(self.scores["miou"])


def section(facts: Facts) -> str:
    """Markdown of a model in ``weights/README.md``: where it comes from, and what it scores."""
    return f"""## {facts.name}

{facts.network} for {facts.domain}.

- **Trained on** {facts.dataset}: {facts.data}, {facts.epochs} epochs.
- **Terms of the data**: {facts.terms}
- **Input**: {_input(facts)}
- **Score**: {_score(facts)}

{_class_table(facts)}
"""


def card(facts: Facts, license_id: str, files: dict[str, str]) -> str:
    """The model card, ``README.md`` of a folder for a hub.

    Args:
        facts: Facts of the model.
        license_id: SPDX name of the licence of the weights, in lower case as hubs write it.
        files: SHA-256 of each other file, by name.
    """
    header = yaml.dump(_header(facts, license_id), Dumper=PlainDumper, sort_keys=False, allow_unicode=True)
    rows = "\n".join(f"| `{name}` | {_FILES.get(name, 'the model as ONNX')} | `{digest}` |"
                     for name, digest in files.items())
    return f"""---
{header}---

# {facts.network}, {facts.dataset}

{facts.network} gives each pixel of a photograph one of {len(facts.scores['classes'])} classes. It was trained with
mindseg and MindSpore for {facts.domain}.

## Use

With the package mindseg and this folder:

```python
import mindseg
segment = mindseg.load("FOLDER")
segment("photo.jpg").save("overlay.png")
```

With MindSpore (`mindseg[train]`) this runs the weights, on photographs of any size. Without it, onnxruntime
(`mindseg[deploy]`) runs the ONNX file, which has one input size (`deploy.yaml`). Nothing in this folder is code.

{_input(facts)}

## Scores

{_score(facts)}

{_class_table(facts)}

## Training

- Data: {facts.dataset}: {facts.data}.
- Terms of the data: {facts.terms}
- {facts.epochs} epochs; `config.yaml` has every setting.

## Intended use and limits

Intended for {facts.domain}. Photographs of other places, cameras, weather or times of day were not measured: score the
model on labelled photographs of your own first.{_weak_classes(facts)} Do not rely on it where a mistake can harm
somebody.

## Files

| file | content | SHA-256 |
|---|---|---|
{rows}
"""


_FILES = {"model.safetensors": "the weights, float32, with configuration", "config.yaml": "the configuration",
          "deploy.yaml": "what programs need to know of the ONNX file"}


def _header(facts: Facts, license_id: str) -> dict:
    scores, tag = facts.scores, facts.dataset.lower().replace(" ", "-")
    metrics = [{"type": "mean_iou", "name": "mean IoU", "value": round(scores["miou"], 4)},
               {"type": "accuracy", "name": "pixel accuracy", "value": round(scores["pixel_accuracy"], 4)}]
    result = {"task": {"type": "image-segmentation", "name": "semantic segmentation"},
              "dataset": {"type": tag, "name": facts.dataset, "split": scores["split"]}, "metrics": metrics}
    return {"pipeline_tag": "image-segmentation", "library_name": "mindseg", "frameworks": ["MindSpore"],
            "hardwares": [HARDWARE[scores["device"]]], "license": license_id, "datasets": [tag],
            "metrics": ["mean_iou", "accuracy"],
            "tags": ["semantic-segmentation", "mindspore", facts.cfg.model.name.replace("_", "-")],
            "model-index": [{"name": facts.name, "results": [result]}]}


def _input(facts: Facts) -> str:
    resize = facts.scores["resize"] or {}
    rule = resize.get("rule", "none")
    shown = "at their own size" if rule == "none" else f"resized by the rule `{rule}` to {resize.get('size')}"
    return f"RGB photographs; {facts.size} in training. They were scored {shown}."


def _score(facts: Facts) -> str:
    scores = facts.scores
    return (f"{facts.miou} % mIoU and {_percent(scores['pixel_accuracy'])} % pixel accuracy on the {scores['images']} "
            f"images of {facts.dataset} {scores['split']}, mode `{scores['mode']}`, computed on {scores['device']}.")


def _class_table(facts: Facts) -> str:
    rows = [f"| {name} | {_percent(value)} |"
            for name, value in zip(facts.scores["classes"], facts.scores["iou"], strict=True)]
    return "\n".join(["| class | IoU, % |", "|---|---|", *rows])


def _weak_classes(facts: Facts) -> str:
    pairs = zip(facts.scores["classes"], facts.scores["iou"], strict=True)
    weak = [name for name, value in pairs if value is not None and value < _WEAK]
    return f" It hardly finds these classes: {', '.join(weak)}." if weak else ""


def _percent(value: float | None) -> str:
    """A share 0..1 in percent; None is a class that is not in the data."""
    return "-" if value is None else f"{100 * value:.2f}"
