"""The planner: counts, sums and limits against numbers worked out by hand."""
import math
import os
import re
import subprocess
import sys
from dataclasses import replace

import pytest

from mindspore import Tensor, nn
from mindspore import dtype as mstype

from mindseg.compat import Conv2d
from mindseg.errors import UserError
from mindseg.planner.costs import Costs, costs, graph_costs, products
from mindseg.planner.graph import Node, compile_graphs, read_graphs
from mindseg.planner.machines import CARDS, DECODING, EVALUATION, Card, Constant, Decoding
from mindseg.planner.prediction import (
    Cluster,
    Step,
    all_reduce,
    kernel_times,
    loading_time,
    predict_evaluation,
    predict_step,
    ring,
)
from mindseg.planner.span import Span, two_digits
from tests.support import ROOT
from tests.support.processes import in_a_process

IMAGE, WEIGHT, RESULT = "(2, 3, 8, 16)", "(5, 3, 3, 3)", "(2, 5, 4, 8)"
PRODUCTS = 2 * (2 * 5 * 4 * 8) * (3 * 3 * 3)        # 27 multiplications and additions for each value of the result
FILLED = 2 * (2 * 16 * 4 * 8) * (16 * 3 * 3)        # the same with 16 channels on both sides
NUMBERS = 2 * 16 * 8 * 16 + 5 * 16 * 9 + 2 * 16 * 4 * 8     # maps and weights have their second axis filled to 16


def node(name: str, inputs: list[str], outputs: str, kind: str = "Float32") -> Node:
    """One operator, read from a line as MindSpore writes it."""
    types = ", ".join(f"<Tensor[{kind}], {shape}>" for shape in inputs)
    text = f"  %3(CNode_7) = PrimFunc_{name}(%1, %2)\n      : ({types}) -> (<Tensor[{kind}], {outputs}>)\n"
    ((found,),) = (graph.values() for graph in read_graphs(text.splitlines()))
    return found


@pytest.mark.parametrize(("name", "inputs", "output", "kernels"), [
    ("Conv2D", [IMAGE, WEIGHT], RESULT, 1), ("Conv2DExt", [IMAGE, WEIGHT], RESULT, 1),
    ("Conv2DBackpropInput", [RESULT, WEIGHT], IMAGE, 1), ("Conv2DBackpropFilter", [RESULT, IMAGE], WEIGHT, 1),
    ("ConvolutionGrad", [RESULT, IMAGE, WEIGHT], IMAGE, 2)])       # computes both gradients
def test_a_convolution_and_its_gradients_have_the_same_products(name, inputs, output, kernels):
    found = node(name, inputs, output)
    assert products(found, block=1) == kernels * PRODUCTS
    assert products(found) == costs(found).flops == kernels * FILLED


def test_channels_are_filled_up_to_blocks_of_16():
    assert costs(node("Conv2D", [IMAGE, WEIGHT], RESULT)) == Costs(FILLED, 4 * NUMBERS, 0, 1)
    assert costs(node("Conv2D", [IMAGE, WEIGHT], RESULT, "Float16")) == Costs(FILLED, 2 * NUMBERS, 0, 1)
    assert costs(node("ReLU", ["(2, 32, 8, 8)"], "(2, 32, 8, 8)")).bytes == 4 * 2 * 2 * 32 * 64     # two whole blocks
    assert costs(node("ReLU", ["(2, 3, 64)"], "(2, 3, 64)")).bytes == 4 * 2 * 2 * 3 * 64            # no map


def test_products_are_never_left_out_in_silence():
    with pytest.raises(UserError, match="no rule for the products of operator Conv3DExt"):
        costs(node("Conv3DExt", [IMAGE, WEIGHT], RESULT))


def test_a_depthwise_convolution_multiplies_each_channel_alone_but_fills_a_block():
    found = node("Conv2D", ["(2, 32, 8, 8)", "(32, 1, 3, 3)"], "(2, 32, 8, 8)")
    assert products(found, block=1) == 2 * (2 * 32 * 8 * 8) * 9
    assert products(found) == 16 * products(found, block=1)


def test_a_transposed_convolution_multiplies_each_pixel_of_its_input():
    # Each of the 2 * 4 * 3 * 5 inputs meets 7 * 2 * 2 weights.
    found = node("Conv2DTranspose", ["(2, 4, 3, 5)", "(4, 7, 2, 2)"], "(2, 7, 6, 10)")
    assert products(found, block=1) == 2 * (2 * 4 * 15) * 28


