import torch

from tests.support.small_files import published  # noqa: F401

torch.set_num_threads(1)  # the goldens' tensors are too small for threads to pay
