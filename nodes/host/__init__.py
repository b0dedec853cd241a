"""Adapters between kv_core and ComfyUI; nothing outside this folder reaches into the host's `comfy` package."""
