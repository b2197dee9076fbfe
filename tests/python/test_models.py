import faulthandler
import socket
import subprocess
import sys
import time

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import t2fw
from t2fw import models
from t2fw.nn import RULES, DecayingFastWeights
from transformers import AutoModelForCausalLM, DynamicCache, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

pytestmark = pytest.mark.usefixtures("device")
KINDS = ["gpt2", "llama"]


def attention_model(kind, seed=0):
    torch.manual_seed(seed)
    if kind == "gpt2":
        model = GPT2LMHeadModel(GPT2Config(
            vocab_size=32, n_positions=64, n_embd=24, n_layer=2, n_head=3, bos_token_id=1, eos_token_id=31,
            scale_attn_by_inverse_layer_idx=True))
    else:
        model = LlamaForCausalLM(LlamaConfig(
            vocab_size=32, hidden_size=24, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, head_dim=8, attention_bias=True, max_position_embeddings=64, bos_token_id=1, eos_token_id=31))
    for p in model.parameters():  # biases too, and large enough that logits depend on the past
        torch.nn.init.normal_(p, std=0.3 if p.dim() > 1 else 0.5)
    return model.eval()


def converted(kind, rule="decay", kdim=None, seed=0):
    return t2fw.convert(attention_model(kind, seed), rule, kdim)


def tokens(*shape, seed=1):
    torch.manual_seed(seed)
    return torch.randint(2, 31, shape)


def near(a, b, tolerance=2e-5):
    assert a.shape == b.shape and a.isfinite().all()
    assert (a - b).abs().max() <= tolerance * b.abs().max(), (a - b).abs().max() / b.abs().max()


def projections(kind, model, i, x):
    """q, k, v and the output of v for layer i of an attention model, by its own modules; scores are q.k."""
    if kind == "gpt2":
        a = model.transformer.h[i].attn
        q, k, v = a.c_attn(x).chunk(3, -1)
        return q * a.scaling, k, v, a.c_proj(v)
    a = model.model.layers[i].self_attn
    return a.q_proj(x) * a.scaling, a.k_proj(x), a.v_proj(x), a.o_proj(a.v_proj(x).view(5, 2, 8).repeat_interleave(2, 1).view(5, -1))


