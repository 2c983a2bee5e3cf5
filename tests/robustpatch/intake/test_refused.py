"""Files that could run code, or are not what they are named as: refused in one line before anything of them is run."""

from __future__ import annotations

import json
import os
import pickle
import zipfile

import onnx
import pytest
import torch
from onnx import helper
from safetensors.torch import save_file

from robustpatch.errors import InvalidInput
from robustpatch.intake import look_at
from tests.robustpatch.intake import files


class Harm:
    """Unpickled, it leaves a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    path = tmp_path_factory.mktemp("exported") / "net.pt2"
    files.write_exported(files.small(), path)
    return path


def edited(source, target, end, change):
    """The archive with the member whose name ends so changed, as a function of its bytes."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for info in old.infolist():
            content = old.read(info)
            new.writestr(info.filename, change(content) if info.filename.endswith(end) else content)


def refusal(name, weights=None):
    with pytest.raises(InvalidInput) as found:
        look_at(str(name), weights)
    text = str(found.value)
    assert "\n" not in text
    return text


def test_pickled_modules(tmp_path):
    """Of a whole module nothing is unpickled, whatever its suffix; nor as weights."""
    for name in ("net.pth", "net.pt", "net.bin"):
        torch.save({"net": Harm(tmp_path / "ran")}, tmp_path / name)
        assert "a pickle, which names the code that it runs; save the network as a graph" in refusal(tmp_path / name)
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Harm(tmp_path / "ran")))
    assert "pickle" in refusal(tmp_path / "plain.pth")
    assert "could run code" in refusal("timm:resnet10t", str(tmp_path / "net.pth"))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("body", ["torch.from_file('F', True, 4)", "torch.save(x, 'F')", "'F'.from_file(True, 4)"])
def test_torchscript_that_reaches_files(body, tmp_path):
    """Not even loaded: a `__setstate__` of the file's would run then."""
    files.write_script(files.small(), tmp_path / "net.pt")
    code = f"    {body.replace('F', str(tmp_path / 'ran'))}\n    return "
    with zipfile.ZipFile(tmp_path / "net.pt") as old, zipfile.ZipFile(tmp_path / "harm.pt", "w") as new:
        for info in old.infolist():
            content = old.read(info)
            if "/intake/files" in info.filename and info.filename.endswith(".py"):
                content = content.replace(b"    return ", code.encode(), 1)
            new.writestr(info.filename, content)
    assert "by which code can reach files" in refusal(tmp_path / "harm.pt")
    assert not (tmp_path / "ran").exists()


def program(change):
    def edit(content):
        read = json.loads(content)
        change(read)
        return json.dumps(read).encode()

    return edit


def nodes(read):
    return read["graph_module"]["graph"]["nodes"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda read: nodes(read)[0].update(target="torch.os.system"), "a call of 'torch.os.system'"),
        (lambda read: nodes(read)[0].update(target="torch.ops.aten.from_file.default"), "a call of"),
        (lambda read: nodes(read)[0].update(target="torch.ops.higher_order.cond"), "a call of"),
        (lambda read: nodes(read)[0].update(name="x'); import os #"), "the text"),
        (
            lambda read: read["graph_module"]["graph"]["tensor_values"]["x"]["sizes"].__setitem__(
                0, {"as_expr": {"expr_str": "(eval)('exit')", "hint": None}}
            ),
            "the text",
        ),
        (
            lambda read: read["graph_module"]["module_call_graph"][0]["signature"].update(
                in_spec='[1, {"type": "collections.defaultdict", "context": "null", "children_spec": []}]'
            ),
            "the text 'collections.defaultdict'",
        ),
    ],
)
def test_exported_programs_that_call_more_than_operators(change, message, exported, tmp_path):
    """Names of functions, expressions and containers are looked at one by one."""
    edited(exported, tmp_path / "harm.pt2", "models/model.json", program(change))
    text = refusal(tmp_path / "harm.pt2")
    assert message in text
    assert "export the network without it" in text