@pytest.mark.parametrize(("left", "right", "result"), [
    ("(2, 6, 8)", "(8, 5)", "(2, 6, 5)"),       # the second is shared by the batch
    ("(6, 8)", "(2, 8, 5)", "(2, 6, 5)"),
    ("(2, 8, 6)", "(5, 8)", "(2, 6, 5)"),       # both transposed
])
def test_a_product_of_matrices(left, right, result):
    assert costs(node("MatMulExt", [left, right], result)).flops == 2 * (2 * 6 * 5) * 8


@pytest.mark.parametrize(("name", "shape", "short"), [
    ("Mul", "(100000, 19)", True),          # logits of pixels
    ("Mul", "(2, 16, 64, 2, 64, 2)", True),
    ("Mul", "(8, 32, 64, 16)", False),      # a map of the deepest layers, which is kept in blocks of channels
    ("Transpose", "(8, 64, 64, 19)", True), ("Mul", "(4096, 64)", False), ("Mul", "(100, 19)", False)])
def test_short_rows_are_counted_apart(name, shape, short):
    found = costs(node(name, [shape], shape))
    size = 2 * 4 * math.prod(map(int, shape.strip("()").split(", ")))
    assert (found.bytes, found.short_bytes) == ((0, size) if short else (size, 0))


# Two graphs as MindSpore 2.10 saves them: tuples, a constant of several lines, names that begin anew.
TEXT = """
subgraph @first() {
  %1(CNode_1) = PrimFunc_BatchNorm(%0, %para1_bn.gamma, Bool(1), F32(1e-05)) cnode_attrs: {checkpoint: Bool(1)}
      : (<Tensor[Float32], (2, 3)>, <Ref[Tensor[Float32]], (3), ref_key=bn.gamma, is_parameter>, <Bool, NoShape>) -> \
(<Tuple[Tensor[Float32]*2,Tensor[Int64]], TupleShape((2, 3), (3), ())>)
      # Fullname with scope: (Default/BatchNorm-op0)
  %2(CNode_2) = PrimFunc_TupleGetItem(%1, I64(0))
      : (<Tuple[Tensor[Float32]*2,Tensor[Int64]], TupleShape((2, 3), (3), ())>, <Int64, NoShape>) -> \
(<Tensor[Float32], (2, 3)>)
  %3(CNode_3) = Mul(%2, Tensor(shape=[2], dtype=Float32, value=
[[ 1.0]
 [ 2.0]]))
      : (<Tensor[Float32], (2, 3)>, <Tensor[Float32], (2, 1), value=...>) -> (<Tensor[Float32], (2, 3)>)
  %4(x) = Slice(%3, (I64(0), I64(0)), (I64(1), I64(3))) {instance name: cut} primitive_attrs: {begin: (0, 0)}
      : (<Tensor[Float32], (2, 3)>, <Tuple[Int64*2], TupleShape((), ())>, <Tuple[Int64*2], TupleShape((), ())>) -> \
(<Tensor[Float32], (1, 3)>)
  Return(%4)
      : (<Tensor[Float32], (1, 3)>)
}
subgraph @second() {
  %1(CNode_1) = DoSignaturePrimitive_SyncBatchNorm(%para1_x)
      : (<Tensor[UInt8], (4)>) -> (<Tensor[UInt8], (4)>)
}
"""


@pytest.mark.parametrize(("shape", "counted"), [
    ("(2, 19, 65536)", True), ("(2, 1, 65536)", False), ("(2, 19, 4096)", False), ("(2, 64, 65536)", False)])
def test_scores_of_pixels_are_counted_apart(shape, counted):
    found = costs(node("Exp", [shape], shape))
    size = 2 * 4 * math.prod(map(int, shape.strip("()").split(", ")))
    assert (found.bytes, found.loss_bytes) == ((0, size) if counted else (size, 0))


