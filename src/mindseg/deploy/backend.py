"""OpenVINO in the place of MindSpore where a network segments images on a CPU.

Each graph that a predictor runs is exported to ONNX, in memory, when it is first needed. Resizing, windows and means of
several passes stay in MindSpore, so every mode of evaluation works.
"""
import time
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, NoReturn

import numpy as np

from mindspore import Tensor, nn

from mindseg.checkpoint import load_network
from mindseg.compat import device_target
from mindseg.config import Config
from mindseg.errors import UserError, first_line
from mindseg.inference.network import Forward, ForwardWithConfidence, NetworkPredictor, run_compiled
from mindseg.logs import log
from mindseg.models.normalize import Normalize

if TYPE_CHECKING:
    import openvino

_MOST_GRAPHS = 8        # each has its own copy of the weights, half a gigabyte for FCN-8s
_MOST_DIFFERENT = 1e-4      # share of pixels
_REMEDY = "use --backend mindspore, and report the network"
Answer = Tensor | tuple[Tensor, ...]


@cache
def openvino_core() -> "openvino.Core":
    """OpenVINO, once a process.

    On processors with AMX each of its cores replaces the stack on which signals are handled, and puts back the one
    before when it is deleted. Deleted in another order than they were made, they leave a stack that is gone; the next
    Ctrl-C would crash the process (seen with OpenVINO 2026.4).
    """
    import openvino
    return openvino.Core()


def use_backend(name: str, predictor: NetworkPredictor, cfg: Config, ckpt_path: str) -> None:
    """Chooses the program that runs the network of a predictor.

    The first answer of OpenVINO is compared with MindSpore's, see :meth:`OpenVinoRunner.compare`.

    Args:
        name: ``mindspore``, ``openvino``, or ``auto``: the one that is faster at the first image, and MindSpore if
            OpenVINO cannot be used.
        predictor: Predictor of a checkpoint; its runner is replaced.
        cfg: Configuration.
        ckpt_path: The checkpoint.

    Raises:
        UserError: ``openvino`` was asked for and cannot be used. What is wrong with the network shows at the first
            image.
    """
    if name == "mindspore":
        return
    try:
        predictor.runner = FirstImage(predictor, OpenVinoRunner(cfg, ckpt_path), name == "openvino")
    except UserError as error:
        if name == "openvino":
            raise
        log.info("backend mindspore: %s", error)


class OpenVinoRunner:
    """Runner of a predictor; see :class:`NetworkPredictor`.

    Args:
        cfg: Configuration.
        ckpt_path: Checkpoint of the predictor's network.

    Raises:
        UserError: The device is no CPU, or a package is missing.
    """

    def __init__(self, cfg: Config, ckpt_path: str) -> None:
        if device_target() != "CPU":
            raise UserError(f"--backend openvino: runs on a CPU, but the device is {device_target()}; use --backend "
                            "mindspore, or set runtime.device_target=CPU")
        try:
            import openvino  # noqa: F401

            from mindseg.deploy import exporter, onnx_graph
        except ImportError as error:
            raise UserError(f"--backend openvino: the package {error.name} is missing; pip install -r "
                            "requirements-deploy.txt") from None
        self._core, self._exporter, self._onnx_graph = openvino_core(), exporter, onnx_graph
        # The predictor's own cells may hold operators that cannot be exported.
        self._net = load_network(cfg, ckpt_path)
        self._normalize = Normalize(cfg.data.mean, cfg.data.std, cfg.data.value_range)
        self._settings = cfg.export
        self._options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": cfg.runtime.threads}
        self._requests = {}
        self._full = False

    def __call__(self, cell: nn.Cell, *arrays: np.ndarray) -> Answer:
        """Runs a cell; images of more sizes than fit are left to MindSpore."""
        key = (id(cell), *(array.shape for array in arrays))
        if key not in self._requests:
            if len(self._requests) == _MOST_GRAPHS:
                if not self._full:
                    log.info("backend openvino: has %d graphs; images of further sizes run in MindSpore", _MOST_GRAPHS)
                self._full = True
                return run_compiled(cell, *arrays)
            self._requests[key] = self._compile(cell, arrays)
        answers = tuple(map(Tensor, self._requests[key].infer(list(arrays)).to_tuple()))
        return answers if len(answers) > 1 else answers[0]

    def _compile(self, cell: nn.Cell, arrays: tuple[np.ndarray, ...]) -> "openvino.InferRequest":
        graphs = self._onnx_graph
        to_logits = _logits_cell(cell, self._net, self._normalize)
        model = graphs.check_graph(self._exporter.to_onnx(to_logits, list(map(Tensor, arrays)), self._settings))
        if isinstance(cell, ForwardWithConfidence):
            graphs.append_confidence(model, self._exporter.CONFIDENCE_NAME, cell.confidence.temperature)
        if isinstance(cell, ForwardWithConfidence) or cell.ids:
            graphs.append_argmax(model)
        try:
            model = self._core.read_model(model.SerializeToString())
            return self._core.compile_model(model, "CPU", self._options).create_infer_request()
        except RuntimeError as error:
            raise UserError(f"--backend openvino: cannot compile the network ({first_line(error)}); "
                            f"{_REMEDY}") from error

    def compare(self, cell: nn.Cell, arrays: tuple[np.ndarray, ...], ours: Answer, theirs: Answer) -> str:
        """Compares OpenVINO's answer with MindSpore's, and says how they agree.

        A class counts as equal if its logit is MindSpore's highest one up to rounding. Few pixels may have others:
        values also tie in ENet's max-pooling, whose indices move whole features.

        Args:
            cell: Cell that both have run.
            arrays: Its arguments.
            ours: Answer of MindSpore.
            theirs: Answer of OpenVINO.

        Raises:
            UserError: More classes differ than ties explain.
        """
        ours, theirs = _arrays(ours), _arrays(theirs)
        if all(map(np.array_equal, ours, theirs)):
            return "equal answers"
        reference = run_compiled(_logits_cell(cell), *arrays).asnumpy()
        ids = theirs[0] if theirs[0].ndim == 3 else theirs[0].argmax(1)
        chosen = np.take_along_axis(reference, ids[:, None].astype(np.int64), 1)[:, 0]
        limit = self._exporter.TOLERANCE * max(1.0, float(np.abs(reference).max()))
        share = 1 - float((reference.max(1) - chosen <= limit).mean())
        if share > _MOST_DIFFERENT:
            raise UserError(f"--backend openvino: {100 * share:.3g} % of the first image's pixels get other classes "
                            f"than in MindSpore (at most {100 * _MOST_DIFFERENT:g} % is accepted); {_REMEDY}")
        return f"classes equal but for ties ({100 * share:.2g} % of the pixels)"


