import torch

torch.set_num_threads(1)  # the goldens' tensors are too small for threads to pay