def test_saved_graphs_are_read():
    first, second = read_graphs(TEXT.splitlines(keepends=True))
    assert [node.operator for node in first.values()] == ["BatchNorm", "TupleGetItem", "Mul", "Slice"]
    assert first["%1"].inputs == (("Float32", (2, 3)), ("Float32", (3,)))
    assert first["%1"].outputs == (("Float32", (2, 3)), ("Float32", (3,)), ("Int64", ()))
    assert first["%2"].operands == ("%1", "I64(0)")
    assert first["%3"].operands[0] == "%2"
    assert first["%4"].operands == ("%3", "(I64(0), I64(0))", "(I64(1), I64(3))")
    assert second == {"%1": Node("SyncBatchNorm", ("%para1_x",), (("UInt8", (4,)),), (("UInt8", (4,)),))}


def test_operators_without_a_kernel_and_partial_readers():
    first, second = read_graphs(TEXT.splitlines())
    assert [costs(node) for node in first.values()] == [
        Costs(0, 4 * (6 + 3) + 4 * (6 + 3) + 8, 0, 1), Costs(), Costs(0, 4 * (6 + 2 + 6), 0, 1),
        Costs(0, 4 * (3 + 3), 0, 1)]       # a slice reads no more than it writes
    assert costs(second["%1"]) == Costs(0, 8, 0, 1, 2)      # sums and squares of all devices
    assert graph_costs([first, second]) == Costs(0, 80 + 56 + 24 + 8, 0, 4, 2)


def compiled_costs():
    """Compiles a small network; returns its costs, and the variables that were changed meanwhile."""
    os.environ["MS_DEV_SAVE_GRAPHS"] = "0"
    net = nn.SequentialCell([Conv2d(3, 8, 3, 2, 1), nn.ReLU()]).set_train(False)
    found = graph_costs(compile_graphs(net, Tensor(shape=(2, 3, 64, 32), dtype=mstype.float32)))
    return found, os.environ["MS_DEV_SAVE_GRAPHS"], "MS_DEV_SAVE_GRAPHS_PATH" in os.environ


def test_a_graph_is_compiled_and_counted_but_not_run():
    result = 2 * 16 * 32 * 16
    size = 4 * (2 * 16 * 64 * 32 + 8 * 16 * 9 + result) + 4 * 2 * result
    assert in_a_process(compiled_costs) == (Costs(2 * result * 16 * 9, size, 0, 2), "0", False)


def test_error_bars_add_up_and_turn_round():
    rate, amount = Span.within(10.0, 2.0), Span(1.0, 0.5, 4.0)
    assert 100.0 / rate == Span(10.0, 5.0, 20.0)
    assert 100.0 / rate + amount == Span(11.0, 5.5, 24.0)
    assert amount * 3 == Span(3.0, 1.5, 12.0)
    assert Span(2.0, 1.0, 9.0).at_least(Span(3.0, 0.5, 4.0)) == Span(3.0, 1.0, 9.0)
    assert Span(0.2, 0.1, 0.4).text("s") == "0.20 s (0.10 to 0.40)"


@pytest.mark.parametrize(("number", "text"), [
    (0, "0"), (0.0123, "0.012"), (0.0996, "0.10"), (0.2, "0.20"), (0.999, "1.0"), (7.44, "7.4"), (9.96, "10"),
    (12.4, "12"), (1337, "1300"), (99.6, "100")])
def test_two_digits(number, text):
    assert two_digits(number) == text


def simulated_ring(ranks: int, parts: int) -> int:
    """Sums a buffer round a ring, part by part, and returns the parts that one process sends; checks the sums."""
    held = [[{rank} for _ in range(parts)] for rank in range(ranks)]
    sent = 0
    for turn in range(2 * (ranks - 1)):
        passed = [(rank, (rank - turn) % ranks) for rank in range(ranks)]
        values = [held[rank][part] for rank, part in passed]
        for (rank, part), value in zip(passed, values, strict=True):
            held[(rank + 1) % ranks][part] = held[(rank + 1) % ranks][part] | value if turn < ranks - 1 else value
        sent += 1
    assert all(part == set(range(ranks)) for buffer in held for part in buffer)
    return sent


@pytest.mark.parametrize("ranks", [2, 3, 8])
def test_a_ring_sends_what_a_simulated_one_sends(ranks):
    size, rate = 240e6, 15e9
    assert ring(ranks, size, rate) == pytest.approx(simulated_ring(ranks, ranks) * (size / ranks) / rate)
    assert ring(1, size, rate) == 0


