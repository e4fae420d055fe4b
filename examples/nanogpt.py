"""A small GPT on the bytes of a text: python examples/nanogpt.py [input.txt]

Kill it any way and start the same command again: it ends with the same weights, bit for bit.
"""

import sys
from pathlib import Path
from pydoc_data.topics import topics

import torch
from torch import nn

import mlflow_track as mt

warmup, eval_interval, context, width = 40, 40, 64, 64


class GPT(nn.Module):
    def __init__(self):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(256, width), nn.Embedding(context, width)
        block = nn.TransformerEncoderLayer(width, 4, 4 * width, norm_first=True, batch_first=True)
        self.blocks = nn.TransformerEncoder(block, 2, nn.LayerNorm(width), False)
        self.head = nn.Linear(width, 256)

    def forward(self, windows):
        mask = nn.Transformer.generate_square_subsequent_mask(context)
        x = self.blocks(self.tokens(windows[:, :-1]) + self.positions.weight, mask, is_causal=True)
        return nn.functional.cross_entropy(self.head(x).flatten(0, 1), windows[:, 1:].flatten())


torch.manual_seed(1337)
text = Path(sys.argv[1]).read_bytes() if sys.argv[1:] else "".join(topics.values()).encode()
if len(text) <= 2 * context:
    sys.exit(f"the text must be longer than {2 * context} bytes, got {len(text)}")
windows = torch.tensor(list(text)).unfold(0, context + 1, context)
train, val = windows[: len(windows) * 9 // 10], windows[len(windows) * 9 // 10 :: 5]
data = mt.resumable(torch.utils.data.DataLoader(train, batch_size=16, shuffle=True))
model, max_steps = GPT(), len(data)  # One epoch.
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
state = {"model": model, "optimizer": optimizer, "data": data}
with mt.start_run(experiment="nanogpt", params={"width": width}, resume="auto") as run:
    checkpoints = run.checkpoints(
        save=mt.EvenlySpaced(max_steps, warmup) | mt.OnImprovement("val/loss", min_delta=0.01),
        keep=mt.Keep(last=2, best=1, metric="val/loss"),
        stop=mt.EarlyStopping("val/loss", patience=5),
    )
    for step, batch in zip(range(checkpoints.restore(state), max_steps), data):
        loss = model(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        run.log_metrics({"train/loss": loss}, step=step)
        if (step + 1) % eval_interval == 0:
            with torch.no_grad():
                run.log_metrics({"val/loss": model.eval()(val)}, step=step)
            model.train()
        checkpoints.step(step, state)
        if run.should_stop:  # SIGTERM, Ctrl-C or early stopping; a checkpoint was saved
            break
