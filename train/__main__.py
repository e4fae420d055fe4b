"""The only wiring: settings to objects to train()."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator

import torch

import mlflow_track as mt
from train.config import Config
from train.curves import draw_curves
from train.data import Corpus, load_corpus, require_length
from train.flags import parse
from train.hardware import Hardware, choose_hardware, slow_precision
from train.loop import describe, open_checkpoints, optimizer_and_state, train
from train.memory import require_memory, shortage
from train.model import Shape, Transformer
from train.ranks import Ranks, joined, leave, own_device, ranks_of_environment
from train.sample import sample_text

_SAMPLE_TOKENS = 400
_DEADLINE = "MLFLOW_TRACK_DEADLINE"


def main(arguments: list[str] | None = None) -> int:
    config, sources = parse(sys.argv[1:] if arguments is None else arguments)
    try:
        corpus = load_corpus(config.data)
        require_length(corpus, config.context_length)
        ranks = ranks_of_environment(config.batch_size)
        hardware = choose_hardware(own_device(config.device, ranks), config.precision)
        require_memory(config, corpus, hardware, ranks)
        with _deadline(config.deadline):
            run = mt.start_run(
                experiment=config.experiment,
                run_name=config.run_name,
                params=config.params(),
                resume=config.resume,
                # A plan leaves no run behind.
                backend="off" if config.plan else None,
            )
    except (ValueError, OSError, LookupError, mt.RunHeldError) as error:
        print(f"train: {error}", file=sys.stderr)
        return 2
    torch.set_float32_matmul_precision("medium" if hardware.is_bf16 else "highest")
    try:
        with run, joined(ranks, hardware.device):
            if config.plan:
                _show_plan(run, config, corpus, hardware, ranks)
            else:
                run.print(describe(sources, config))
                _train(run, config, corpus, hardware, ranks)
    except (MemoryError, RuntimeError) as error:
        if (message := shortage(error, config)) is None:
            raise
        print(f"train: {message}", file=sys.stderr)
        return 1
    return 0


def _train(run: mt.Run, config: Config, corpus: Corpus, hardware: Hardware, ranks: Ranks) -> None:
    run.log_input(
        corpus.name, sha256=corpus.sha256, size_bytes=corpus.size_bytes, source=corpus.source
    )
    if warning := slow_precision(hardware):
        run.print(warning)
    torch.manual_seed(config.seed)
    model = Transformer(_shape(config, corpus)).to(hardware.device)
    run.print(
        f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(corpus.train):,} "
        f"tokens of {corpus.name}, {hardware.device}, {'bf16' if hardware.is_bf16 else 'fp32'}"
    )
    train(run, config, corpus, model, hardware, ranks)
    if ranks.rank == 0 and not run.should_stop:
        _finish(run, config, corpus, model, hardware)


@contextlib.contextmanager
def _deadline(text: str | None) -> Iterator[None]:
    """Hand the flag to `start_run`, which reads the variable; a message names the flag."""
    before = os.environ.get(_DEADLINE)
    if text is None:
        yield
        return
    os.environ[_DEADLINE] = text
    try:
        yield
    except ValueError as error:
        raise ValueError(str(error).replace(_DEADLINE, "--deadline")) from None
    finally:
        del os.environ[_DEADLINE]
        if before is not None:
            os.environ[_DEADLINE] = before


def _show_plan(
    run: mt.Run, config: Config, corpus: Corpus, hardware: Hardware, ranks: Ranks
) -> None:
    model = Transformer(_shape(config, corpus)).to(hardware.device)
    _, state = optimizer_and_state(config, corpus, model)
    plan = open_checkpoints(run, config).plan(state)
    if ranks.rank == 0:
        print(plan)


def _shape(config: Config, corpus: Corpus) -> Shape:
    return Shape(
        vocab_size=corpus.vocab_size,
        context_length=config.context_length,
        d_model=config.d_model,
        num_layers=config.num_layers,
        num_heads=config.num_heads,
        d_ff=config.d_ff,
        dropout=config.dropout,
        position=config.position,
        ffn=config.ffn,
        norm=config.norm,
        tie_embeddings=config.tie_embeddings,
    )


def _finish(
    run: mt.Run, config: Config, corpus: Corpus, model: Transformer, hardware: Hardware
) -> None:
    """The artifacts of a run that came to its end: a sample and the curves."""
    text = sample_text(model, config, corpus, length=_SAMPLE_TOKENS, device=hardware.device)
    run.log_text(text, "sample.txt")
    try:
        metrics = run.metrics()
        if len(metrics):
            run.log_figure(draw_curves(metrics, run.name), "curves.png")
    except Exception as error:
        # The training is done; a picture that cannot be drawn does not undo it.
        run.print(f"WARNING: curves.png cannot be drawn: {error!r}")
    run.print("sample: " + " ".join(text.split())[:200])


if __name__ == "__main__":
    leave(main())