def test_an_all_reduce_over_hosts_waits_for_links_and_network():
    card = CARDS["910A"]
    one = all_reduce(Cluster(card, 8, 1), 80e6)
    assert one.value == pytest.approx(card.latency.value + 2 * 7 / 8 * 80e6 / card.link.value)
    assert one.high == pytest.approx(card.latency.value * card.latency.factor
                                     + 2 * 7 / 8 * 80e6 / card.link.value * card.link.factor)
    # Eight hosts: each card brings its eighth of the buffer over its own network port.
    eight = all_reduce(Cluster(card, 64, 8), 80e6)
    assert eight.value == pytest.approx(2 * card.latency.value + 2 * 7 / 8 * 80e6 / card.link.value
                                        + 2 * 7 / 8 * 10e6 / card.network.value)
    assert all_reduce(Cluster(card), 80e6) == Span(0.0, 0.0, 0.0)


# Published trainings on Ascend 910 as benchmarks/published_trainings.py counts them: costs of a step on one card,
# cards, parameters.
COUNTS = {
    "FCN-8s": (Costs(21718307438592.0, 92232864116.0, 8380219400.0, 296), 1, 134502112),
    "BiSeNet V2": (Costs(2503051968512.0, 27988353590.0, 17611882504.0, 1117), 4, 5231487),
    "Fast-SCNN, four": (Costs(67093524480.0, 6109659184.0, 2933784584.0, 747), 4, 1194729),
    "Fast-SCNN, eight": (Costs(67093524480.0, 6109659184.0, 2933784584.0, 747), 8, 1194729),
    "ENet": (Costs(195462955008.0, 50497477186.0, 2815426568.0, 1545), 1, 357895),
    "ENet, encoder": (Costs(119965483008.0, 35103407230.0, 102825992.0, 1289), 1, 325930),
    "PyTorch, one": (Costs(51602227200.0, 10786411050.0, 846950408.0, 3970), 1, 351660),
    "PyTorch, eight": (Costs(51602227200.0, 10789568766.0, 846950408.0, 4166), 8, 351660),
}
FAST_SCNN_PASS = Costs(10080738304.0, 1201241804.0, 11206656.0, 160)       # over a 768x768 image
PYTORCH_LAUNCH = Constant(50e-6, "guess", "PyTorch starts each kernel from the host", 3.0)


def seconds(name: str, card: Card = CARDS["910A"]) -> Span:
    """Predicted step of a published training."""
    costs_, cards, parameters = COUNTS[name]
    return predict_step(Cluster(card, cards), costs_, 4.0 * parameters, Span(0.0, 0.0, 0.0)).device


def test_the_shares_are_those_of_the_two_trainings_of_the_calibration():
    assert seconds("FCN-8s").value == pytest.approx(0.564652, rel=0.005)
    assert seconds("BiSeNet V2").value == pytest.approx(0.728, rel=0.005)


def test_the_page_shows_the_comparison_with_six_published_figures():
    slow = replace(CARDS["910A"], launch=PYTORCH_LAUNCH)
    evaluations = predict_evaluation(Cluster(CARDS["910A"], 8), FAST_SCNN_PASS, 500, 1.0,
                                     EVALUATION.span() * (1024 * 2048 / 1e6)) * 16
    rows = [      # published, predicted, what the figure is
        (0.157, seconds("Fast-SCNN, four"), "s"),
        (8 + 20 / 60, (seconds("Fast-SCNN, eight") * 186_000 + evaluations) * (1 / 3600), "h"),
        (0.882, seconds("ENet"), "s"),
        (30.0, (seconds("ENet, encoder") * (496 * 150) + seconds("ENet") * (496 * 100)) * (1 / 3600), "h"),
        (14.398, 4.0 / seconds("PyTorch, one", slow), "images/s"),
        (74.310, 32.0 / seconds("PyTorch, eight", slow), "images/s"),
    ]
    section = (ROOT / "docs" / "ascend.md").read_text(encoding="utf-8").split("### Comparison\n")[1].split("\n#")[0]
    cells = [line.strip("| ").split(" | ")[-2:] for line in section.splitlines() if line.startswith("|")][2:]
    expected = []
    for published, predicted, unit in rows:
        factor = max(published, predicted.value) / min(published, predicted.value)
        expected.append([predicted.text(unit), f"{factor:.1f}{'' if factor <= 2 else ', missed'}"])
    assert cells == expected