def test_pickles_in_exported_programs(exported, tmp_path):
    """Sample inputs are left out unread; a pickled weight is refused."""
    harm = pickle.dumps(Harm(tmp_path / "ran"))
    edited(exported, tmp_path / "sample.pt2", "sample_inputs/model.pt", lambda _: harm)
    assert look_at(str(tmp_path / "sample.pt2")).kind == "torch.export"

    def pickled(read):
        next(iter(read["config"].values()))["use_pickle"] = True

    edited(exported, tmp_path / "weight.pt2", "model_weights_config.json", program(pickled))
    assert "a pickled object" in refusal(tmp_path / "weight.pt2")
    assert not (tmp_path / "ran").exists()


def test_onnx_that_reads_elsewhere(tmp_path):
    """Tensors come from the file's own folder alone."""
    graph = files.graph(files.small())
    tensor = graph.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../secret")
    (tmp_path / "net.onnx").write_bytes(graph.SerializeToString())
    assert "reads tensors from '../secret'; put them into a file beside it" in refusal(tmp_path / "net.onnx")
    (tmp_path / "none.onnx").write_bytes(b"no graph")
    assert "does not read" in refusal(tmp_path / "none.onnx")
    graph = files.graph(files.small())
    graph.graph.input.append(helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1]))
    (tmp_path / "two.onnx").write_bytes(graph.SerializeToString())
    assert "export a network of one input" in refusal(tmp_path / "two.onnx")


def test_folders_that_name_code(tmp_path):
    """`auto_map` is code of the folder's or of a hub's; a folder without safetensors has pickles at best."""
    assert "a folder without config.json, preprocessor_config.json, model.safetensors" in refusal(tmp_path)
    for name in ("preprocessor_config.json", "model.safetensors"):
        (tmp_path / name).write_text("{}")
    (tmp_path / "config.json").write_text(json.dumps({"auto_map": {"AutoConfig": "mine.Config"}, "model_type": "vit"}))
    assert "has auto_map" in refusal(tmp_path)
    (tmp_path / "config.json").write_text("{")
    assert "config.json cannot be read" in refusal(tmp_path)


def test_names_and_weights_that_do_not_fit(tmp_path):
    """What is wrong, and what to name instead."""
    torch.save(files.small().state_dict(), tmp_path / "weights.pt")
    save_file(files.small().state_dict(), tmp_path / "weights.safetensors")
    files.write_script(files.small(), tmp_path / "net.pt")
    assert "a state dict, which names no network; name it: --model timm:NAME" in refusal(tmp_path / "weights.pt")
    assert "a file of weights, which names no network" in refusal(tmp_path / "weights.safetensors")
    weights = str(tmp_path / "weights.safetensors")
    assert "name them: --weights FILE.safetensors" in refusal("timm:resnet10t")
    assert "which is none of timm's classifiers" in refusal("timm:hf-hub:a/b", weights)
    assert "holds its own; drop --weights" in refusal(tmp_path / "net.pt", weights)
    assert "there is no such file" in refusal(tmp_path / "no.onnx")
    with pytest.raises(InvalidInput, match="name the weights of a timm:resnet10t, or with --input-size"):
        look_at("timm:resnet10t", weights).build((32, 32))
    torch.save([1, 2], tmp_path / "list.pt")
    assert "a list; give a state dict" in refusal("timm:resnet10t", str(tmp_path / "list.pt"))


@pytest.mark.parametrize("name", ["data/weights/weight_0", "models/model.json", "code/bomb.py"])
def test_archives_that_unpack_to_far_more_than_they_are(name, exported, tmp_path):
    """Refused by what their table of contents says, before any of it is unpacked."""
    with zipfile.ZipFile(exported) as old, zipfile.ZipFile(tmp_path / "bomb.pt2", "w", zipfile.ZIP_DEFLATED) as new:
        for info in old.infolist():
            if not info.filename.endswith(name):
                new.writestr(info.filename, old.read(info))
        with new.open(f"net/{name}", "w") as file:
            for _ in range(70):
                file.write(bytes(2**20))
    assert "unpacked, where tensors are not compressed" in refusal(tmp_path / "bomb.pt2")