@pytest.mark.parametrize("kdim", [None, 8, 11, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_conversion_keeps_the_weights(kind, kdim):
    old, new = attention_model(kind), converted(kind, kdim=kdim)
    x = torch.randn(5, 24)
    for i, block, name in models._attentions(new):
        layer = getattr(block, name).fast_weights
        q, k, v, out = projections(kind, old, i, x)
        new_q, new_k, new_v = layer.project(x).split(list(layer.rows.values()), 1)[:3]
        new_q, new_k = (a.view(5, -1, layer.kdim).repeat_interleave(n, 1) for a, n in (
            (new_q, 1), (new_k, layer.num_heads // layer.num_kv_heads)))
        q, k = q.view(5, -1, 8), k.view(5, -1, 8).repeat_interleave(layer.num_heads // layer.num_kv_heads, 1)
        q, k = q[..., :kdim], k[..., :kdim]
        scores, new_scores = (torch.einsum("thd,shd->hts", *a) for a in ((q, k), (new_q, new_k)))
        near(new_scores, scores)
        assert layer.kdim == (kdim or 8)
        near(new_v, v)
        wide_v = new_v.view(5, -1, 8).repeat_interleave(layer.num_heads // layer.num_kv_heads, 1).flatten(1)
        near(layer.out(wide_v), out)
    shared = [n for n in dict(old.named_parameters()) if "attn" not in n]
    assert len(shared) > 5 and all(torch.equal(old.get_parameter(n), new.get_parameter(n)) for n in shared)


def test_conversion_keeps_dtype():
    model = t2fw.convert(attention_model("llama").to(torch.bfloat16))
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16} and not any(m.training for m in model.modules())
    assert model(tokens(1, 4)).logits.isfinite().all()


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("kind", KINDS)
def test_cached_calls_are_the_training_pass(kind, rule):
    model, x = converted(kind, rule, 5), tokens(3, 12)
    want, cache, rows = model(x).logits, DynamicCache(), []
    for part in x.split([4, 1, 1, 3, 1, 2], 1):
        out = model(part, cache=cache, use_cache=True)
        rows.append(out.logits)
    near(torch.cat(rows, 1), want)
    assert cache.get_seq_length() == 12 and out.cache is cache
    assert (want[0, -1] - model(x[:, 6:]).logits[0, -1]).abs().max() > 1e-3  # the past matters


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", [
    dict(), dict(do_sample=True), dict(num_beams=3), dict(num_beams=3, do_sample=True), dict(num_return_sequences=2, do_sample=True)])
def test_generate(kind, how):
    model, x = converted(kind), tokens(2, 5)
    results = []
    for use_cache in (True, False):
        torch.manual_seed(0)
        results.append(model.generate(x, max_new_tokens=12, use_cache=use_cache, pad_token_id=0, **how))
    assert torch.equal(*results) and results[0].shape[1] > 7


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rule", RULES)
def test_padding(kind, rule):
    model, x = converted(kind, rule), tokens(3, 9)
    lengths = [9, 5, 1]
    for left in (True, False):
        mask = torch.stack([torch.cat([a, b] if left else [b, a]) for a, b in (
            (torch.zeros(9 - n).long(), torch.ones(n).long()) for n in lengths)])
        padded = torch.full((3, 9), 7)
        padded[mask.bool()] = torch.cat([x[i, :n] for i, n in enumerate(lengths)])
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        out = model(padded, attention_mask=mask, position_ids=positions, use_cache=True)
        for i, n in enumerate(lengths):
            alone = model(x[i : i + 1, :n], use_cache=True)
            near(out.logits[i, mask[i].bool()], alone.logits[0])
            for a, b in zip(out.cache.layers, alone.cache.layers):
                near(a.state[i], b.state[0])
        if left:
            got = model.generate(padded, attention_mask=mask, max_new_tokens=8, pad_token_id=0, eos_token_id=None)
            for i, n in enumerate(lengths):
                want = model.generate(x[i : i + 1, :n], max_new_tokens=8, pad_token_id=0, eos_token_id=None)
                assert torch.equal(got[i, 9:], want[0, n:])
    with pytest.raises(ValueError, match=r"padding_mask is \[3, 1, 9, 9\]; expected a shape \[B,T\] = \[3, 9\]"):
        model(padded, attention_mask=torch.ones(3, 1, 9, 9))


def held(cache):
    return sum(t.untyped_storage().nbytes() for layer in cache.layers for t in vars(layer).values() if torch.is_tensor(t))


@pytest.mark.parametrize("kind", KINDS)
def test_memory_does_not_grow(kind):
    model, sizes = converted(kind), []
    for n in (1, 40):
        cache = DynamicCache(config=model.config)
        model.generate(tokens(2, 5), max_new_tokens=n, eos_token_id=None, pad_token_id=0, cache=cache)
        assert cache.get_seq_length() == 4 + n
        sizes.append(held(cache))
    heads = model.config.num_attention_heads
    assert sizes == [2 * 2 * heads * 8 * 8 * 4] * 2


def test_cache_operations():
    model = converted("gpt2")
    x, more = tokens(3, 6), tokens(3, 1, seed=2)
    want = model(torch.cat([x, more], 1)).logits[:, -1]

    def cache():
        return model(x, use_cache=True).cache

    def last(c, rows):
        return model(more[rows], cache=c, use_cache=True).logits[:, -1]

    rows = torch.tensor([2, 0, 0])
    for name in ("reorder_cache", "batch_select_indices"):
        c = cache()
        getattr(c, name)(rows)
        near(last(c, rows), want[rows])
    c = cache()
    c.batch_repeat_interleave(2)
    near(last(c, torch.arange(3).repeat_interleave(2)), want.repeat_interleave(2, 0))
    for layer in c.layers:
        layer.offload()
        assert layer.state.device.type == "cpu"
    c.reset()
    assert c.get_seq_length() == 0
    near(model(x, cache=c).logits, model(x).logits)
    c.crop(0)
    with pytest.raises(ValueError, match="tokens_to_remove is 1; expected 0: a state of fast weights cannot be taken back"):
        c.crop(1)
    attention = attention_model("gpt2")(x, use_cache=True).cache
    with pytest.raises(ValueError, match="cache holds a DynamicLayer in use; expected a new cache, or one of this model"):
        model(x, cache=attention)


@pytest.mark.parametrize("rule,kdim", [(rule, None) for rule in RULES] + [("decay", 3)])
@pytest.mark.parametrize("kind", KINDS)
def test_saved_and_loaded(kind, rule, kdim, tmp_path):
    model, x = converted(kind, rule, kdim), tokens(2, 7)
    assert all(m.rule == rule for m in model.modules() if isinstance(m, DecayingFastWeights))
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(again) is type(model) and (again.config.rule, again.config.kdim) == (rule, kdim)
    assert torch.equal(again.to(x.device)(x).logits, model(x).logits)
    half = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16).to(x.device)
    near(half(x, use_cache=True).logits.float(), model(x).logits, 0.1)


def gradients(model, x):
    model.zero_grad()
    loss = model(input_ids=x, labels=x).loss
    loss.backward()
    return [loss.detach(), *(p.grad.clone() for p in model.parameters())]


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_checkpointing_and_compile(kind):
    model, x = converted(kind).train(), tokens(2, 10)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    want = gradients(model, x)
    assert all(g.abs().sum() > 0 for g in want)
    torch._dynamo.reset()
    compiled = torch.compile(model)
    for got, expected in zip(gradients(compiled, x), want):
        near(got, expected)
    model.activation_checkpointing_enable()
    for got, expected in zip(gradients(model, x), want):
        near(got, expected)


def distributed(rank, folder, port):
    faulthandler.dump_traceback_later(190, exit=True)  # says where it hangs, before it is killed
    torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    model = converted("gpt2")
    x = tokens(4, 10)[2 * rank : 2 * rank + 2]
    parallel = torch.nn.parallel.DistributedDataParallel(model)
    parallel(input_ids=x, labels=x).loss.backward()
    torch.save([p.grad for p in model.parameters()], f"{folder}/{rank}")
    torch.distributed.barrier()  # neither leaves while the other still needs it
    torch.distributed.destroy_process_group()


def test_data_parallel(device, tmp_path):
    if device != "cpu":
        pytest.skip("two processes of gloo, on the CPU")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    both, end = torch.multiprocessing.spawn(distributed, (str(tmp_path), port), nprocs=2, join=False), time.monotonic() + 200
    while not both.join(timeout=5) and time.monotonic() < end:
        pass
    for process in both.processes:
        process.kill()
    assert [process.exitcode for process in both.processes] == [0, 0]
    want = gradients(converted("gpt2"), tokens(4, 10))[1:]
    for rank in "01":
        for got, expected in zip(torch.load(tmp_path / rank), want):
            near(got, expected)


def test_trainer(tmp_path):
    model = converted("gpt2").train()
    data = [dict(input_ids=row, labels=row) for row in tokens(8, 12).cpu()]
    settings = transformers.TrainingArguments(
        tmp_path, max_steps=20, learning_rate=1e-2, per_device_train_batch_size=4, logging_steps=1, save_steps=20,
        report_to=[], disable_tqdm=True)
    with torch.device("cpu"):
        trainer = transformers.Trainer(model, settings, train_dataset=data)
        trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert len(losses) == 20 and losses[-1] < losses[0] - 0.4
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint-20")
    x = data[0]["input_ids"][None].to(model.device)
    assert torch.equal(again.to(model.device)(x).logits, model.eval()(x).logits)


@pytest.mark.parametrize("make,args,message", [
    (lambda: torch.nn.Linear(1, 1), {}, "model is 'Linear'; expected one of GPT2LMHeadModel, LlamaForCausalLM"),
    (lambda: converted("gpt2"), {}, "model is 'GPT2FastWeightsLMHeadModel'; expected one of GPT2LMHeadModel, LlamaForCausalLM"),
    (lambda: attention_model("gpt2"), dict(rule="rwkv"), "rule is 'rwkv'; expected one of add, gated, delta, decay"),
    (lambda: attention_model("llama"), dict(kdim=0), "kdim is 0; expected a positive number or None"),
    (lambda: GPT2LMHeadModel(GPT2Config(vocab_size=9, n_embd=8, n_layer=1, n_head=2, add_cross_attention=True)), {},
     "model.config.add_cross_attention is True; expected False"),
])
def test_wrong_arguments(make, args, message):
    model = make()
    before = type(model)
    with pytest.raises(ValueError) as error:
        t2fw.convert(model, **args)
    assert str(error.value) == message and type(model) is before


def test_package_needs_neither_torch_nor_transformers():
    code = "import sys; sys.modules.update(torch=None, transformers=None); import t2fw; t2fw.backends()"
    subprocess.run([sys.executable, "-c", code], check=True)
