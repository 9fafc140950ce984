"""docs/migration.md keeps its word: each row of its tables is executed, by the form of its code or by a named check."""
import ast
import re
import shutil

import pytest

from tests.support import ROOT
from tests.support.migration import Bench, Row, kind_of, read_file_tables, read_rows
from tests.support.migration_checks import CHECKS

ROWS = read_rows()
COUNTS = {"FS": 41, "FG": 19, "FC": 29, "EN": 33, "BS": 34}
STATES = r"works on CPU, tested|needs Ascend; simulated in tests|dropped, because \S.{20,}"
# Commands that take seconds for each network. Those of Fast-SCNN always run, except for MORE_RUNS (more trainings and
# processes of their own); the others' run with the slow tests.
HEAVY = r"python (train|eval|export|predict|p\w+process)|bash scripts/run_(stand|eval|infer)|.*segment run|tail"
MORE_RUNS = ("FS-03", "FS-06", "FS-12", "FS-19", "FS-30", "FS-32")

# What takes longer than a row may, or is proved better where it is at home.
UNIT, SYSTEM = "tests/unit/test_", "tests/system/test_"
TWO_RANKS = SYSTEM + "distributed.py::test_a_network_on_two_ranks_follows_one_process"
EQUAL_RANKS = SYSTEM + "distributed.py::test_ranks_with_synchronised_norm_equal_one_process"
SHARES = UNIT + "data_loader.py::test_union_of_ranks_is_the_stream_of_one"
RESUME = SYSTEM + "train_resume.py::test_sigterm_saves_and_the_printed_command_continues"
STAGES = SYSTEM + "train_stages.py::test_three_stages_hand_their_weights_on"
CHAIN = SYSTEM + "deploy_chain.py::test_one_command"
MPIRUN = SYSTEM + "distributed.py::test_variables_of_mpirun_start_the_same_job"
ACL = SYSTEM + "runner_acl.py::test_static_batch_equals_openvino"
ELSEWHERE = {
    "FS-04": [UNIT + "data_transforms.py::test_base_size_speaks_of_one_side"],
    "FS-05": [UNIT + "data_transforms.py::test_stored_arrays_of_a_seeded_transform"],
    "FS-07": [UNIT + "losses.py::test_heads_are_weighted",
              UNIT + "losses.py::test_a_crop_without_valid_pixels_gives_zero_and_zero_gradients"],
    "FS-10": [UNIT + "trainer.py::test_periodic_checkpoints"],
    "FS-11": [TWO_RANKS, SYSTEM + "distributed_resume.py::test_two_ranks_stop_together_and_go_on_to_the_bit"],
    "FS-12": [RESUME],
    "FS-13": [UNIT + "trainer.py::test_evaluations_and_the_best"],
    "FS-18": [EQUAL_RANKS, SHARES],
    "FS-20": [RESUME],
    "FS-21": [SYSTEM + "eval_ranks.py::test_three_processes_give_the_same_matrix"],
    "FS-22": [UNIT + "inference.py::test_geometry_of_the_old_recipes"],
    "FS-25": [UNIT + "platforms.py::test_data_come_in_before_and_results_go_out_after_on_modelarts"],
    "FS-26": [SYSTEM + "deploy_export.py::test_command_line_refuses_air_and_writes_the_rest"],
    "FS-29": [CHAIN],
    "FS-31": [TWO_RANKS],
    "FS-33": [CHAIN, ACL],
    "FS-36": [SYSTEM + "runner_bad_input.py::test_unit_tests_pass", SYSTEM + "runner_mslite.py::test_devices"],
    "FS-37": [ACL],
    "FG-02": [SYSTEM + "deploy_export.py::test_ids_in_the_graph_equal_ids_from_logits"],
    "FG-04": [SYSTEM + "deploy_export.py::test_full_size"],
    "FG-08": [SYSTEM + "deploy_guide.py::test_segmentron_weights_to_onnx"],
    "FG-09": [UNIT + "deploy_ascend.py::test_convert_om_asks_npu_smi_runs_atc_and_lists_the_results"],
    "FG-12": [UNIT + "deploy_offline.py::test_score_of_every_kind_of_result"],
    "FG-13": [SYSTEM + "runner_run.py::test_bench_and_info_describe_the_model"],
    "FG-14": [SYSTEM + "runner_acl.py::test_dynamic_batch_uses_its_gears",
              SYSTEM + "runner_acl.py::test_a_batch_that_was_not_converted_is_refused"],
    "FG-16": [UNIT + "deploy_offline.py::test_order_of_the_samples_does_not_matter",
              UNIT + "deploy_offline.py::test_a_missing_result_is_named_with_the_runners_reason"],
    "FG-19": [ACL, SYSTEM + "deploy_export.py::test_batch_sizes_agree_with_each_other"],
    "FC-02": [UNIT + "data_tools.py::test_trainaug_leaks_no_validation_image"],
    "FC-03": [UNIT + "runtime.py::test_an_absent_device_is_one_line"],
    "FC-07": [UNIT + "data_loader.py::test_record_equals_folder"],
    "FC-09": [UNIT + "deploy_offline.py::test_value_range_one_bgr_and_raw_bytes"],
    "FC-11": [UNIT + "schedules.py::test_epoch_unit_holds_the_rate_through_an_epoch"],
    "FC-12": [SYSTEM + "train_stages.py::test_half_precision_trains_on_the_cpu"],
    "FC-13": [UNIT + "losses.py::test_cross_entropy_is_the_weighted_mean_over_valid_pixels"],
    "FC-14": ["tests/models/test_weights.py::test_older_mindspore_vgg16_is_read"],
    "FC-18": [UNIT + "data_mindrecord.py::test_output_already_there"],
    "FC-19": [UNIT + "data_datasets.py::test_bad_line_names_list_and_number"],
    "FC-24": [UNIT + "inference.py::test_portrait_and_landscape_return_to_their_size"],
    "FC-25": [TWO_RANKS],
    "FC-27": [SHARES],
    "EN-02": [UNIT + "inference.py::test_void_channel_is_never_predicted"],
    "EN-04": [UNIT + "data_loader.py::test_record_moved_and_without_description"],
    "EN-05": [STAGES],
    "EN-07": [UNIT + "losses.py::test_label_stride_compares_the_centres_of_the_cells"],
    "EN-08": [STAGES],
    "EN-11": [UNIT + "optim.py::test_steps_equal_numpy"],
    "EN-13": [UNIT + "data_transforms.py::test_crop_resize_follows_its_ratio"],
    "EN-16": [SYSTEM + "eval.py::test_folder_of_checkpoints"],
    "EN-17": [SYSTEM + "distributed.py::test_contradicting_environment", TWO_RANKS],
    "EN-18": [TWO_RANKS],
    "EN-19": [MPIRUN],
    "EN-23": [SYSTEM + "eval.py::test_resized_labels_equal_a_plain_loop"],
    "EN-25": [CHAIN, ACL],
    "EN-28": [CHAIN],
    "EN-29": [SYSTEM + "eval.py::test_batches_make_no_difference"],
    "BS-02": [UNIT + "data_datasets.py::test_list_equals_scan"],
    "BS-08": [UNIT + "data_transforms.py::test_stepped_scales_are_sixteen"],
    "BS-10": [UNIT + "data_transforms.py::test_jitter_equals_float_arithmetic"],
    "BS-12": [UNIT + "inference.py::test_one_scale_equals_whole_and_several_keep_the_size"],
    "BS-14": [UNIT + "optim.py::test_every_parameter_is_updated_with_its_settings"],
    "BS-16": [EQUAL_RANKS],
    "BS-18": [MPIRUN],
    "BS-26": [CHAIN, ACL],
    "BS-27": [SYSTEM + "runner_bad_input.py::test_absent_backends_devices_and_batches"],
    "BS-31": [SYSTEM + "deploy_export.py::test_normalisation_in_the_graph_and_a_batch_of_four"],
}


