"""Hostile configurations: files, `_base_` and `--set`, in process; one of each kind through a program."""
import os
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mindseg.commands.arguments import read_config
from mindseg.config import SCHEMA_FILE, dump_config, load_config, load_schema, parse_config
from mindseg.errors import ConfigError
from tests.support.hostile import check_program_refuses, check_refused, mutations, run_program

BOMB = "a: &a [x]\n" + "".join(f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n"
                              for before, name in zip("abcdefgh", "bcdefghi", strict=True))
FILES = {
    "alias bomb": (BOMB, "line 1"),
    "anchor that holds itself": ("data: &a {root: *a}", "line 1"),
    "anchor": ("data: {root: &a x}", "line 1"),
    "merge key": ("x: &x {a: 1}\ndata: {<<: *x}", "line 1"),
    "hexadecimal without digits": ("train:\n  epochs: 0x_", "line 2"),
    "binary without digits": ("train:\n  epochs: 0b_", "line 2"),
    "tag int": ("train: {epochs: !!int abc}", "line 1"),
    "tag float": ("train: {epochs: !!float abc}", "line 1"),
    "tag bool": ("train: {run_eval: !!bool maybe}", "line 1"),
    "tag timestamp": ("data: {root: !!timestamp 2024-13-45}", "line 1"),
    "tag python": ("data: {root: !!python/object/apply:os.system ['true']}", "line 1"),
    "tag python name": ("data: {root: !!python/name:os.system }", "line 1"),
    "tag binary": ("data: {root: !!binary '===='}", "line 1"),
    "tag set": ("data: {root: !!set {a}}", "line 1"),
    "own tag": ("data: {root: !x y}", "line 1"),
    "date that is none": ("train: {epochs: 2024-13-45}", "train.epochs"),
    "date": ("train: {epochs: 2024-01-01}", "train.epochs"),
    "5,000 digits": ("train:\n  epochs: " + "9" * 5000, "line 2"),
    "5,000 hexadecimal digits": ("train: {epochs: 0x" + "f" * 5000 + "}", "line 1"),
    "3,000 parts": ("train: {epochs: 1" + ":1" * 3000 + "}", "line 1"),
    "5,000 digits in a list": ("data: {crop_size: [64, " + "9" * 5000 + "]}", "line 1"),
    "3,000 brackets": ("data: {root: " + "[" * 3000 + "]" * 3000 + "}", "levels"),
    "3,000 braces": ("data: {root: " + "{a: " * 3000 + "}" * 3000 + "}", "levels"),
    "3,000 dashes": ("data:\n  - " + "- " * 3000 + "x", "levels"),
    "3,000 open brackets": ("[" * 3000, "levels"),
    "100,000 values": ("data: {class_names: [" + "a, " * 100000 + "]}", "values"),
    "over 1 MiB": ("#" * (1 << 20) + "\n", "over 1 MiB"),
    "NUL": ("data:\n  root: a\0b", "line 2"),
    "escape": ("data:\n  root: \x1b[31m", "line 2"),
    "no character": ('data: {root: "\\UFFFFFFFF"}', "line 1"),
    "no escape": ('data: {root: "\\q"}', "line 1"),
    "not UTF-8": (b"data: {root: \xff\xfe}", "UTF-8"),
    "UTF-16": ("data: {root: x}".encode("utf-16"), "UTF-8"),
    "tab": ("data:\n\troot: x", "line 2"),
    "complex key": ("data:\n  ? [a, b]\n  : c", "line 2"),
    "mapping as key": ("data: {{a: b}: c}", "line 1"),
    "key twice": ("data:\n  root: a\n  root: b", "line 3"),
    "section twice": ("data: {root: a}\ndata: {root: b}", "line 2"),
    "empty key": ("data: {: a}", "line 1"),
    "null key": ("~: {a: 1}", "line 1"),
    "two documents": ("data: {root: a}\n---\ndata: {root: b}", "line 2"),
    "open quote": ("data: {root: 'a", "line 1"),
    "open bracket": ("data: {crop_size: [1, 2}", "line 1"),
    "directive": ("%YAML 9" + "9" * 5000 + ".1\n---\ndata: {}", "line 1"),
    "only a text": ("hello", "mapping"),
    "only a number": ("1", "mapping"),
    "unknown section with a line break": ('"a\\nb": {x: 1}', "unknown section"),
    "unknown key with a line break": ('data: {"a\\nb": 1}', "unknown key"),
    "long unknown key": ("data: {" + "k" * 900 + ": 1}", "unknown key"),
    "key that is a number": ("data: {1: 1}", "unknown key"),
    "section without keys": ("data: x", "mapping of keys"),
    "long value": ("train: {epochs: " + "x" * 5000 + "}", "train.epochs"),
    "infinite number": ("optim: {lr_factors: {a: .inf}}", "optim.lr_factors"),
    "infinite mean": ("data: {mean: [.inf, 1, 1]}", "data.mean"),
    "NaN in a list": ("loss: {weights: [.nan]}", "loss.weights"),
    "expression that is none": ("optim: {lr_factors: {'(': 1}}", "optim.lr_factors"),
    "number as expression": ("optim: {lr_factors: {1: 1}}", "optim.lr_factors"),
    "factor that is none": ("optim: {lr_factors: {a: b}}", "optim.lr_factors"),
    "resize with mixed keys": ("eval: {resize: {1: 2, a: 3}}", "eval.resize"),
    "resize with a list as rule": ("eval: {resize: {rule: [exact]}}", "eval.resize.rule"),
    "resize to a huge size": ("eval: {resize: {rule: exact, size: [999999, 999999]}}", "eval.resize.size"),
    "distortion with a line break": ('data: {color_jitter: {"a\\nb": 1}}', "data.color_jitter"),
    "huge distortion": ("data: {color_jitter: {brightness: [0, 1.0e+300]}}", "data.color_jitter"),
    "address that is a number": ("runtime: {modelarts: {data_url: 1}}", "runtime.modelarts"),
    "base that is a number": ("_base_: 1", "_base_"),
    "base with NUL": ('_base_: "a\\0b.yaml"', "_base_"),
    "base with a line break": ('_base_: "a\\nb.yaml"', "_base_"),
    "base with a long name": ("_base_: " + "b" * 5000, "_base_"),
    "base that is missing": ("_base_: [nowhere.yaml]", "nowhere.yaml"),
    "base that is a folder": ("_base_: .", "a folder"),
    "base that is a device": ("_base_: /dev/zero", "/dev/zero"),
    "base that is itself": ("_base_: bad.yaml", "circle"),
}


