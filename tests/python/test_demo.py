"""The demo's script with sizes of a few seconds."""
import json
import sys

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from common import load_script


@pytest.fixture
def demo(monkeypatch):
    module = load_script("bindings/python/demo/compare_rules.py")
    text = "".join(f"def f{n}():\n    return {n} * {n}\n\n" for n in range(500))
    monkeypatch.setattr(module, "corpus", lambda: (text, text[:5000]))
    monkeypatch.setattr(module, "LENGTHS", (8, 64))
    monkeypatch.setattr(module, "SIZES", {"cpu": module.Size(16, 1, 2, 64, 4, 4, 8, 3e-3, 8, 5e-3)})
    return module


def test_table_and_plots(demo, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["compare_rules.py", "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as stop:
        demo.main()
    log, out = json.loads((tmp_path / "log.json").read_text()), capsys.readouterr().out
    assert list(log["losses"]) == ["attention", "add", "gated", "delta", "decay"]
    assert log["losses"]["attention"] < log["pretrained"] and len(set(log["losses"].values())) == 5
    near = log["losses"]["decay"] <= log["losses"]["attention"] + 0.0296
    assert bool(stop.value.code) is not near and ("decay is within" in out) is near and "TOO MUCH" not in out
    (_, first), (_, second) = log["costs"]["attention"]
    assert (first, second) == (2 * 8 * 16 * 4, 2 * 64 * 16 * 4)  # keys and values
    assert [held for _, held in log["costs"]["decay"]] == [2 * 8 * 8 * 4] * 2
    for name in ("loss.png", "generation.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
