"""Kandinsky Video 1.1 in plain PyTorch: the networks, their sampling and their files, without a host."""
