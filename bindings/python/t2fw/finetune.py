"""Fine-tunes a pre-trained GPT-2 or Llama into decaying fast weights on text files.

In --out lie the fine-tuned model with its tokenizer, checkpoints, log.json (arguments, losses, perplexity) and loss.png.
"""
import argparse
import copy
import json
import math
import pathlib
from typing import Any, Dict, List, Optional, Sequence, Tuple

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from tokenizers import ByteLevelBPETokenizer
from torch import Tensor
from transformers import (
    AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast, Trainer, TrainingArguments, set_seed,
)
from transformers.trainer_callback import ProgressCallback
from transformers.trainer_utils import get_last_checkpoint
from transformers.utils import logging

import t2fw
import t2fw.models
from t2fw.nn import RULES, expect

Windows = List[Dict[str, Tensor]]


def tiny_tokenizer(text: str, vocabulary: int = 1024) -> Any:
    """A byte-level BPE as GPT-2's, of `text`; <|endoftext|> begins, ends and pads."""
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(text.splitlines(keepends=True), vocabulary, special_tokens=["<|endoftext|>"], show_progress=False)
    special = dict.fromkeys(("bos_token", "eos_token", "pad_token"), "<|endoftext|>")
    return PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, **special)


def tiny_model(tokenizer: Any, width: int = 128, layers: int = 2, heads: int = 4, positions: int = 1024) -> Any:
    """A GPT-2 to be trained from nothing. Its weights start larger than GPT-2's 0.02, which is for widths from 768 on."""
    end = tokenizer.eos_token_id
    return GPT2LMHeadModel(GPT2Config(
        vocab_size=len(tokenizer), n_embd=width, n_layer=layers, n_head=heads, n_positions=positions, bos_token_id=end,
        eos_token_id=end, pad_token_id=end, initializer_range=width**-0.5, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0))


