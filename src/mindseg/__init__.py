"""Semantic segmentation with MindSpore: Fast-SCNN, FCN-8s, ENet and BiSeNet V2.

Importing this package prepares the process environment and must come before ``import mindspore``.
"""
import os
import sys
import warnings
from typing import Any

from mindseg.version import __version__ as __version__

# MindSpore >= 2.9 ships oneDNN 3.10, which runs every k > 1 convolution through a reference kernel on
# AVX-512 machines (150 times slower). The cap is read once, when the library is loaded: docs/performance.md.
if "ONEDNN_MAX_CPU_ISA" not in os.environ:
    if "mindspore" in sys.modules:
        warnings.warn(
            "mindspore was imported before mindseg: convolutions may run 150 times slower on AVX-512 CPUs. "
            "Import mindseg first or set ONEDNN_MAX_CPU_ISA=AVX2.", RuntimeWarning, stacklevel=2)
    os.environ["ONEDNN_MAX_CPU_ISA"] = "AVX2"

# Threads of our own operators (cpu_kernels) sleep while they wait for work: MindSpore's threads need the cores.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# MindSpore's warnings (a missing Ascend toolkit on a CPU, say) would drown our own lines; 3 shows errors only.
os.environ.setdefault("GLOG_v", "3")


def __getattr__(name: str) -> Any:
    """Loads ``mindseg.load`` and ``mindseg.create_model`` when they are first used: the latter needs MindSpore."""
    if name == "load":
        from mindseg.inference.loading import load
        return load
    if name == "create_model":
        from mindseg.models import create_model
        return create_model
    raise AttributeError(f"module 'mindseg' has no attribute '{name}'")