@pytest.mark.parametrize("case", FILES)
def test_a_file_is_refused_in_one_line(tmp_path, case):
    content, words = FILES[case]
    path = tmp_path / "bad.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    message = check_refused(lambda: load_config(path), words)
    if not case.startswith("base that is a") and "missing" not in case:
        assert message.startswith(f"{path}: ")


def test_a_pipe_a_folder_a_socket_and_a_device_are_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "folder.yaml").mkdir()
    with socket.socket(socket.AF_UNIX) as plug:
        plug.bind(str(tmp_path / "plug.yaml"))
        for path in (tmp_path / "pipe.yaml", tmp_path / "folder.yaml", tmp_path / "plug.yaml", "/dev/zero"):
            check_refused(lambda path=path: load_config(path), path, "a folder, a pipe or a device")
    check_refused(lambda: load_config("x" * 5000), "no configuration has this name")
    check_refused(lambda: load_config("/" + "x" * 300), "cannot read")


def test_bases_that_list_each_other_many_times_are_each_read_once(tmp_path, monkeypatch):
    """Each of eight files lists the next one nine times: 43 million reads if each listing were followed."""
    for i in range(8):
        bases = ", ".join([f"{i + 1}.yaml"] * 9)
        (tmp_path / f"{i}.yaml").write_text(f"_base_: [{bases}]\ntrain: {{epochs: {i + 1}}}\n")
    (tmp_path / "8.yaml").write_text("optim: {lr: 0.125}\n")
    reads = []
    read_text = load_config.__globals__["read_text"]
    monkeypatch.setitem(load_config.__globals__, "read_text", lambda path, *more: reads.append(path.name)
                        or read_text(path, *more))
    cfg = load_config(tmp_path / "0.yaml")
    assert (cfg.train.epochs, cfg.optim.lr) == (1, 0.125)
    assert sorted(reads) == [f"{i}.yaml" for i in range(9)]


def test_a_long_chain_and_a_circle_of_bases(tmp_path):
    for i in range(3000):
        (tmp_path / f"{i}.yaml").write_text(f"_base_: {i + 1}.yaml\n")
    check_refused(lambda: load_config(tmp_path / "0.yaml"), "10.yaml", "over 10 files deep")
    (tmp_path / "5.yaml").write_text("_base_: 2.yaml\n")
    check_refused(lambda: load_config(tmp_path / "0.yaml"), "circle", "2.yaml -> 3.yaml -> 4.yaml -> 5.yaml -> 2.yaml")
    (tmp_path / "deep").symlink_to(".")
    (tmp_path / "link.yaml").write_text("_base_: deep/link.yaml\n")
    check_refused(lambda: load_config(tmp_path / "link.yaml"), "over 10 files deep")


LITERAL = ["/data/set #1", "a\nb", "yes", "1e3", "[x]", "{{D}}", "'x'", "007", " x ", "a: b", "!x", "*x", "&x", "-",
           "~", "NULL", "2024-13-45", "\udcff", "- x"]


@pytest.mark.parametrize("text", LITERAL)
def test_an_override_of_a_text_is_taken_as_it_is(text):
    cfg = load_config(SCHEMA_FILE, [f"data.root={text}", f"runtime.output_dir={text}"])
    assert (cfg.data.root, cfg.runtime.output_dir) == (text, text)
    assert parse_config(dump_config(cfg), "dump") == cfg