def is_slow(row: Row) -> bool:
    heavy = any(kind_of(span) == "made" or re.match(HEAVY, span) for span in row.spans)
    return heavy and (row.project not in ("FS", "FG") or row.id in MORE_RUNS)


@pytest.fixture(scope="module")
def benches(tmp_path_factory):
    folder = tmp_path_factory.mktemp("migration")
    yield {project: Bench(project, folder / project, ROWS) for project in COUNTS}
    shutil.rmtree(folder)       # a gigabyte of checkpoints


def test_every_promise_has_a_row():
    expected = [f"{project}-{number:02d}" for project, count in COUNTS.items() for number in range(1, count + 1)]
    assert [row.id for row in ROWS] == expected


@pytest.mark.parametrize("row", [pytest.param(row, id=row.id, marks=[pytest.mark.slow] if is_slow(row) else [])
                                 for row in ROWS])
def test_row(row, benches):
    bench = benches[row.project]
    assert re.fullmatch(STATES, row.state), row.state
    assert row.spans, "nothing here can be executed"
    for span in row.spans:
        assert kind_of(span), f"`{span}` has no form that can be checked"
        bench.check(span)
    if row.id in CHECKS:
        CHECKS[row.id](bench)


def test_rows_proved_elsewhere():
    assert ELSEWHERE.keys() | CHECKS.keys() <= {row.id for row in ROWS}
    nodes = [node.split("::") for nodes in ELSEWHERE.values() for node in nodes]
    for path in {path for path, _ in nodes}:
        tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
        functions = {item.name for item in ast.walk(tree) if isinstance(item, ast.FunctionDef)}
        assert {name for other, name in nodes if other == path} <= functions, path


def test_every_file_of_the_tables_exists():
    paths = read_file_tables()
    assert len(paths) > 60
    assert [path for path in paths if not (ROOT / path).exists()] == []