@pytest.mark.slow
@pytest.mark.parametrize("name", COUNTS)
def test_the_counts_are_those_of_the_benchmark(name):
    script = ROOT / "benchmarks" / "published_trainings.py"
    done = subprocess.run([sys.executable, str(script), "--part", "counts", "--trainings", name], capture_output=True,
                          text=True, check=True)
    found = dict(re.findall(r"\b(flops|bytes|short_bytes|launches)=([\d.]+)", done.stdout.split("forward=")[0]))
    for field, number in found.items():
        assert float(number) == pytest.approx(getattr(COUNTS[name][0], field), rel=0.02), field
    assert len(found) == 4


CLUSTER = Cluster(CARDS["910A"], 8, 1)
IDLE = Span(0.0, 0.0, 0.0)


def test_kernel_times_divide_amounts_by_what_is_reached_of_the_peaks():
    card = CLUSTER.card
    times = kernel_times(Costs(card.products.value * card.product_share.value,
                               card.memory.value * card.memory_share.value,
                               2 * card.memory.value * card.short_share.value, 7,
                               loss_bytes=3 * card.memory.value * card.loss_share.value), card)
    assert [times[part].value for part in ("products", "memory", "short rows", "losses")] == pytest.approx([1, 1, 2, 3])
    assert times["products"].high == pytest.approx(card.product_share.factor)
    assert times["launches"].value == pytest.approx(7 * card.launch.value)


@pytest.mark.parametrize(("limit", "costs_", "gradients", "loader"), [
    ("products", Costs(1e15), 0.0, IDLE), ("memory", Costs(0, 1e13), 0.0, IDLE),
    ("short rows", Costs(0, 0, 1e12), 0.0, IDLE), ("losses", Costs(loss_bytes=1e12), 0.0, IDLE),
    ("launches", Costs(0, 0, 0, 10**6), 0.0, IDLE),
    ("all-reduce", Costs(), 1e12, IDLE), ("synchronised BatchNorm", Costs(reductions=10**5), 0.0, IDLE),
    ("loader", Costs(1e12), 0.0, Span(9.0, 5.0, 20.0))])
def test_the_limit_is_named(limit, costs_, gradients, loader):
    step = predict_step(CLUSTER, costs_, gradients, loader)
    assert step.limit == limit
    assert step.seconds.value == max(step.device.value, loader.value)


def test_a_step_is_the_sum_of_its_parts():
    step = Step({"products": Span(1.0, 0.5, 2.0), "memory": Span(2.0, 1.0, 4.0)}, Span(2.5, 1.8, 9.0))
    assert step.device == Span(3.0, 1.5, 6.0)
    assert step.seconds == Span(3.0, 1.8, 9.0)
    assert step.limit == "memory"


def test_a_thread_of_the_loader_decodes_images_and_makes_crops():
    decoding = Decoding(Constant(0.02, "certain", "", 1.0), Constant(0.01, "certain", "", 2.0))
    span = loading_time(decoding, image=2_000_000, crop=500_000, samples=8 / 4)
    assert (span.value, span.low, span.high) == pytest.approx((0.09, 0.085, 0.1))


def test_the_loader_makes_what_was_measured():
    # docs/performance.md: 31.2 PNG images of 1024x2048 a second on two cores, crops of 512x1024.
    assert loading_time(DECODING["png"], 1024 * 2048, 512 * 1024, 31.2 / 2).value == pytest.approx(1.0, rel=1e-3)
    measured = Decoding.measured(20.0, 1024 * 2048)
    assert loading_time(measured, 1024 * 2048, 512 * 1024, 40).value == pytest.approx(2.0)


def test_an_evaluation_is_shared_by_the_cards():
    one, host = Costs(0, CLUSTER.card.memory.value * CLUSTER.card.memory_share.value), Span(0.5, 0.5, 0.5)
    assert predict_evaluation(CLUSTER, one, 17, 2.0, host).value == pytest.approx(3 * (2.0 + 0.5))


def test_every_constant_has_a_source_and_an_error_bar():
    constants = [value for holder in (*CARDS.values(), *DECODING.values())
                 for value in vars(holder).values()]
    assert len(constants) == 10 * 2 + 2 * 3
    for constant in constants:
        assert constant.source
        assert constant.confidence in ("certain", "likely", "guess")
        assert constant.factor >= (2.0 if constant.confidence == "guess" else 1.0)
        assert math.isfinite(constant.value)
