import json
import math
import shutil

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from t2fw import finetune

TEXT = "".join(f"The square of {n} is {n * n}, and half of {n} is {n / 2}.\n" for n in range(400))


@pytest.fixture
def run(tmp_path):
    """The command, in this process, with small sizes."""
    data = tmp_path / "text.txt"
    data.write_text(TEXT)

    def command(*more, model="tiny", out="out"):
        finetune.main(["--model", str(model), "--data", str(data), "--out", str(tmp_path / out), "--device", "cpu",
                       "--length", "16", "--batch", "4", "--steps", "6", "--every", "3", "--pretrain-steps", "2", *more])
        return tmp_path / out

    return command


def weights(folder):
    return transformers.AutoModelForCausalLM.from_pretrained(folder).state_dict()


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


def test_command_and_exact_resume(run, capsys):
    out = run("--kdim", "8", "--rate", "0.003")
    assert "perplexity" in capsys.readouterr().out
    log, whole = json.loads((out / "log.json").read_text()), weights(out)
    losses = [row["eval_loss"] for row in log["history"] if "eval_loss" in row]
    assert len(losses) == 2 and losses[1] < losses[0] and math.isclose(log["perplexity"], math.exp(losses[1]))
    assert (out / "loss.png").read_bytes().startswith(b"\x89PNG")
    model = transformers.AutoModelForCausalLM.from_pretrained(out)
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    assert (model.config.model_type, model.config.rule, model.config.kdim) == ("gpt2_fast_weights", "decay", 8)
    assert model.config.use_cache and model.config.vocab_size == len(tokenizer)
    assert tokenizer.decode(tokenizer(TEXT[:90])["input_ids"]) == TEXT[:90]

    shutil.rmtree(out / "checkpoint-6")
    run("--kdim", "8", "--rate", "0.003", "--resume")
    assert same(weights(out), whole)
    assert json.loads((out / "log.json").read_text())["perplexity"] == log["perplexity"]
    with pytest.raises(SystemExit):
        run()
    assert "has checkpoints of an earlier run; expected --resume, or another folder" in capsys.readouterr().err
    with pytest.raises(ValueError, match="--kdim is None; expected 8, as of the model in .*checkpoint-6"):
        run("--resume")
    with pytest.raises(ValueError, match="--rule is 'gated'; expected 'decay', as of the model in .*checkpoint-6"):
        run("--rule", "gated", "--kdim", "8", "--resume")

    further = run("--kdim", "8", model=out, out="further")  # a converted model trains on
    assert not same(weights(further), whole)
    with pytest.raises(ValueError, match="--rule is 'attention'; expected 'decay', as of the model in .*out"):
        run("--rule", "attention", model=out, out="third")


def test_a_folder_and_attention(run, tmp_path, capsys):
    out = run("--rule", "attention", "--steps", "2")
    other = tmp_path / "other.txt"
    other.write_text(TEXT[:2000])
    again = run("--rule", "gated", "--steps", "2", "--seed", "5", "--eval-data", str(other), model=out / "pretrained", out="again")
    old, new = weights(out / "pretrained"), weights(again)
    attention = "transformer.h.0.attn."
    assert attention + "c_attn.weight" in weights(out) and attention + "fast_weights.gate_bias" in new
    assert (old["transformer.wte.weight"] - new["transformer.wte.weight"]).abs().max() < 0.01
    tokens = len(transformers.AutoTokenizer.from_pretrained(again)(TEXT[:2000])["input_ids"])
    assert f"on {tokens // 16 * 16} held-out tokens" in capsys.readouterr().out.splitlines()[-1]
    with pytest.raises(ValueError, match="--rule is 'decay'; expected 'attention', as of the model in .*checkpoint-.*"):
        run("--resume")
    run("--rule", "attention", "--steps", "3", "--resume")


@pytest.mark.parametrize("training", [True, False])
def test_autocast_is_of_every_training_and_ends_with_it(tmp_path, training):
    tokenizer = finetune.tiny_tokenizer(TEXT)
    model = finetune.tiny_model(tokenizer, 16, 1, 2, 16).train(training)
    data, before, seen = finetune.windows(tokenizer, TEXT, 16, "text"), model.lm_head.weight.clone(), []
    x, fresh = data[0]["input_ids"][None], type(model)(model.config).train(training)
    for _ in range(2):
        hook = model.lm_head.register_forward_hook(lambda module, inputs, logits: seen.append(logits.dtype))
        finetune.train(
            model, data, data[:4], tmp_path, steps=2, rate=1e-2, batch=4, every=2, device="cpu", bf16=True, save=False)
        hook.remove()
        fresh.load_state_dict(model.state_dict())
        assert torch.equal(model(x).logits, fresh(x).logits) and torch.equal(model(x, return_dict=False)[0], fresh(x).logits)
        assert all(module.training is training for module in model.modules()) and model.config.use_cache
    assert seen == [torch.bfloat16] * 6 and not torch.equal(model.lm_head.weight, before)


@pytest.mark.parametrize("change,message", [
    (["--data", "absent.txt"], "absent.txt is no file; expected text files for --data and --eval-data"),
    (["--steps", "0"], "--steps is 0; expected at least 1"),
    (["--length", "1"], "--length is 1; expected at least 2"),
    (["--rule", "rwkv"], "invalid choice: 'rwkv'"),
    (["--resume"], "has no checkpoint to --resume from"),
])
def test_wrong_arguments(run, change, message, capsys):
    with pytest.raises(SystemExit) as stop:
        run(*change)
    assert stop.value.code == 2 and message in capsys.readouterr().err


def test_too_little_text(run):
    with pytest.raises(ValueError, match=r"--data is '\d+ tokens'; expected at least one piece of --length = 99999"):
        run("--length", "99999")
    with pytest.raises(ValueError, match=r"the last twentieth of --data is '\d+ tokens'; expected at least one piece"):
        run("--length", "600")