def test_null_means_null_only_where_a_key_allows_it():
    for text in ("null", ""):
        cfg = load_config(SCHEMA_FILE, [f"data.root={text}", f"runtime.output_dir={text}"])
        assert (cfg.data.root, cfg.runtime.output_dir) == (None, text)
    assert load_config(SCHEMA_FILE, ["train.steps=null"]).train.steps is None
    check_refused(lambda: load_config(SCHEMA_FILE, ["train.epochs=null"]), "train.epochs")


@pytest.mark.parametrize("text", ["optim.lr=a\nb", "optim.lr=" + "9" * 5000, "optim.lr=0x_", "optim.lr=!!int abc",
                                  "loss.weights=" + "[" * 3000, "loss.weights=&a [*a]", "optim.lr=2024-13-45",
                                  "train.run_eval=maybe", "optim.lr=", "data.\nroot=x", "x" * 5000, "=", "a.b.c=1",
                                  "train.amp_level=[O0]", "optim.loss_scale=fast", "optim.lr=.inf", "optim.lr=nan"])
def test_an_override_is_refused_in_one_line(text):
    check_refused(lambda: load_config(SCHEMA_FILE, [text]), "--set")


# What a number is for, where a huge one would fill the memory or end in a library's own error.
HUGE = [
    "data.prefetch=1000000000", "data.num_workers=1000000", "data.crop_size=[100000, 100000]",
    "data.resize=[100000, 100000]", "data.scale_range=[1, 1000000]", "data.scale_base=1000000",
    "data.repeat=1000000000", "train.steps=1000000000000", "train.epochs=1000000000000",
    "train.global_batch=1000000000", "train.device_batch=1000000000", "eval.batch_size=1000000000",
    "eval.scales=[100000]", "eval.window=[99999, 9]", "eval.num_images=1000000000", "export.height=1000000",
    "export.width=1000000", "export.batch_size=1000000000", "runtime.threads=1000000000", "runtime.threads=-1",
    "runtime.device_id=1000000000", "runtime.device_id=-1", "optim.warmup_steps=1000000000000",
    "model.num_classes=1000000000", "model.fc_channels=1000000000", "model.head_channels=1000000000",
    "model.ppm_kernel=1000000", "model.dropout=2", "data.ignore_id=256", "data.flip_prob=2", "optim.momentum=-1",
    "optim.weight_decay=-1", "data.mean=[1e300, 1, 1]",
]


@pytest.mark.parametrize("override", HUGE)
def test_a_number_out_of_range_is_refused(override):
    check_refused(lambda: load_config(SCHEMA_FILE, [override]), override.partition("=")[0], "must be")


def test_every_number_has_a_range():
    """Both sides are limited, in the schema or by a rule between keys, which these are."""
    by_rule = {"data.scale_range", "data.crop_ratio"}
    for section, keys in load_schema().items():
        for key, spec in keys.items():
            kind = spec.type.replace("list[", "").split("?")[0]
            if kind.startswith(("int", "float")) and not kind.startswith("float16"):
                assert "<" in spec.type, f"{section}.{key}"
                assert ">" in spec.type or f"{section}.{key}" in by_rule, f"{section}.{key}"


SMALL = """# A comment.
model: {name: enet, num_classes: 19, dropout: null}
data:
  root: /data/set
  crop_size: [64, 96]
  mean: [1.5, 2, 3e0]
  color_jitter: {brightness: [0.6, 1.4], prob: 1}
optim: {lr: 1.0e-3, lr_factors: {'head.*': 10}, step_epochs: []}
eval:
  resize:
    rule: exact
    size:
    - 64
    - 96
"""


def test_the_configuration_that_is_mutated_is_sound():
    assert parse_config(SMALL, "small.yaml").data.mean == [1.5, 2, 3.0]


@given(mutations(st.sampled_from([SMALL, BOMB])))
def test_a_mutated_configuration_is_read_or_refused_in_one_line(text):
    try:
        cfg = parse_config(text, "mutated.yaml")
    except ConfigError:
        check_refused(lambda: parse_config(text, "mutated.yaml"), "mutated.yaml: ")
    else:
        assert parse_config(dump_config(cfg), "dump") == cfg


def test_a_program_refuses_a_file_an_override_and_a_pipe(tmp_path):
    (tmp_path / "bomb.yaml").write_text(BOMB)
    os.mkfifo(tmp_path / "pipe.yaml")
    for words, named in ((("--config", tmp_path / "bomb.yaml"), "bomb.yaml"),
                         (("--config", tmp_path / "pipe.yaml"), "pipe.yaml"),
                         (("--config", SCHEMA_FILE, "--set", "optim.lr=a\nb"), "optim.lr")):
        check_program_refuses(run_program("check-dataset", *words), named)


def test_the_commands_reader_refuses_label_maps_and_palettes(tmp_path):
    path = tmp_path / "list.yaml"
    path.write_text("data: {name: list, class_names: []}\n")
    check_refused(lambda: read_config(path), path, "data.class_names")
