"""What opens the joints of the pipeline."""

from . import attention_maps, blocks, cross_fade, curves, custom_sampling, frame_conditions, inspect, motion_grid

FILES = (custom_sampling, curves, frame_conditions, cross_fade, blocks, motion_grid, attention_maps, inspect)
