"""The speed of `python -m train` beside nanoGPT's, at nanoGPT's recipe for a CPU, on one core.

Needs two paths: a checkout of github.com/karpathy/nanoGPT, and tinyshakespeare as a text file
(`data/shakespeare_char/input.txt` of that checkout, once its `prepare.py` has run). Without them it
says so and ends.

1. Tokens per second: blocks of 8 steps of every arm take turns in one process, at 12 sequences of
   64 tokens, 4 layers of width 128, eager. A step is a batch, forward, backward, clipping, update.
2. Time to a loss: the whole processes take turns, nanoGPT's command of its README against
   `python -m train` with fewer steps; both are evaluated on the whole validation split by the same
   code. The time holds everything that the process does, its start and its evaluations too.

All times are CPU seconds, which other jobs on the machine disturb less than the clock.
Run: python benchmarks/nanogpt.py NANOGPT TEXT     (BLOCKS=25 ROUNDS=3 TRAIN_STEPS=500: defaults)
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import pickle
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from train.data import Corpus, batch, load_corpus
from train.evaluate import evaluate
from train.hardware import Hardware, choose_hardware
from train.model import Shape, Transformer, cross_entropy
from train.optimizer import clip_gradients, gradients, make_optimizer

ROUNDS = int(os.environ.get("ROUNDS", "3"))
BLOCKS = int(os.environ.get("BLOCKS", "25"))
TRAIN_STEPS = int(os.environ.get("TRAIN_STEPS", "500"))
ROOT = Path(__file__).resolve().parents[1]
STEPS_PER_BLOCK = 8
SEQUENCES, LENGTH = 12, 64
TOKENS = SEQUENCES * LENGTH
# A SwiGLU of 341 has the products of nanoGPT's MLP of 512 (3 x 341 = 2 x 512); 336 is the next
# smaller width that vectors like. 352 is the default of train.
WIDTHS = (352, 336)
RECIPE = (
    "config/train_shakespeare_char.py --device=cpu --compile=False --eval_iters=20 "
    "--log_interval=1 --block_size=64 --batch_size=12 --n_layer=4 --n_head=4 --n_embd=128 "
    "--max_iters=2000 --lr_decay_iters=2000 --dropout=0.0"
).split()


def write_data(checkout: Path, text: str) -> Path:
    """What nanoGPT's prepare.py writes, and the same tokens for train; returns the latter."""
    characters = sorted(set(text))
    number = {character: index for index, character in enumerate(characters)}
    tokens = np.array([number[character] for character in text], dtype=np.uint16)
    split = int(len(tokens) * 0.9)
    folder = checkout / "data/shakespeare_char"
    folder.mkdir(parents=True, exist_ok=True)
    tokens[:split].tofile(folder / "train.bin")
    tokens[split:].tofile(folder / "val.bin")
    meta = {"vocab_size": len(characters), "stoi": number, "itos": dict(enumerate(characters))}
    (folder / "meta.pkl").write_bytes(pickle.dumps(meta))
    np.save(checkout / "tokens.npy", tokens)
    return checkout / "tokens.npy"


