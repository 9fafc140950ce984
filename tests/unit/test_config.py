"""Configuration: schema page, base files, overrides, and errors that help."""
import logging

import pytest
import yaml

from mindseg.config import _OTHER_NAMES, SCHEMA_FILE, Config, dump_config, load_config, load_schema
from mindseg.errors import ConfigError


def write(path, text):
    path.write_text(text)
    return path


@pytest.fixture
def base(tmp_path):
    return write(tmp_path / "base.yaml", "optim: {lr: 0.5, momentum: 0.8}\ntrain: {epochs: 7}\n")


def test_every_key_of_the_schema_page_has_type_and_meaning_and_a_fitting_default():
    schema = load_schema()
    assert list(schema) == ["model", "data", "loss", "optim", "train", "eval", "export", "runtime"]
    for section, keys in schema.items():
        for key, spec in keys.items():
            assert len(spec.text) > 5, f"{section}.{key}"
    load_config(SCHEMA_FILE)  # would refuse a default of the wrong type


def test_a_child_wins_over_its_bases_and_sections_merge_key_by_key(tmp_path, base):
    write(tmp_path / "second.yaml", "optim: {lr: 0.25}\n")
    child = write(tmp_path / "child.yaml", "_base_: [base.yaml, second.yaml]\noptim: {momentum: 0.7}\n")
    cfg = load_config(child)
    assert (cfg.optim.lr, cfg.optim.momentum, cfg.train.epochs) == (0.25, 0.7, 7)
    assert cfg.optim.power == 0.9


def test_overrides_come_last_and_keep_the_type(tmp_path, base):
    cfg = load_config(base, ["optim.lr=1e-3", "data.root=007", "data.crop_size=[64, 96]", "loss.weights=[1, 0.4]",
                             "train.run_eval=true", "optim.momentum=1", "data.root=path with spaces=x"])
    assert cfg.optim.lr == 1e-3
    assert cfg.data.root == "path with spaces=x"
    assert cfg.data.crop_size == [64, 96]
    assert cfg.train.run_eval is True
    assert isinstance(cfg.optim.momentum, float)


def test_a_folder_does_not_hide_the_configuration_of_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fast_scnn_camvid").mkdir()
    assert load_config("fast_scnn_camvid").model.num_classes == 11
    (tmp_path / "mine").mkdir()
    with pytest.raises(ConfigError, match="mine: no configuration has this name or path"):
        load_config("mine")


