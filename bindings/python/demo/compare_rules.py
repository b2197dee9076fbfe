"""Attention against decaying fast weights, in small, as in H. H. Mao's Fine-Tuning Pre-trained Transformers into Decaying Fast
Weights (EMNLP 2022): a GPT-2 is trained on the sources of Python's own library, converted, and fine-tuned with each rule; the
same model goes on with attention for as many steps. Prints the perplexities on held-out files, and time and memory of a
generated token after texts of several lengths.

The exit status is 0 if decay's perplexity is at most 3 % above attention's, and if decoding token by token gives the logits
of the parallel pass.
"""
import argparse
import copy
import json
import math
import pathlib
import sysconfig
import time
from typing import Any, Dict, List, NamedTuple, Tuple

import matplotlib.pyplot as plt
import torch
from transformers import set_seed
from transformers.utils import logging

import t2fw
from t2fw import finetune
from t2fw.generation import generation_cost
from t2fw.nn import RULES

LENGTHS = (64, 1024, 8192)


class Size(NamedTuple):
    width: int
    layers: int
    heads: int
    length: int  # tokens of a sequence
    batch: int
    held_out: int  # sequences
    pretrain_steps: int
    pretrain_rate: float
    steps: int  # of each fine-tuning
    rate: float


SIZES = {
    "cpu": Size(128, 2, 4, 256, 12, 64, 150, 3e-3, 150, 5e-3),
    "cuda": Size(512, 8, 8, 1024, 16, 128, 600, 1e-3, 300, 1e-3),
}


def corpus() -> Tuple[str, str]:
    """The training files, and every tenth file, which is held out."""
    files = sorted(pathlib.Path(sysconfig.get_path("stdlib")).glob("*.py"))
    held_out = files[5::10]
    return finetune.read([f for f in files if f not in held_out]), finetune.read(held_out)


def token_cost(model: Any, length: int) -> Tuple[float, int]:
    """Milliseconds (median) of a token after `length` tokens, and bytes of the cache then."""
    prompt = torch.randint(len(model.get_input_embeddings().weight), (1, length), device=model.device)
    cost, _, _ = generation_cost(model, prompt)
    return cost.token_ms, cost.cache_bytes


@torch.no_grad()
def decode(model: Any, tokenizer: Any) -> Tuple[str, float]:
    """A sample, and the largest difference of its logits between decoding and the parallel pass."""
    prompt = tokenizer("def ", return_tensors="pt").input_ids.to(model.device)
    out = model.generate(prompt, do_sample=True, temperature=0.8, min_new_tokens=60, max_new_tokens=60,
                         output_logits=True, return_dict_in_generate=True)
    parallel = model(out.sequences[:, :-1]).logits[:, prompt.shape[1] - 1 :]
    return tokenizer.decode(out.sequences[0]), (torch.stack(out.logits, 1) - parallel).abs().max().item()


def plot_costs(path: pathlib.Path, costs: Dict[str, List[Tuple[float, int]]]) -> None:
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
    for name, rows in costs.items():
        axes[0].plot(LENGTHS, [ms for ms, _ in rows], marker="o", label=name)
        axes[1].plot(LENGTHS, [held / 2**20 for _, held in rows], marker="o", label=name)
    axes[0].set(xscale="log", xlabel="tokens before", ylabel="ms a generated token", ylim=(0, None))
    axes[1].set(xscale="log", yscale="log", xlabel="tokens before", ylabel="cache or state (MiB)")
    axes[0].legend()
    figure.savefig(path, dpi=120)


def report(losses: Dict[str, float], start: float, size: Size, costs: Dict[str, List[Tuple[float, int]]]) -> None:
    print(f"\nPerplexity a token on held-out files (of the pre-trained model: {math.exp(start):.2f}), after {size.steps} further "
          "steps each:")
    for name, loss in losses.items():
        print(f"  {name:10}{math.exp(loss):8.2f}   {math.exp(loss - losses['attention']) - 1:+7.1%} against attention")
    print("\nA generated token, batch of 1:        " + "".join(f"{n:>20,} tokens" for n in LENGTHS))
    for name, rows in costs.items():
        cells = "".join(f"{ms:>13.2f} ms {held / 1024:>7,.0f} KiB" for ms, held in rows)
        print(f"  {name:36}{cells}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=SIZES, default="cpu", help="cuda: a larger model, for longer")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("demo"), help="folder of log.json and plots")
    args = parser.parse_args()

    begin, size = time.monotonic(), SIZES[args.device]
    set_seed(1)
    logging.disable_progress_bar()
    text, held_out_text = corpus()
    tokenizer = finetune.tiny_tokenizer(text)
    data = finetune.windows(tokenizer, text, size.length, "text")
    held_out = finetune.windows(tokenizer, held_out_text, size.length, "held-out text")
    held_out = held_out[:: max(len(held_out) // size.held_out, 1)][: size.held_out]
    common = dict(batch=size.batch, device=args.device, bf16=args.device == "cuda", save=False)
    pretrained = finetune.tiny_model(tokenizer, size.width, size.layers, size.heads, max(LENGTHS) + size.length)
    print(f"{len(data)} sequences of {size.length} tokens to train on, {len(held_out)} held out; {pretrained.num_parameters()} "
          f"parameters; backends: {', '.join(t2fw.backends())}\npre-training with attention", flush=True)
    start = finetune.final_loss(finetune.train(
        pretrained, data, held_out, args.out, steps=size.pretrain_steps, rate=size.pretrain_rate, every=size.pretrain_steps,
        **common))

    histories, models = {}, {}
    for name in ("attention", *RULES):
        set_seed(2)
        models[name] = copy.deepcopy(pretrained)
        if name != "attention":
            t2fw.convert(models[name], name)
        print(name, flush=True)
        histories[name] = finetune.train(
            models[name], data, held_out, args.out, steps=size.steps, rate=size.rate, every=size.steps // 2, **common)
        models[name].eval()
    losses = {name: finetune.final_loss(history) for name, history in histories.items()}
    costs = {name: [token_cost(models[name], n) for n in LENGTHS] for name in ("attention", "decay")}

    sample, difference = decode(models["decay"], tokenizer)
    print(f"\nA sample, decoded token by token with decay:\n{sample}\n{'-' * 40}")
    report(losses, start, size, costs)
    finetune.plot(args.out / "loss.png", histories)
    plot_costs(args.out / "generation.png", costs)
    (args.out / "log.json").write_text(json.dumps(dict(pretrained=start, losses=losses, costs=costs, histories=histories), indent=1))
    close, same = losses["decay"] <= losses["attention"] + math.log(1.03), difference <= 1e-3
    print(f"\ndecoded and parallel logits differ by at most {difference:.1e}{'' if same else ': TOO MUCH'}\n"
          f"decay {'is' if close else 'IS NOT'} within 3 % of attention's perplexity\n"
          f"{time.monotonic() - begin:.0f} s; results in {args.out}")
    raise SystemExit(not (close and same))


if __name__ == "__main__":
    main()
