"""Conversion for Ascend: the exact commands, and files whose meaning equals our normalisation."""
import os
import re
import stat
import subprocess
import sys
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from mindseg.data.transforms import normalize
from mindseg.deploy import ascend
from mindseg.errors import UserError
from mindseg.files import file_sha256
from mindseg.manifest import ModelFile, OutputSpec, load_manifest, save_manifest
from tests.support import ROOT
from tests.support.deploy import make_manifest

NPU_SMI = """+--------------------------------------------------------------------------------------------------------+
| npu-smi 22.0.2                                   Version: 22.0.2                                       |
+-------------------------------+-----------------+------------------------------------------------------+
| NPU     Name                  | Health          | Power(W)     Temp(C)           Hugepages-Usage(page) |
| Chip    Device                | Bus-Id          | AICore(%)    Memory-Usage(MB)                        |
+===============================+=================+======================================================+
| 0       310P3                 | OK              | 15.8         42                0    / 0              |
| 0       0                     | 0000:82:00.0    | 0            1074 / 21534                            |
+===============================+=================+======================================================+
"""


def full_size(folder, size=(1024, 2048), batch=1, name="fast_scnn"):
    """The manifest of an export at Cityscapes' size (no model files)."""
    manifest = make_manifest(folder)
    spec = replace(manifest.input, shape=(batch, 3, *size), resize={"rule": "exact", "size": list(size), "pad": False})
    models = tuple(ModelFile(fmt, f"{name}.{fmt}", batch, "0" * 64) for fmt in ("onnx", "mindir"))
    output = OutputSpec("segmentation", "argmax", "uint8", (batch, *size))
    return replace(manifest, input=spec, output=output, models=models)


def small_model(folder):
    """A real static-batch ONNX file of 48x64 with its manifest, saved."""
    folder.mkdir(parents=True, exist_ok=True)
    weight = np.random.default_rng(1).normal(size=(2, 3, 1, 1)).astype(np.float32)
    nodes = [helper.make_node("Conv", ["image", "w"], ["c"]), helper.make_node("Reshape", ["c", "s"], ["r"]),
             helper.make_node("ArgMax", ["r"], ["i"], axis=1, keepdims=0),
             helper.make_node("Cast", ["i"], ["segmentation"], to=TensorProto.UINT8)]
    constants = [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(np.array([1, 2, 48, 64]), "s")]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, 48, 64])
    ids = helper.make_tensor_value_info("segmentation", TensorProto.UINT8, [1, 48, 64])
    graph = helper.make_graph(nodes, "g", [image], [ids], constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), folder / "net.onnx")
    manifest = full_size(folder, (48, 64), name="net")
    (folder / "net.mindir").write_bytes(b"mindir")
    models = tuple(replace(entry, sha256=file_sha256(folder / entry.file)) for entry in manifest.models)
    manifest = replace(manifest, models=models)
    save_manifest(manifest)
    return manifest


def fake_programs(folder, **bodies):
    """Shell programs that note their folder and arguments in ``calls`` beside them."""
    folder.mkdir(exist_ok=True)
    for name, body in bodies.items():
        path = folder / name.replace("_smi", "-smi")
        path.write_text(f'#!/bin/bash\nprintf "%s|" "$PWD" "$@" >>"{folder}/calls"\necho >>"{folder}/calls"\n{body}\n')
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return folder