def test_a_dump_loads_back_to_the_same_values(tmp_path, base):
    cfg = load_config(base, ["data.mean=[1, 2, 3]", "loss.class_weights=null", "data.root=null"])
    dump_config(cfg, tmp_path / "dump.yaml")
    assert load_config(tmp_path / "dump.yaml") == cfg
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize(("text", "words"), [
    ("optim: {lrr: 0.1}", ["bad.yaml", "optim.lrr", "did you mean 'optim.lr'"]),
    ("optmi: {lr: 0.1}", ["bad.yaml", "optmi", "did you mean 'optim'"]),
    ("data: {lr: 0.1}", ["bad.yaml", "data.lr", "did you mean 'optim.lr'"]),
    ("train: {batch_size: 2}", ["bad.yaml", "train.batch_size", "did you mean 'train.global_batch'"]),
    ("optim: {learning_rate: 2}", ["bad.yaml", "optim.learning_rate", "did you mean 'optim.lr'"]),
    ("train: {Max_Iters: 2}", ["bad.yaml", "train.Max_Iters", "did you mean 'train.steps'"]),
    ("train: {epochs: many}", ["bad.yaml", "train.epochs", "'many'", "int"]),
    ("train: {epochs: 1.5}", ["train.epochs", "1.5", "int"]),
    ("train: {epochs: true}", ["train.epochs", "True", "int"]),
    ("train: {run_eval: 1}", ["train.run_eval", "bool"]),
    ("data: {crop_size: [64, big]}", ["data.crop_size", "list[int, 2]"]),
    ("model: {name: unet}", ["model.name", "unet", "must be one of fast_scnn, fcn8s, enet, bisenetv2"]),
    ("train: 3", ["bad.yaml", "train"]),
    ("- 1", ["bad.yaml", "list"]),
    ("optim: {lr: 1}\noptim: {lr: 2}", ["bad.yaml", "line 2", "optim", "twice"]),
    ("optim: {lr: [}", ["bad.yaml", "line 1", "YAML"]),
    ("_base_: nowhere.yaml", ["nowhere.yaml", "no such"]),
    ("_base_: bad.yaml", ["circle", "bad.yaml"]),
    ("train: {epochs: 0}", ["train.epochs", "greater than 0"]),
    ("data: {name: coco}", ["data.name = 'coco' must be one of cityscapes, voc, ade20k, bdd100k, mapillary, list"]),
    ("data: {name: [cityscapes]}", ["data.name", "must be one of cityscapes, voc, ade20k, bdd100k, mapillary, list"]),
    ("data: {mean: [1, 2]}", ["data.mean", "must have 3 numbers"]),
    ("eval: {window: [64]}", ["eval.window", "must have 2 numbers"]),
    ("eval: {stride: [64, 0]}", ["eval.stride", "greater than 0"]),
    ("eval: {scales: [1.0, -0.5]}", ["eval.scales", "greater than 0"]),
    ("eval: {scales: []}", ["eval.scales", "at least one"]),
    ("optim: {lr: .nan}", ["optim.lr", "greater than 0"]),
    ("export: {opset: 18}", ["export.opset", "at most 17"]),
    ("data: {std: [1, 0, 1]}", ["data.std"]),
    ("data: {scale_range: [2.0, 0.5]}", ["data.scale_range"]),
    ("data: {crop_size: [16, 64]}", ["data.crop_size", "32"]),
    ("data: {ignore_id: 3}", ["data.ignore_id"]),
    ("loss: {class_weights: [1.0, 2.0]}", ["loss.class_weights", "2", "19"]),
    ("loss: {class_weights: automatic}", ["loss.class_weights = 'automatic'", "one of list[float], auto or null"]),
    ("loss: {class_weight_power: 0}", ["loss.class_weight_power", "greater than 0"]),
    ("data: {crop_schedule: [{until: 0.5}]}", ["data.crop_schedule", "{'until': 0.5}", "crop_size: [height, width]"]),
    ("data: {crop_schedule: [{until: 1, crop_size: [64, 64]}]}", ["data.crop_schedule", "between 0 and 1"]),
    ("data: {crop_schedule: [{until: 0, crop_size: [64, 64]}]}", ["data.crop_schedule", "between 0 and 1"]),
    ("data: {crop_schedule: [{until: 0.5, crop_size: [64, 16]}]}", ["data.crop_schedule", "[64, 16]"]),
    ("data: {crop_schedule: [{until: 0.5, crop_size: [64, 64]}, {until: 0.4, crop_size: [96, 96]}]}",
     ["data.crop_schedule", "'until': 0.4", "rise"]),
    ("data: {crop_schedule: [{until: 0.5, crop_size: [64, 64]}], resize: [96, 96]}",
     ["data.crop_schedule does not go with data.resize"]),
    ("data: {crop_schedule: [{until: 0.5, crop_size: [64, 64]}]}\ntrain: {dataset_sink_mode: true}",
     ["data.crop_schedule does not go with train.dataset_sink_mode"]),
    ("data: {crop_schedule: [{until: 0.5, crop_size: [64, 68]}]}\nloss: {label_stride: 8}",
     ["loss.label_stride = 8", "[64, 68]"]),
    ("export: {opset: 9}", ["export.opset", "11"]),
    ("runtime: {seed: -1}", ["runtime.seed = -1", "at least 0"]),
    ("runtime: {seed: 4294967296}", ["runtime.seed = 4294967296", "at most 2147483647"]),
    ("data: {resize: [512, 1024], crop_ratio: [0.8, 1.0]}", ["data.crop_ratio = [0.8, 1.0]", "1 <= low <= high"]),
    ("data: {resize: [512, 1024], crop_ratio: [1.3, 1.2]}", ["data.crop_ratio = [1.3, 1.2]", "1 <= low <= high"]),
    ("data: {resize: [0, 1024]}", ["data.resize = [0, 1024]", "32"]),
    ("data: {root: {{D}: 1}}", ["bad.yaml", "line 1", "unhashable key"]),
    ("data: {color_jitter: {contrst: [0.4, 1.6]}}", ["color_jitter.contrst", "did you mean 'contrast'"]),
    ("data: {color_jitter: {xyz: 1}}", ["color_jitter.xyz", "brightness, contrast, saturation, hue, prob"]),
    ("data: {color_jitter: {1: 1}}", ["color_jitter.1"]),
    ("data: {color_jitter: {contrast: much}}", ["color_jitter.contrast = 'much'"]),
    ("data: {color_jitter: {contrast: [1.6, 0.4]}}", ["color_jitter.contrast = [1.6, 0.4]", "low <= high"]),
    ("data: {color_jitter: {saturation: [0.4]}}", ["color_jitter.saturation = [0.4]"]),
    ("data: {color_jitter: {saturation: 1.5}}", ["color_jitter.saturation = 1.5", "at most 1, or [low, high]"]),
    ("data: {color_jitter: {brightness: -3}}", ["color_jitter.brightness = -3"]),
    ("data: {color_jitter: {hue: [1, 2]}}", ["color_jitter.hue = [1, 2]", "of type int"]),
    ("data: {color_jitter: {prob: 2}}", ["color_jitter.prob = 2", "at most 1"]),
])
def test_errors_are_one_line_with_file_key_and_remedy(tmp_path, text, words):
    with pytest.raises(ConfigError) as error:
        load_config(write(tmp_path / "bad.yaml", text + "\n"))
    message = str(error.value)
    assert "\n" not in message
    for word in words:
        assert word in message


