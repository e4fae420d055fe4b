"""A real, tiny training: a linear model on a line; stdin says how many steps to do next."""

from __future__ import annotations

import sys

import torch

import mlflow_track as mt


def main(experiment: str, name: str, learning_rate: float) -> None:
    torch.manual_seed(0)
    model = torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=learning_rate)
    x = torch.linspace(-1, 1, 64)[:, None]
    step = 0
    with mt.start_run(
        experiment=experiment,
        run_name=name,
        params={"learning_rate": learning_rate, "model": {"inputs": 1}},
        tags={"kind": "line"},
    ) as run:
        run.log_input("line", sha256="5f" * 32, size_bytes=256, source="torch.linspace")
        checkpoints = run.checkpoints()
        for line in sys.stdin:
            for _ in range(int(line)):
                loss = torch.nn.functional.mse_loss(model(x), 3 * x + 1)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                run.log_metrics({"train/loss": loss.item(), "train/lr": learning_rate}, step=step)
                if step % 10 == 0:
                    run.log_metrics({"val/accuracy": 1 / (1 + loss.item())}, step=step)
                    run.log_image(torch.full((8, 16), step / 1000), "samples/grey", step=step)
                step += 1
            print(step, flush=True)
        checkpoints.save(step, {"model": model, "optimizer": optimizer})
        checkpoints.wait()
        run.log_text(f"weight {model.weight.item():.3f}\n", "notes/result.txt")
        run.log_figure(_picture(model, x), "line.png")


def _picture(model: torch.nn.Module, x: torch.Tensor) -> object:
    from matplotlib.figure import Figure

    figure = Figure()
    axes = figure.add_subplot()
    axes.plot(x.flatten(), (3 * x + 1).flatten(), label="target")
    axes.plot(x.flatten(), model(x).detach().flatten(), label="model")
    axes.legend()
    return figure


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], float(sys.argv[3]))
