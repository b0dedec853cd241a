"""The pack in this process: loaded under another name, beside ComfyUI's own nodes.py."""

import sys


def test_nodes_means_the_hosts_file(pack_nodes, comfyui):
    import nodes

    assert nodes.__file__ == str(comfyui / "nodes.py")
    assert sys.modules["kandinsky_video_pack.nodes"].__file__.endswith("__init__.py")
    assert all(node.__module__.startswith("kandinsky_video_pack.nodes.") for node in pack_nodes.values())


def test_computes_on_the_cpu(pack):
    import comfy.model_management

    assert comfy.model_management.get_torch_device().type == "cpu"


def test_the_server_has_the_same_nodes(pack_nodes, server):
    info = server.client.object_info()
    assert set(pack_nodes) == {name for name in info if info[name]["python_module"] == "custom_nodes.kandinsky-video"}
