"""The .pyi file of the extension module says what the module is."""
import ast
import inspect
import pathlib
import re
import subprocess
import sys

import pytest

import t2fw
from t2fw import _t2fw

STUB = pathlib.Path(t2fw.__file__).with_name("_t2fw.pyi")


def test_stubtest(tmp_path):
    pytest.importorskip("mypy")
    allowed = tmp_path / "allowed"
    allowed.write_text(r"t2fw\._t2fw\.Plan")  # its metaclass is pybind11's; its members are checked by themselves
    result = subprocess.run(
        [sys.executable, "-m", "mypy.stubtest", "t2fw._t2fw", "--allowlist", allowed], cwd=tmp_path, text=True,
        env={"MYPYPATH": str(STUB.parent.parent), "PYTHONPATH": str(STUB.parent.parent)}, capture_output=True)
    assert result.returncode == 0, result.stdout + result.stderr


def functions(body, owner):
    for node in body:
        if isinstance(node, ast.ClassDef):
            yield from functions(node.body, getattr(owner, node.name))
        elif isinstance(node, ast.FunctionDef) and not node.decorator_list:
            yield node, getattr(owner, node.name)


STUBBED = [pytest.param(*f, id=f[0].name) for f in functions(ast.parse(STUB.read_text()).body, _t2fw)]


@pytest.mark.parametrize("node,function", STUBBED)
def test_arguments(node, function):
    """stubtest cannot see the arguments of pybind11's functions; their documentation names them."""
    arguments = re.match(rf"{node.name}\((.*)\) -> ", inspect.getdoc(function)).group(1)
    names = re.findall(r"(\w+): ", arguments)
    assert names == [a.arg for a in node.args.args]