def windows(tokenizer: Any, text: str, length: int, name: str) -> Windows:
    """The text's tokens in pieces of `length`, as Trainer takes them; what is left over at the end is dropped."""
    tokens = torch.tensor(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
    expect(name, f"{len(tokens)} tokens", len(tokens) >= length, f"at least one piece of --length = {length}")
    return [dict(input_ids=row, labels=row) for row in tokens[: len(tokens) // length * length].view(-1, length)]


class Bar(ProgressCallback):
    """transformers' progress bar with the last losses behind it, instead of lines above it and bars of evaluations."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        super().on_train_begin(args, state, control, **kwargs)
        self.losses: Dict[str, str] = {}

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        self.losses.update({k: f"{logs[k]:.3f}" for k in ("loss", "eval_loss") if k in logs})
        if self.training_bar is not None:
            self.training_bar.set_postfix(self.losses)

    def on_prediction_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """No bar."""


def train(
    model: Any, data: Windows, held_out: Windows, out: pathlib.Path, *, steps: int, rate: float, batch: int, every: int,
    device: str, bf16: bool = False, save: bool = True, resume: Optional[str] = None,
) -> List[Dict[str, float]]:
    """transformers.Trainer's loop: warm-up, cosine, gradients clipped to 1. -> its log, with eval_loss every `every` steps.

    With bf16 all of it is under autocast, evaluations too. The model comes back without, in the mode it came in."""
    settings = TrainingArguments(
        str(out), max_steps=steps, learning_rate=rate, per_device_train_batch_size=batch, per_device_eval_batch_size=batch,
        warmup_steps=max(steps // 10, 1), lr_scheduler_type="cosine", weight_decay=0.01, logging_steps=max(every // 10, 1),
        eval_strategy="steps", eval_steps=every, save_strategy="steps" if save else "no", save_steps=every,
        save_total_limit=2, prediction_loss_only=True, use_cpu=device == "cpu", bf16=bf16, report_to="none",
        dataloader_pin_memory=device != "cpu")
    model.config.use_cache = False
    # A copy, of the same weights: accelerate replaces the forward of what it prepares, and marks it, for good. Its
    # unwrap_model takes off transformers' decorators too, and leaves the mark, with which a second training is without autocast.
    trainer = Trainer(copy.copy(model), settings, train_dataset=data, eval_dataset=held_out)
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(Bar)
    trainer.train(resume_from_checkpoint=resume)
    if steps % every:
        trainer.evaluate()
    model.config.use_cache = True
    model.train(model.training)  # the copy has changed the mode of all within
    return trainer.state.log_history


def final_loss(history: Sequence[Dict[str, float]]) -> float:
    return [row["eval_loss"] for row in history if "eval_loss" in row][-1]


def plot(path: pathlib.Path, histories: Dict[str, Sequence[Dict[str, float]]]) -> None:
    """Training (thin) and evaluation losses over steps, a colour a name."""
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for i, (name, history) in enumerate(histories.items()):
        for key, style in (("loss", dict(alpha=0.3, linewidth=1)), ("eval_loss", dict(marker="o", label=name))):
            points = [(row["step"], row[key]) for row in history if key in row]
            axes.plot(*zip(*points), color=f"C{i}", **style)
    axes.set(xlabel="step", ylabel="loss (nats a token)", title="Fine-tuning: evaluation (dots) and training loss")
    axes.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def read(files: Sequence[pathlib.Path]) -> str:
    return "".join(f.read_text(encoding="utf-8", errors="replace") for f in files)


def arguments(argv: Optional[Sequence[str]]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m t2fw.finetune", description=__doc__)
    parser.add_argument("--model", required=True,
                        help="a name on the hub, a folder, or `tiny`: a small GPT-2 that is first trained on the same text")
    parser.add_argument("--data", type=pathlib.Path, nargs="+", required=True, metavar="FILE", help="text to train on")
    parser.add_argument("--eval-data", type=pathlib.Path, nargs="+", metavar="FILE",
                        help="text to evaluate on (default: the last twentieth of --data)")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("finetuned"), help="folder for all results")
    parser.add_argument("--rule", choices=[*RULES, "attention"], default="decay", help="attention: trained on as it is")
    parser.add_argument("--kdim", type=int, help="memory slots a head (default: the head size)")
    parser.add_argument("--length", type=int, default=256, help="tokens of a training sequence")
    parser.add_argument("--batch", type=int, default=16, help="sequences of a step")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--every", type=int, default=100, help="steps from an evaluation and checkpoint to the next")
    parser.add_argument("--rate", type=float, default=5e-4, help="highest learning rate")
    parser.add_argument("--pretrain-steps", type=int, default=500, help="of --model tiny")
    parser.add_argument("--bf16", action="store_true", help="autocast to bfloat16")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint in --out")
    args = parser.parse_args(argv)
    for file in [*args.data, *(args.eval_data or [])]:
        if not file.is_file():
            parser.error(f"{file} is no file; expected text files for --data and --eval-data")
    for name, least in dict(length=2, batch=1, steps=1, every=1, pretrain_steps=1).items():
        if getattr(args, name) < least:
            parser.error(f"--{name.replace('_', '-')} is {getattr(args, name)}; expected at least {least}")
    last = get_last_checkpoint(str(args.out)) if args.out.is_dir() else None
    if args.resume and last is None:
        parser.error(f"--out {args.out} has no checkpoint to --resume from")
    if last and not args.resume:  # which would later take the one of the most steps, of whichever run
        parser.error(f"--out {args.out} has checkpoints of an earlier run; expected --resume, or another folder")
    return args


def texts(args: argparse.Namespace) -> Tuple[str, str]:
    """To train on, and to evaluate on."""
    text = read(args.data)
    cut = len(text) if args.eval_data else len(text) * 19 // 20
    return text[:cut], read(args.eval_data) if args.eval_data else text[cut:]


def main(argv: Optional[Sequence[str]] = None) -> None:
    args = arguments(argv)
    set_seed(args.seed)
    logging.disable_progress_bar()
    text, held_out_text = texts(args)
    common = dict(batch=args.batch, every=args.every, device=args.device, bf16=args.bf16)
    checkpoint = get_last_checkpoint(str(args.out)) if args.resume else None
    source = str(args.out / "pretrained") if args.model == "tiny" else args.model
    make = args.model == "tiny" and not checkpoint
    tokenizer = tiny_tokenizer(text) if make else AutoTokenizer.from_pretrained(source)
    held_out_name = "--eval-data" if args.eval_data else "the last twentieth of --data"
    data, held_out = (windows(tokenizer, t, args.length, n) for t, n in ((text, "--data"), (held_out_text, held_out_name)))
    if make:
        model = tiny_model(tokenizer, positions=max(args.length, 1024))
        train(model, data, held_out, args.out / "pretrained", steps=args.pretrain_steps, rate=3e-3, save=False, **common)
        model.save_pretrained(source)
        tokenizer.save_pretrained(source)
    else:
        model = AutoModelForCausalLM.from_pretrained(checkpoint or source, dtype=torch.float32)
    positions = getattr(model.config, "n_positions", args.length)
    expect("--length", args.length, args.length <= positions, f"at most the model's {positions} positions")
    if args.rule != "attention" and not checkpoint and not hasattr(model.config, "rule"):
        t2fw.convert(model, args.rule, args.kdim)
    else:  # converted already, or not to be
        for name, got, none in (("--rule", args.rule, "attention"), ("--kdim", args.kdim, None)):
            its = getattr(model.config, name[2:], none)
            expect(name, got, got == its, f"{its!r}, as of the model in {checkpoint or source}")
    history = train(model, data, held_out, args.out, steps=args.steps, rate=args.rate, resume=checkpoint, **common)
    model.save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)
    perplexity = math.exp(final_loss(history))
    log = dict(arguments={k: str(v) for k, v in vars(args).items()}, perplexity=perplexity, history=history)
    (args.out / "log.json").write_text(json.dumps(log, indent=1))
    plot(args.out / "loss.png", {args.rule: history})
    print(f"perplexity {perplexity:.3f} a token on {len(held_out) * args.length} held-out tokens; results in {args.out}")


if __name__ == "__main__":
    main()
