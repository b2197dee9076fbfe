"""bench/transformer.py with sizes of a few seconds."""
import json
import pathlib
import sys

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("tabulate")

from common import load_script


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(pathlib.Path(__file__).parents[2] / "bench")
    module = load_script("bench/transformer.py")
    monkeypatch.setitem(module.SIZES, "tiny", module.Size(16, 3, 2, 32, 64, (16, 32), (8, 40), 2))
    return module


def test_tables_and_plot(bench, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["transformer.py", "--batch", "1", "2", "--out", str(tmp_path / "out")])
    bench.main()
    log, out = json.loads((tmp_path / "out.json").read_text()), capsys.readouterr().out
    assert [(p["model"], p["length"], p["batch"]) for p in log["training"]] == [
        (name, T, 64 // T) for T in (16, 32) for name in ("attention", "decay")]
    for p in log["training"]:
        assert p["step_ms"] > 0 and p["step_ms"] * p["tokens_per_second"] == pytest.approx(64e3)
    held = {(p["model"], p["length"], p["batch"]): p["cache_bytes"] for p in log["generation"]}
    assert held == {(name, T, B): B * 3 * (2 * T * 16 * 2 if name == "attention" else 2 * 8 * 8 * 4)
                    for name in ("attention", "decay") for T in (8, 40) for B in (1, 2)}  # keys and values; a state
    assert all(p["token_ms"] > 0 and p["prefill_ms"] > 0 for p in log["generation"])
    for points, value, case in (("training", "step_ms", "compiled"), ("generation", "token_ms", "batch")):
        for attention, decay in zip(*[iter(log[points])] * 2):
            assert decay["times_attention"] == attention[value] / decay[value] and attention[case] == decay[case]
    assert "left out" not in out and all(str(round(p["cache_bytes"] / 2**20, 2)) in out for p in log["generation"])
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.filterwarnings("error:No artists")  # in a legend
@pytest.mark.parametrize("left_out,points,title,panels", [
    (["--lengths"], "training", "A training step", 1), (["--train-lengths"], "generation", "A generated token", 2),
    (["--lengths", "--train-lengths"], None, None, 0)])
def test_only_what_was_measured_is_shown(bench, tmp_path, monkeypatch, capsys, left_out, points, title, panels):
    monkeypatch.setattr(sys, "argv", ["transformer.py", "--batch", "1", *left_out, "--out", str(tmp_path / "out")])
    bench.main()
    log, out = json.loads((tmp_path / "out.json").read_text()), capsys.readouterr().out
    assert [name for name in ("training", "generation") if log[name]] == [points] * (points is not None)
    assert [line.split(",")[0] for line in out.splitlines() if line.startswith("A ")] == [title] * (title is not None)
    png = tmp_path / "out.png"
    assert png.exists() is (panels > 0) and (not panels or int.from_bytes(png.read_bytes()[16:20], "big") == 750 * panels)


def test_a_failure_is_named_and_the_rest_goes_on(bench, capsys):
    def fail(name, size, case):
        return dict(model=name, case=case) if case != 2 or name == "decay" else 1 / 0

    points = bench.measure(fail, [(1,), (2,)], None)
    assert [(p["model"], p["case"]) for p in points] == [("attention", 1), ("decay", 1), ("decay", 2)]
    assert "fail of (2,) with attention is left out: ZeroDivisionError: division by zero" in capsys.readouterr().out
    for p in points:
        p["ms"] = 2.0 if p["model"] == "decay" else 3.0
    bench.compare(points, "ms", ("case",))
    assert [p["times_attention"] for p in points] == [1.0, 1.5, None]