def run_script(script, *arguments, programs=None, **env):
    # A machine that has the real programs must not run them here.
    env = {**os.environ, "PATH": f"{programs or ''}:/usr/bin:/bin", "PYTHON": sys.executable,
           "ASCEND_TOOLKIT_HOME": "/nowhere", "MS_LITE_HOME": "", **{key: str(value) for key, value in env.items()}}
    command = ["bash", str(ROOT / "scripts" / script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=env)


def calls_of(programs):
    """Folder and arguments of each call; results are written to a hidden folder first."""
    lines = (programs / "calls").read_text().splitlines()
    return [re.sub(r"=\.export-\w{8}/", "=", line).split("|")[:-1] for line in lines]


# What ATC leaves: a file of the name after --output=.
ATC = 'for word in "$@"; do case $word in --output=*) echo om >"${word#*=}.om";; esac; done'
LITE = 'for word in "$@"; do case $word in --outputFile=*) echo lite >"${word#*=}.mindir";; esac; done'


@pytest.mark.parametrize(("soc", "full"), [("Ascend310P3", "Ascend310P3"), ("310", "Ascend310")])
def test_the_guides_command(tmp_path, soc, full):
    # The line of the Ascend 310 inference guide of Fast-SCNN, with its batch sizes filled in.
    conversions = ascend.om_conversions(full_size(tmp_path, batch=-1), soc, [1, 4])
    assert [item.text() for item in conversions] == [
        f'atc --framework=5 --model=fast_scnn.onnx --output=fast_scnn_bs{batch} --input_format=NCHW '
        f'--input_shape="image:{batch},3,1024,2048" --log=debug --soc_version={full}' for batch in (1, 4)]
    assert conversions[1].entry == ModelFile("om", "fast_scnn_bs4.om", 4, "", {"soc_version": full})


def test_gears_aipp_and_a_graph_that_normalises(tmp_path):
    manifest = full_size(tmp_path, batch=-1, name="net_dynamic")
    item, = ascend.om_conversions(manifest, "310P3", [8, 1, 4], aipp=True, gears=True, log="error")
    assert item.text() == (
        'atc --framework=5 --model=net_dynamic.onnx --output=aipp/net_dynamic --input_format=NCHW '
        '--input_shape="image:-1,3,1024,2048" --log=error --soc_version=Ascend310P3 --dynamic_batch_size="1,4,8" '
        '--insert_op_conf=aipp/aipp.cfg')
    assert item.entry.batch == -1
    assert item.entry.extra["batches"] == [1, 4, 8]
    with pytest.raises(UserError, match="at least two"):
        ascend.om_conversions(manifest, "310P3", [4], gears=True)
    raw = replace(manifest, input=replace(manifest.input, layout="NHWC", dtype="uint8", normalize="graph",
                                          shape=(1, 1024, 2048, 3)))
    item, = ascend.om_conversions(raw, "310P3", [1])
    assert '--input_format=ND --input_shape="image:1,1024,2048,3"' in item.text()
    with pytest.raises(UserError, match="leave --aipp out"):
        ascend.om_conversions(raw, "310P3", [1], aipp=True)


def aipp(text, pixels):
    """The chip's values of uint8 NHWC pixels by the documented formula; constants are uint8 and fp16."""
    value = dict(re.findall(r"(\w+): ([\w.\-]+)", text))
    assert value["aipp_mode"] == "static"
    assert value["input_format"] == "RGB888_U8"
    assert (int(value["src_image_size_h"]), int(value["src_image_size_w"])) == pixels.shape[1:3]
    planes = []
    for channel in range(3):
        mean = int(value[f"mean_chn_{channel}"])
        assert 0 <= mean <= 255
        low = np.float32(np.float16(value[f"min_chn_{channel}"]))
        scale = np.float32(np.float16(value[f"var_reci_chn_{channel}"]))
        planes.append(((pixels[..., channel].astype(np.float32) - mean - low) * scale).astype(np.float16))
    return np.stack(planes, 1)


@pytest.mark.parametrize("changes", [
    {}, {"value_range": 1.0, "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225), "color_order": "BGR"},
    {"mean": (0.0, 0.0, 0.0), "std": (255.0, 255.0, 255.0)},
    {"value_range": 1.0, "mean": (0.3257, 0.3690, 0.3223), "std": (0.2112, 0.2148, 0.2115)}])
def test_aipp_equals_our_normalisation_to_fp16(tmp_path, changes):
    spec = replace(make_manifest(tmp_path).input, **changes)
    values = np.tile(np.arange(256, dtype=np.uint8), 12).reshape(1, 48, 64, 1).repeat(3, 3)
    chip = aipp(ascend.aipp_config(spec), values).astype(np.float64)[0]
    host = normalize(values[0], spec.mean, spec.std, spec.value_range).astype(np.float64)
    # Half a unit in the last place for each of the two fp16 constants and for the result.
    limit = np.maximum(2.0 ** -10 * np.abs(host), 0) + 2.0 ** -11 / min(s * 255 / spec.value_range for s in spec.std)
    assert (np.abs(chip - host) <= limit + 2.0 ** -12).all()
    assert np.abs(chip - host).max() < 2.0 ** -9 * max(1, np.abs(host).max())


def test_lite_command_and_configuration(tmp_path):
    item, config = ascend.lite_conversion(full_size(tmp_path), [])
    assert item.text() == ("converter_lite --fmk=MINDIR --modelFile=fast_scnn.mindir --outputFile=lite/fast_scnn_bs1 "
                           "--optimize=ascend_oriented --saveType=MINDIR --configFile=lite/lite.ini")
    assert config == "[ascend_context]\ninput_shape=image:[1,3,1024,2048]\nprecision_mode=enforce_fp16\n"
    item, config = ascend.lite_conversion(full_size(tmp_path, batch=-1), [4, 1], "ascend_oriented:310P3",
                                          "preferred_fp32", aipp=True)
    assert "--optimize=ascend_oriented:310P3" in item.command
    assert config == ("[ascend_context]\ninput_shape=image:[-1,3,1024,2048]\ndynamic_dims=[1],[4]\n"
                      "precision_mode=preferred_fp32\ninsert_op_config_file_path=lite/aipp.cfg\n")
    with pytest.raises(UserError, match="no mindir with batch -1"):
        ascend.lite_conversion(full_size(tmp_path), [1, 4])


def test_convert_om_asks_npu_smi_runs_atc_and_lists_the_results(tmp_path):
    folder = tmp_path / "my export"
    small_model(folder)
    programs = fake_programs(tmp_path / "bin", atc=ATC, npu_smi=f"cat <<'TABLE'\n{NPU_SMI}TABLE")
    done = run_script("convert_om.sh", folder, 1, 4, programs=programs)
    assert done.returncode == 0, done.stderr
    calls = calls_of(programs)
    assert calls[0][1:] == ["info"]
    assert calls[1] == [str(folder), "--framework=5", "--model=net.onnx", "--output=net_bs1", "--input_format=NCHW",
                        "--input_shape=image:1,3,48,64", "--log=debug", "--soc_version=Ascend310P3"]
    assert calls[2][2:4] == ["--model=net_dynamic.onnx", "--output=net_bs4"]
    manifest = load_manifest(folder)
    assert [(entry.format, entry.file, entry.batch) for entry in manifest.models] == [
        ("onnx", "net.onnx", 1), ("mindir", "net.mindir", 1), ("onnx", "net_dynamic.onnx", -1),
        ("om", "net_bs1.om", 1), ("om", "net_bs4.om", 4)]
    for entry in manifest.models:
        manifest.model_path(entry)
    x = np.random.default_rng(2).normal(size=(3, 3, 48, 64)).astype(np.float32)
    static, dynamic = (ort.InferenceSession(str(folder / name)) for name in ("net.onnx", "net_dynamic.onnx"))
    each = np.concatenate([static.run(None, {"image": x[i:i + 1]})[0] for i in range(3)])
    np.testing.assert_array_equal(dynamic.run(None, {"image": x})[0], each)
    again = run_script("convert_om.sh", folder, "310P3", 4, programs=programs)
    assert again.returncode == 0, again.stderr
    assert [entry.file for entry in load_manifest(folder).models].count("net_bs4.om") == 1


def test_dry_run_writes_nothing_and_needs_nothing(tmp_path):
    folder = tmp_path / "export"
    small_model(folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    done = run_script("convert_om.sh", folder, "--dry_run", "Ascend310P3", 1, 4, "--aipp")
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if not line.startswith("#")]
    assert len(lines) == 2
    assert all(line.startswith("atc --framework=5 --model=net") for line in lines)
    assert "mean_chn_0: 123" in done.stdout
    done = run_script("convert_lite.sh", folder, "--dry_run")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("converter_lite --fmk=MINDIR --modelFile=net.mindir")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_fusion_passes_are_switched_off_by_a_file(tmp_path):
    small_model(tmp_path / "export")
    switch = tmp_path / "fusion switch.cfg"
    words = (tmp_path / "export", "310P3", "--fusion_switch", switch, "--dry_run")
    assert "fusion switch.cfg: no such file" in run_script("convert_om.sh", *words).stderr
    switch.write_text("ConvBatchnormFusionPass:off\n")
    done = run_script("convert_om.sh", *words)
    assert done.returncode == 0, done.stderr
    assert done.stdout.rstrip().endswith(f"'--fusion_switch_file={switch}'")


def test_aipp_and_lite_results_get_manifests_of_their_own(tmp_path):
    folder = tmp_path / "export"
    small_model(folder)
    programs = fake_programs(tmp_path / "bin", atc=ATC, converter_lite=LITE)
    done = run_script("convert_om.sh", folder, "310P3", "--aipp", programs=programs)
    assert done.returncode == 0, done.stderr
    manifest = load_manifest(folder / "aipp")
    assert manifest.input.shape == (1, 48, 64, 3)
    assert (manifest.input.dtype, manifest.input.layout, manifest.input.normalize) == ("uint8", "NHWC", "graph")
    assert manifest.model_path(manifest.find("om")).name == "net_bs1.om"
    assert (folder / "aipp" / "aipp.cfg").read_text() == ascend.aipp_config(load_manifest(folder).input)
    done = run_script("convert_lite.sh", folder, programs=programs)
    assert done.returncode == 0, done.stderr
    manifest = load_manifest(folder / "lite")
    assert manifest.input.dtype == "float32"
    assert manifest.model_path(manifest.find("mindir")).read_text() == "lite\n"
    assert [entry.file for entry in load_manifest(folder).models] == ["net.onnx", "net.mindir"]


def test_the_lite_runners_fusion_switch_stays_in_the_manifests(tmp_path):
    folder = tmp_path / "export"
    small_model(folder)
    (folder / "fusion.cfg").write_text("ConvBatchnormFusionPass:off\n")
    with open(folder / "deploy.yaml", "a", encoding="utf-8") as stream:
        stream.write("ascend: {fusion_switch: fusion.cfg}\n")
    programs = fake_programs(tmp_path / "bin", atc=ATC, converter_lite=LITE)
    for arguments in (("convert_om.sh", folder, "310P3", 4), ("convert_lite.sh", folder)):
        done = run_script(*arguments, programs=programs)
        assert done.returncode == 0, done.stderr
    assert load_manifest(folder).ascend == {"fusion_switch": "fusion.cfg"}
    # The runner looks from the folder of its manifest.
    copy = folder / "lite" / load_manifest(folder / "lite").ascend["fusion_switch"]
    assert copy.read_bytes() == (folder / "fusion.cfg").read_bytes()


def test_further_options_of_atc(tmp_path):
    folder = tmp_path / "export"
    small_model(folder)
    programs = fake_programs(tmp_path / "bin", atc=ATC)
    done = run_script("convert_om.sh", folder, "310P3", 1, "--", "--precision_mode_v2=mixed_float16",
                      "--op_debug_level=0", programs=programs)
    assert done.returncode == 0, done.stderr
    call, = calls_of(programs)
    assert call[-3:] == ["--soc_version=Ascend310P3", "--precision_mode_v2=mixed_float16", "--op_debug_level=0"]
    assert load_manifest(folder).find("om").extra == {
        "soc_version": "Ascend310P3", "atc_options": ["--precision_mode_v2=mixed_float16", "--op_debug_level=0"]}


def test_the_precision_is_passed_on_and_noted(tmp_path):
    small_model(tmp_path)
    programs = fake_programs(tmp_path / "bin", atc=ATC)
    done = run_script("convert_om.sh", tmp_path, "310P3", 1, "--precision", "cube_fp16in_fp32out", programs=programs)
    assert done.returncode == 0, done.stderr
    assert calls_of(programs)[0][-1] == "--precision_mode_v2=cube_fp16in_fp32out"
    assert load_manifest(tmp_path).find("om").extra["atc_options"] == ["--precision_mode_v2=cube_fp16in_fp32out"]
    done = run_script("convert_om.sh", tmp_path, "310P3", 1, "--precision", "origin", programs=programs)
    assert done.returncode == 1
    assert done.stderr == ("error: --precision_mode_v2=origin: not for Ascend310P3, whose convolutions know float16 "
                           "only; use one of fp16, mixed_float16, cube_fp16in_fp32out\n")
    assert len(calls_of(programs)) == 1


@pytest.mark.parametrize(("soc", "options", "message"), [
    ("310", ["--precision_mode=must_keep_origin_dtype"],
     "--precision_mode=must_keep_origin_dtype: not for Ascend310, whose convolutions know float16 only; use one of "
     "force_fp16, force_fp32, cube_fp16in_fp32out, allow_fp32_to_fp16, allow_mix_precision, allow_mix_precision_fp16"),
    ("910A", ["--precision_mode=allow_mix_precision_bf16"], "not for Ascend910A, whose"),
    ("910B3", ["--precision_mode=fp16"], "not for Ascend910B3; use one of force_fp16"),
    ("310P3", ["--precision_mode_v2=fp16", "--precision_mode=force_fp16"], "ATC takes one precision")])
def test_precisions_that_atc_would_refuse_or_compute_on_its_cpu(tmp_path, soc, options, message):
    with pytest.raises(UserError, match=re.escape(message)):
        ascend.om_conversions(full_size(tmp_path), soc, [1], options=options)


@pytest.mark.parametrize(("soc", "option"), [
    ("310", "--precision_mode=allow_mix_precision"), ("310P3", "--precision_mode=force_fp32"),
    ("910B3", "--precision_mode=must_keep_origin_dtype"), ("910B3", "--precision_mode_v2=mixed_bfloat16"),
    ("310B4", "--precision_mode_v2=mixed_float16"), ("950", "--precision_mode_v2=anything")])
def test_precisions_of_the_chip(tmp_path, soc, option):
    item, = ascend.om_conversions(full_size(tmp_path), soc, [1], options=[option])
    assert item.command[-1] == option


@pytest.mark.parametrize(("optimize", "precision", "message"), [
    ("ascend_oriented:310P3", "enforce_origin", "--precision enforce_origin: not for 310P3, whose convolutions know"),
    ("ascend_oriented:310", "enforce_fp32", "not for 310, whose"),
    ("ascend_oriented", "fp16", "--precision 'fp16': must be one of enforce_fp16, ")])
def test_precisions_that_lite_would_refuse(tmp_path, optimize, precision, message):
    with pytest.raises(UserError, match=re.escape(message)):
        ascend.lite_conversion(full_size(tmp_path), [], optimize, precision)


@pytest.mark.parametrize(("script", "word", "remedy"), [
    ("convert_om.sh", "--output=other", "--output follows from the manifest"),
    ("convert_om.sh", "origin", "ATC option origin: write it as --NAME=VALUE"),
    ("convert_om.sh", "--precision_mode_v2", "write it as --NAME=VALUE"),
    ("convert_lite.sh", "--x=1", "leave out what stands behind --")])
def test_further_options_that_are_refused(tmp_path, script, word, remedy):
    small_model(tmp_path)
    done = run_script(script, tmp_path, *(["310P3"] if script == "convert_om.sh" else []), "--dry_run", "--", word)
    assert done.returncode == 1
    assert remedy in done.stderr


def test_what_an_older_atc_left_is_not_taken_for_the_new_result(tmp_path):
    """The first conversion makes net_bs1.om; the upgraded ATC writes net_bs1_linux_x86_64.om beside it."""
    small_model(tmp_path)
    programs = fake_programs(tmp_path / "bin", atc=ATC)
    assert run_script("convert_om.sh", tmp_path, "310P3", 1, programs=programs).returncode == 0
    fake_programs(tmp_path / "bin", atc=ATC.replace("echo om", "echo new").replace(".om", "_linux_x86_64.om"))
    for _ in range(2):      # the second time the new file is there before, too
        assert run_script("convert_om.sh", tmp_path, "310P3", 1, programs=programs).returncode == 0
        manifest = load_manifest(tmp_path)
        assert [entry.file for entry in manifest.models if entry.format == "om"] == ["net_bs1_linux_x86_64.om"]
        assert manifest.model_path(manifest.find("om", 1)).read_text() == "new\n"
    fake_programs(tmp_path / "bin", atc="true")
    done = run_script("convert_om.sh", tmp_path, "310P3", 1, programs=programs)
    assert done.returncode == 1
    assert "left no net_bs1.om" in done.stderr


def test_a_full_disk_leaves_one_line_and_nothing_else(small_disk, tmp_path):
    folder = small_disk(1)
    small_model(folder)
    left = os.statvfs(folder)
    (folder / "filler").write_bytes(bytes(left.f_bavail * left.f_frsize))
    before = {path.name: path.stat().st_size for path in folder.iterdir()}
    done = run_script("convert_om.sh", folder, "310P3", 4, programs=fake_programs(tmp_path / "bin", atc=ATC))
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {folder}/.mindseg-files: cannot be written (No space left on device)")
    assert done.stderr.count("\n") == 1
    assert {path.name: path.stat().st_size for path in folder.iterdir()} == before


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    small_model(tmp_path)
    (tmp_path / "aipp").write_text("")
    done = run_script("convert_om.sh", tmp_path, "310P3", "--aipp", programs=fake_programs(tmp_path / "bin", atc=ATC))
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {tmp_path}/aipp/aipp.cfg: cannot be written (File exists)")


def test_a_killed_conversion_leaves_the_earlier_result(tmp_path):
    small_model(tmp_path)
    programs = fake_programs(tmp_path / "bin", atc=ATC)
    assert run_script("convert_om.sh", tmp_path, "310P3", 1, programs=programs).returncode == 0
    fake_programs(tmp_path / "bin", atc=ATC.replace("echo om", "echo half") + "; kill -9 $PPID")
    assert run_script("convert_om.sh", tmp_path, "310P3", 1, programs=programs).returncode == -9
    assert [path.read_text() for path in tmp_path.glob(".export-*/*.om")] == ["half\n"]
    manifest = load_manifest(tmp_path)
    assert manifest.model_path(manifest.find("om", 1)).read_text() == "om\n"
    fake_programs(tmp_path / "bin", atc=ATC.replace("echo om", "echo new"))
    assert run_script("convert_om.sh", tmp_path, "310P3", 1, programs=programs).returncode == 0
    manifest = load_manifest(tmp_path)
    assert manifest.model_path(manifest.find("om", 1)).read_text() == "new\n"
    assert not list(tmp_path.glob(".export-*"))


def test_cann_is_found_by_its_set_env(tmp_path):
    small_model(tmp_path / "export")
    toolkit = tmp_path / "my toolkit"
    programs = fake_programs(tmp_path / "atc bin", atc=ATC)
    toolkit.mkdir()
    # As CANN's own script, it reads a variable that may not be set.
    (toolkit / "set_env.sh").write_text(f'export MORE=$NEVER_SET_BEFORE:/x\nexport PATH="{programs}:$PATH"\n')
    done = run_script("convert_om.sh", tmp_path / "export", "310P3", 1, ASCEND_TOOLKIT_HOME=toolkit)
    assert done.returncode == 0, done.stderr
    assert load_manifest(tmp_path / "export").find("om").file == "net_bs1.om"


def test_mindspore_lite_is_found_in_its_package(tmp_path):
    small_model(tmp_path / "export")
    package = tmp_path / "mindspore lite"
    converter = package / "tools" / "converter" / "converter"
    converter.parent.mkdir(parents=True)
    fake_programs(converter, converter_lite=f'echo "$LD_LIBRARY_PATH" >"{tmp_path}/libraries"\n{LITE}')
    done = run_script("convert_lite.sh", tmp_path / "export", MS_LITE_HOME=package, LD_LIBRARY_PATH="/mine")
    assert done.returncode == 0, done.stderr
    assert load_manifest(tmp_path / "export" / "lite").find("mindir").file == "net_bs1.mindir"
    assert (tmp_path / "libraries").read_text().strip().split(":") == [
        f"{package}/tools/converter/lib", f"{package}/runtime/lib", "/mine"]


def test_a_missing_converter_lite_is_said_in_one_line(tmp_path):
    small_model(tmp_path)
    done = run_script("convert_lite.sh", tmp_path)
    assert done.returncode == 1
    assert done.stderr == ("error: converter_lite: not found; set MS_LITE_HOME to an unpacked MindSpore Lite package, "
                           "or use --dry_run to print the command\n")


@pytest.mark.parametrize(("arguments", "programs", "words"), [
    (["310P3"], None, "atc: not found; install the CANN toolkit"),
    ([], None, "npu-smi: not found"),
    ([], {"npu_smi": "echo nothing"}, "names no chip"),
    (["310P3"], {"atc": "echo E10001 broken >&2; exit 7"}, "atc failed with status 7"),
    (["310P3"], {"atc": "true"}, "left no net_bs1.om"),
    (["310P3", "0"], None, "BATCH 0"),
    (["Ascend310;x"], None, "no such chip"),
    (["310P3", "4", "--dynamic_batch"], None, "at least two")])
def test_what_is_missing_is_said_in_one_line(tmp_path, arguments, programs, words):
    folder = tmp_path / "export"
    small_model(folder)
    listed = (folder / "deploy.yaml").read_bytes()
    folder_of_programs = fake_programs(tmp_path / "bin", **programs) if programs else None
    done = run_script("convert_om.sh", folder, *arguments, programs=folder_of_programs)
    assert done.returncode == 1
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, done.stderr
    assert words in errors[0]
    assert "Traceback" not in done.stderr
    assert (folder / "deploy.yaml").read_bytes() == listed


@pytest.mark.parametrize("script", ["convert_om.sh", "convert_lite.sh", "run_infer_310.sh"])
def test_usage_on_a_wrong_argument_count(script):
    done = run_script(script)
    assert done.returncode == 1
    assert f"usage: bash scripts/{script}" in done.stderr
    assert run_script(script, "--help").returncode == 0