class FirstImage:
    """Runner of a predictor's first image: both programs run it, then one of them takes this runner's place.

    Args:
        predictor: Predictor.
        openvino: Runner with OpenVINO.
        required: Take OpenVINO even if it is slower, and nothing else if it fails.
    """

    def __init__(self, predictor: NetworkPredictor, openvino: OpenVinoRunner, required: bool) -> None:
        self.predictor, self.openvino, self.required = predictor, openvino, required

    def __call__(self, cell: nn.Cell, *arrays: np.ndarray) -> Answer:
        """Runs a cell, and decides.

        Raises:
            UserError: OpenVINO is required and cannot run the cell, or answers something else than MindSpore.
        """
        ours, seconds = _timed(run_compiled, cell, arrays)
        try:
            theirs, their_seconds = _timed(self.openvino, cell, arrays)
            agreement = self.openvino.compare(cell, arrays, ours, theirs)
        except UserError as error:
            if self.required:
                self.predictor.runner = _refusal(error)
                raise
            self.predictor.runner = run_compiled
            log.info("backend mindspore: %s", error)
            return ours
        if self.required or their_seconds < seconds:
            self.predictor.runner, self.predictor.backend = self.openvino, "openvino"
        else:
            self.predictor.runner = run_compiled
        log.info("backend %s: a run of the network takes %.0f ms in OpenVINO, %.0f ms in MindSpore; %s",
                 self.predictor.backend, 1000 * their_seconds, 1000 * seconds, agreement)
        return theirs if self.predictor.runner is self.openvino else ours


def _refusal(error: UserError) -> Callable:
    def refuse(cell: nn.Cell, *arrays: np.ndarray) -> NoReturn:
        raise error

    return refuse


def _logits_cell(cell: nn.Cell, net: nn.Cell | None = None, normalize: Normalize | None = None) -> Forward:
    """The cell of the logits that a predictor's cell makes its answer of.

    Args:
        cell: ``Forward`` or ``ForwardWithConfidence``.
        net: Network to take instead of the cell's own.
        normalize: Normalisation to take instead of the cell's own.
    """
    forward = cell.to_logits if isinstance(cell, ForwardWithConfidence) else cell
    net, normalize = net or forward.net, normalize or forward.normalize
    return Forward(net, normalize, forward.num_classes, ids=False, small=forward.small).set_train(False)


def _arrays(answer: Answer) -> list[np.ndarray]:
    return [part.asnumpy() for part in (answer if isinstance(answer, tuple) else (answer,))]


def _timed(runner: Callable, cell: nn.Cell, arrays: tuple[np.ndarray, ...]) -> tuple[Answer, float]:
    """Answer, and the seconds of the faster of two runs after the first one, which compiles."""
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        answer = runner(cell, *arrays)
        _arrays(answer)         # MindSpore works on until somebody reads
        seconds.append(time.perf_counter() - started)
    return answer, min(seconds[1:])