def nanogpt_step(checkout: Path, corpus: Corpus, *, is_fused: bool) -> Callable[[], None]:
    """A step as its train.py takes it; `is_fused` gives it the optimizer that train uses."""
    module: Any = importlib.import_module("model")
    settings = module.GPTConfig(
        block_size=LENGTH,
        vocab_size=corpus.vocab_size,
        n_layer=4,
        n_head=4,
        n_embd=128,
        dropout=0.0,
        bias=False,
    )
    with contextlib.redirect_stdout(io.StringIO()):
        model = module.GPT(settings)
        optimizer = model.configure_optimizers(0.1, 1e-3, (0.9, 0.99), "cpu")
    if is_fused:
        optimizer = torch.optim.AdamW(
            optimizer.param_groups, lr=1e-3, betas=(0.9, 0.99), fused=True
        )
    data = np.memmap(checkout / "data/shakespeare_char/train.bin", dtype=np.uint16, mode="r")

    def step() -> None:
        starts = torch.randint(len(data) - LENGTH, (SEQUENCES,)).tolist()
        inputs, targets = (
            torch.stack(
                [torch.from_numpy(data[i + o : i + o + LENGTH].astype(np.int64)) for i in starts]
            )
            for o in (0, 1)
        )
        _, loss = model(inputs, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()

    return step


def train_step(corpus: Corpus, hardware: Hardware, d_ff: int) -> Callable[[], None]:
    """A step as train/loop.py takes it."""
    model = Transformer(Shape(corpus.vocab_size, LENGTH, 128, 4, 4, d_ff))
    optimizer = make_optimizer(model, learning_rate=1e-3, weight_decay=0.1)
    steps = iter(range(10**9))

    def step() -> None:
        inputs, targets = batch(
            corpus.train,
            seed=1,
            step=next(steps),
            batch_size=SEQUENCES,
            context_length=LENGTH,
        )
        with hardware.autocast():
            logits = model(inputs)
        loss = cross_entropy(logits, targets)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        clip_gradients(gradients(optimizer), 1.0)
        loss.item()
        optimizer.step()

    return step


def throughput(checkout: Path, corpus: Corpus) -> None:
    """Prints tokens per CPU second of every arm, and their ratio to nanoGPT's step beside them."""
    fp32, auto = (choose_hardware("cpu", precision) for precision in ("fp32", "auto"))
    arms = {
        "nanoGPT, fp32": nanogpt_step(checkout, corpus, is_fused=False),
        "nanoGPT, fp32, fused AdamW": nanogpt_step(checkout, corpus, is_fused=True),
    }
    arms |= {f"train, fp32, d_ff {w}": train_step(corpus, fp32, w) for w in WIDTHS}
    if auto.is_bf16:
        arms |= {f"train, bf16, d_ff {w}": train_step(corpus, auto, w) for w in WIDTHS}
    names = list(arms)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(-1, BLOCKS):
        at = number % len(names)
        for name in names[at:] + names[:at]:
            began = time.process_time()
            for _ in range(STEPS_PER_BLOCK):
                arms[name]()
            if number >= 0:
                seconds[name].append((time.process_time() - began) / STEPS_PER_BLOCK)
    print(f"{BLOCKS} rounds of blocks of {STEPS_PER_BLOCK} steps\n")
    print("| arm | tokens/s: median | quartiles | of nanoGPT: median | quartiles |")
    print("|---|---|---|---|---|")
    first = seconds[names[0]]
    for name, values in seconds.items():
        low, median, high = statistics.quantiles([TOKENS / value for value in values], n=4)
        shares = [theirs / ours for theirs, ours in zip(first, values, strict=True)]
        share_low, share, share_high = statistics.quantiles(shares, n=4)
        print(
            f"| {name} | {median:,.0f} | {low:,.0f}–{high:,.0f} | {share:.2f} | "
            f"{share_low:.2f}–{share_high:.2f} |"
        )


def cpu_seconds(command: list[str], folder: Path) -> tuple[float, str]:
    """What a process and its children spent, and what it printed."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
        "MLFLOW_TRACK_BACKEND": "local",
    }
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment,
        check=True,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done.stdout


def nanogpt_loss(checkout: Path, corpus: Corpus) -> float:
    """The loss of its last checkpoint, as train measures its own."""
    module: Any = importlib.import_module("model")
    saved = torch.load(checkout / "out-shakespeare-char/ckpt.pt", weights_only=False)
    with contextlib.redirect_stdout(io.StringIO()):
        model = module.GPT(module.GPTConfig(**saved["model_args"]))
    model.load_state_dict(saved["model"])

    class Logits(torch.nn.Module):
        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            # It gives the logits of every position only where there are targets.
            return model(tokens, torch.zeros_like(tokens))[0]

    hardware = choose_hardware("cpu", "fp32")
    return evaluate(Logits(), corpus, hardware, context_length=LENGTH)["val/loss"]


def time_to_loss(checkout: Path, corpus: Corpus, tokens: Path) -> None:
    """Prints the time and loss of each command."""
    precisions = ["fp32"] + ["auto"] * choose_hardware("cpu", "auto").is_bf16
    ours = (
        f"-m train --data {tokens} --max-steps {TRAIN_STEPS} --warmup-steps 50 --batch-size 12 "
        f"--eval-interval {TRAIN_STEPS} --eval-batches 0 --device cpu --precision"
    ).split()
    commands = {"nanoGPT, 2000 steps": [sys.executable, "train.py", *RECIPE]}
    for precision in precisions:
        name = f"train, {TRAIN_STEPS} steps, {'bf16' if precision == 'auto' else precision}"
        commands[name] = [sys.executable, *ours, precision]
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    losses: dict[str, float] = {}
    for _ in range(ROUNDS):
        for name, command in commands.items():
            spent, printed = cpu_seconds(command, checkout)
            seconds[name].append(spent)
            if name.startswith("nanoGPT"):
                losses[name] = nanogpt_loss(checkout, corpus)
            else:
                losses[name] = float(re.findall(r"val/loss (\d+\.\d+)", printed)[-1])
            print(f"{name}: {spent:.1f} CPU s, val/loss {losses[name]:.4f}", file=sys.stderr)
    print(f"\n{ROUNDS} rounds of whole processes\n")
    print("| command | val/loss, whole split | CPU s: median | range | of nanoGPT's |")
    print("|---|---|---|---|---|")
    theirs = statistics.median(next(iter(seconds.values())))
    for name, values in seconds.items():
        median = statistics.median(values)
        print(
            f"| {name} | {losses[name]:.3f} | {median:.1f} | {min(values):.1f}–{max(values):.1f} | "
            f"{median / theirs:.2f} |"
        )


def processor() -> str:
    """Its name and the arithmetic that decides here."""
    try:
        lines = Path("/proc/cpuinfo").read_text()
    except OSError:
        lines = ""
    name = re.search(r"model name\s*: (.*)", lines)
    flags = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if f" {flag}" in lines]
    return f"{name[1] if name else 'unknown processor'} ({', '.join(flags)})"


def main() -> None:
    paths = [Path(word) for word in sys.argv[1:]]
    if len(paths) != 2 or not (paths[0] / "train.py").is_file() or not paths[1].is_file():
        print(
            "needs a checkout of github.com/karpathy/nanoGPT and tinyshakespeare as text:\n"
            "python benchmarks/nanogpt.py NANOGPT TEXT"
        )
        return
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        checkout = Path(name) / "nanogpt"
        shutil.copytree(paths[0], checkout, ignore=shutil.ignore_patterns(".git", "out*"))
        tokens = write_data(checkout, paths[1].read_text())
        corpus = load_corpus(str(tokens))
        sys.path.append(str(checkout))
        print(f"torch {torch.__version__}, 1 thread, {processor()}")
        throughput(checkout, corpus)
        time_to_loss(checkout, corpus, tokens)


if __name__ == "__main__":
    main()