@pytest.mark.parametrize(("override", "words"), [
    ("optim.lrr=1", ["--set optim.lrr=1", "optim.lr"]), ("lr=1", ["section.key=value"]),
    ("optim.lr", ["section.key=value"]), ("optim.lr=fast", ["optim.lr", "'fast'", "float"]),
    ("model.name=unet", ["model.name"]),
])
def test_a_wrong_override_is_named(base, override, words):
    with pytest.raises(ConfigError) as error:
        load_config(base, [override])
    for word in words:
        assert word in str(error.value)


def test_a_list_or_a_word(base):
    assert load_config(base, ["loss.class_weights=auto"]).loss.class_weights == "auto"
    weights = load_config(base, ["loss.class_weights=[1, 2.5]", "model.num_classes=2"]).loss.class_weights
    assert weights == [1, 2.5]


def test_a_text_that_is_no_hashable_yaml_is_a_text(base):
    """``{{D}}`` is a placeholder that somebody forgot to fill in, and to YAML a mapping that is a key."""
    assert load_config(base, ["data.root={{D}}"]).data.root == "{{D}}"
    with pytest.raises(ConfigError, match=r"loss\.weights"):
        load_config(base, ["loss.weights={{D}}"])


def test_the_old_name_of_a_variant_is_taken_with_one_warning(tmp_path, caplog, monkeypatch):
    logger = logging.getLogger("mindseg.config")
    monkeypatch.setattr(logger, "handlers", [caplog.handler])
    monkeypatch.setattr(logger, "propagate", False)     # other tests may have set up logging
    path = write(tmp_path / "old.yaml", "model: {variant: seed}\n")
    assert load_config(path).model.variant == "modelzoo"
    assert [record.getMessage() for record in caplog.records] == [
        f"{path}: model.variant = seed is an old name; write modelzoo"]
    assert load_config(path, ["model.variant=paper"]).model.variant == "paper"
    assert load_config(SCHEMA_FILE, ["model.variant=modelzoo"]).model.variant == "modelzoo"
    assert len(caplog.records) == 1
    assert load_config(SCHEMA_FILE, ["model.variant=seed"]).model.variant == "modelzoo"
    assert len(caplog.records) == 2


@pytest.mark.parametrize("jitter", ["{}", "{brightness: 32, contrast: [0.4, 1.6], saturation: 0, hue: 18, prob: 0.5}",
                                    "{brightness: [0.6, 1.4], contrast: 0.4, prob: 1}"])
def test_good_colour_distortions_pass(base, jitter):
    assert load_config(base, [f"data.color_jitter={jitter}"]).data.color_jitter == yaml.safe_load(jitter)


def test_yaml_cannot_build_objects(tmp_path):
    with pytest.raises(ConfigError):
        load_config(write(tmp_path / "evil.yaml", "optim: !!python/object/apply:os.system ['true']\n"))


def test_config_reads_and_writes_by_attribute():
    cfg = Config.from_dict({"a": {"b": 1}})
    cfg.a.b = 2
    assert cfg["a"]["b"] == 2
    assert yaml.safe_load(dump_config(cfg)) == {"a": {"b": 2}}
    with pytest.raises(AttributeError, match="'c'"):
        _ = cfg.a.c


def test_names_of_other_toolkits_lead_to_keys_that_exist():
    schema = load_schema()
    for name, key in _OTHER_NAMES.items():
        section, _, word = key.partition(".")
        assert word in schema[section], name
