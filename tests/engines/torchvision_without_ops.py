"""Lets torchvision's wheel of PyPI, which is built for CUDA, be imported beside a torch that is built for the CPU.

`vllm_cpu.sh` installs this as the `sitecustomize` of its virtual environment. Such a torchvision cannot load its own
operators, and its import fails at those that it describes without asking whether they are there. What vLLM takes from
it (`torchvision.transforms`) needs none of them.
"""

import importlib.abc
import sys


class _BeforeTorchvision(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == "torchvision":
            sys.meta_path.remove(self)
            import torch

            self.library = torch.library.Library("torchvision", "FRAGMENT")
            for name in ("nms", "qnms"):
                self.library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            _KEPT.append(self.library)
        return None


_KEPT = []  # an operator lives as long as its library
sys.meta_path.insert(0, _BeforeTorchvision())
