"""Classifies generated images, stripes in four directions: python examples/images.py

Kill it any way and start the same command again: it ends with the same weights, bit for bit.
"""

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

import mlflow_track as mt

num_epochs, size = 6, 16


class Stripes(Dataset):
    """Image `index` has direction index % 4; where its stripes begin, and the noise, are random."""

    def __len__(self):
        return 800

    def __getitem__(self, index):
        y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
        angle, begin = torch.tensor(index % 4 * torch.pi / 4), 6 * torch.rand(())
        stripes = torch.sin(begin + x * angle.cos() + y * angle.sin())
        return stripes[None] + 0.8 * torch.randn(1, size, size), index % 4


torch.manual_seed(0)
images, labels = next(iter(DataLoader(Stripes(), batch_size=200)))
data = mt.resumable(DataLoader(Stripes(), batch_size=32, shuffle=True))
layers = nn.Conv2d(1, 16, 3, 2), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Dropout(0.2)
model = nn.Sequential(*layers, nn.Linear(16 * 7 * 7, 4))
optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
max_steps = num_epochs * len(data)
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max_steps)
state = {"model": model, "optimizer": optimizer, "schedule": schedule, "data": data}

with mt.start_run(experiment="images", params={"lr": 0.01}, resume="auto") as run:
    checkpoints = run.checkpoints(
        save=mt.EvenlySpaced(max_steps) | mt.OnImprovement("val/accuracy", min_delta=0.01),
        keep=mt.Keep(last=2, best=1, metric="val/accuracy"),
        stop=mt.EarlyStopping("val/accuracy", patience=3),
    )
    step = checkpoints.restore(state)  # 0 on a fresh run
    for batch, targets in (batch for _ in data.epochs(num_epochs) for batch in data):
        loss = nn.functional.cross_entropy(model(batch), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        run.log_metrics({"train/loss": loss}, step=step)
        if (step + 1) % len(data) == 0:  # The end of an epoch.
            with torch.no_grad():
                hits = model.eval()(images).argmax(1) == labels
            model.train()
            run.log_metrics({"val/accuracy": hits.float().mean()}, step=step)
        checkpoints.step(step, state)
        step += 1
        if run.should_stop:  # SIGTERM, Ctrl-C or early stopping; a checkpoint was saved
            break
