"""The Python examples of README.md run, one after another in one namespace."""
import pathlib
import re

import pytest

README = pathlib.Path(__file__).parents[2] / "README.md"


def test_examples():
    pytest.importorskip("torch")
    if not README.exists():
        pytest.skip("no README.md beside these tests")
    blocks = list(re.finditer(r"^```python\n(.*?)^```", README.read_text(), re.S | re.M))
    assert blocks, "README.md has no python example"
    names: dict = {}
    for block in blocks:
        line = README.read_text()[: block.start()].count("\n") + 1
        exec(compile("\n" * line + block.group(1), str(README), "exec"), names)
