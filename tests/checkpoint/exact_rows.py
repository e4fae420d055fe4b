"""A script and the ways to change it between save and resume: rows of `test_exact.py`.

A row is a list of edits of the script: (what stands there, what comes instead). The first ones of a
pair are made before the save as well, the others only for the resume.
"""

from __future__ import annotations

Edits = list[tuple[str, str]]

SCRIPT = '''
import collections, contextlib, functools, random, torch
import mlflow_track as mt
from torch import nn
torch.manual_seed(0)
# global settings

class Counter:
    def __init__(self):
        self.n = 0
    def state_dict(self):
        return {"n": self.n}
    def load_state_dict(self, state):
        self.n = state["n"]

class Metric(nn.Module):
    """Leaves its states out of the state_dict, as metrics do."""
    def __init__(self):
        super().__init__()
        self._defaults = {}
        self.add_state("seen", torch.zeros(()))
    def add_state(self, name, value):
        self._defaults[name] = value
        setattr(self, name, value.clone())

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(4, 8)
        self.norm = nn.BatchNorm1d(8)
        self.act = nn.ReLU()
        self.drop = nn.Dropout(0.5)
        self.b = nn.Linear(8, 4, bias=False)
        self.c = nn.Linear(8, 4, bias=False)
        self.c.weight = self.b.weight
        self.d = nn.Linear(4, 4)
        self.scale = 1.0
        self.register_buffer("mask", torch.ones(8), persistent=False)
    def forward(self, x):
        hidden = self.drop(self.act(self.norm(self.a(x)))) * self.mask
        return self.d(self.b(hidden) + self.c(hidden)) * self.scale

net, counter = Net(), Counter()
free = nn.Parameter(torch.ones(4))
warmup = 10
opt = torch.optim.AdamW([*net.parameters(), free], lr=1e-2)
sched = torch.optim.lr_scheduler.LambdaLR(opt, lambda step: min(1.0, (step + 1) / warmup))
scaler = torch.amp.GradScaler("cpu", enabled=False)
state = {"net": net, "free": free, "opt": opt, "sched": sched, "scaler": scaler, "counter": counter}
params = {"label_smoothing": 0.0, "log_every": 1}
policies = {"save": mt.EverySteps(2), "stop": mt.EarlyStopping("val/loss", patience=50)}
with mt.start_run(run_name="exact", params=params, resume=RESUME) as run:
    # before the restore
    run.log_input("text", sha256="aa", size_bytes=1)
    checkpoints = run.checkpoints(**policies)
    first = checkpoints.restore(state)
    # after the restore
    for step in range(first, LAST):
        # top of a step
        x = torch.randn(16, 4)
        loss = (net(x) - x * free).square().mean()
        opt.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(opt)
        scaler.update()
        sched.step()
        counter.n += 1
        run.log_metrics({"train/loss": loss, "val/loss": 1.0}, step=step)
        # before the save
        checkpoints.step(step, state)
        # after the save
'''

_TOP, _BEFORE, _AFTER = "# top of a step", "# before the save", "# after the save"
_RESTORED, _GLOBAL = "# after the restore", "# global settings"
_RUN = "with mt.start_run("
_STOP = 'mt.EarlyStopping("val/loss", patience=50)'
_INPUT = 'run.log_input("text", sha256="aa", size_bytes=1)'
_SCHED = "torch.optim.lr_scheduler.LambdaLR(opt, lambda step: min(1.0, (step + 1) / warmup))"
_COSINE: Edits = [(_SCHED, "torch.optim.lr_scheduler.CosineAnnealingLR(opt, T_max=100)")]
_ADAM = "torch.optim.AdamW([*net.parameters(), free], lr=1e-2)"
_STATE = '"counter": counter}'


def _module(kind: str, use: str = "self.act") -> Edits:
    """Another kind of module in the place of the activation."""
    return [("self.act = nn.ReLU()", f"{use} = {kind}")]


def _forward(code: str) -> Edits:
    return [("        hidden = self.drop", f"        {code}\n        hidden = self.drop")]


def _state_of(kind: str) -> Edits:
    return [(_STATE, f'"counter": counter, "more": {kind}}}')]


_CALLS: Edits = [
    ("self.scale = 1.0", "self.scale, self.calls = 1.0, 0"),
    *_forward("self.calls += 1"),
]
_FACTOR: Edits = [("self.scale = 1.0", "self.scale, self.twist = 1.0, lambda x: x * 1.5")]
_METRIC: Edits = [
    *_state_of("metric"),
    ("warmup = 10", "warmup, metric = 10, Metric()"),
    (_TOP, "metric.seen += 1"),
]
_DRAWS: Edits = [('return {"n": self.n}', 'return {"n": self.n + 0 * int(torch.rand(()))}')]
_CLOCK: Edits = [
    ("self.n = 0", "self.n = self.asked = 0"),
    ('return {"n": self.n}', 'self.asked += 1; return {"n": self.n, "asked": self.asked}'),
]
_LOADER: Edits = [
    (
        "for step in range(first, LAST):",
        "data = torch.utils.data.DataLoader(range(99), shuffle=True)\n"
        "    for step, _ in zip(range(first, LAST), data):",
    )
]
_SCALER: Edits = [('GradScaler("cpu", enabled=False)', 'GradScaler("cpu")')]
_LSTM: Edits = [
    ("self.scale = 1.0", "self.scale, self.rnn = 1.0, nn.LSTM(4, 4, 2, dropout=0.1)"),
    ("return self.d(", "return self.rnn(x)[0] + self.d("),
]
_HEADS: Edits = [
    ("self.scale = 1.0", "self.scale, self.heads = 1.0, nn.MultiheadAttention(4, 2, dropout=0.1)"),
    ("return self.d(", "return self.heads(x, x, x)[0] + self.d("),
]

_NET, _INIT = "class Net(nn.Module):", "self.scale = 1.0"
_CONFIG: Edits = [
    (_NET, f"import argparse\n{_NET}"),
    (_INIT, f"{_INIT}; self.config = argparse.Namespace(p=0.1, log_every=1, resume=False)"),
    *_forward("x = nn.functional.dropout(x, self.config.p)"),
]


def _holds(code: str, use: str) -> Edits:
    """The model holds something more, and uses it."""
    return [(_INIT, f"{_INIT}; self.more = {code}"), *_forward(use)]


_AVERAGE = "get_ema_multi_avg_fn(0.9)"
_NO_SCHEDULE: Edits = [(_SCHED, "Counter()"), ("sched.step()", "pass")]

# Between save and resume the script changes in a way that changes what is computed.
DELIBERATE: dict[str, tuple[Edits, Edits]] = {
    "dropout": ([], [("Dropout(0.5)", "Dropout(0.3)")]),
    "another kind of dropout": ([], [("nn.Dropout(0.5)", "nn.AlphaDropout(0.5)")]),
    "another activation": ([], _module("nn.Tanh()")),
    "slope of an activation": (_module("nn.LeakyReLU(0.1)"), [("ReLU(0.1)", "ReLU(0.2)")]),
    "function as activation": (_module("nn.functional.relu"), [("nal.relu", "nal.gelu")]),
    "lambda as activation": (_module("lambda x: x * 2"), [("x * 2", "x * 3")]),
    "dimension of a softmax": (_module("nn.Softmax(dim=1)"), [("dim=1", "dim=0")]),
    "momentum of a norm": ([], [("BatchNorm1d(8)", "BatchNorm1d(8, momentum=0.5)")]),
    "epsilon of a norm": ([], [("BatchNorm1d(8)", "BatchNorm1d(8, eps=0.1)")]),
    "attribute of a module": ([], [("self.scale = 1.0", "self.scale = 2.0")]),
    "dropout inside of an LSTM": (_LSTM, [("dropout=0.1", "dropout=0.6")]),
    "dropout of an attention": (_HEADS, [("dropout=0.1", "dropout=0.6")]),
    "untied weights": ([], [("self.c.weight = self.b.weight", "pass")]),
    "tied weights": (
        [("self.c.weight = self.b.weight", "pass")],
        [("pass\n        self.d", "self.c.weight = self.b.weight\n        self.d")],
    ),
    "params in another order": (
        [],
        [
            (
                "[*net.parameters(), free]",
                "[[*net.parameters(), free][i] for i in (0, 1, 3, 2, 4, 5, 6, 7)]",
            )
        ],
    ),
    "a parameter in another group": (
        [(_ADAM, "torch.optim.AdamW([{'params': [net.a.bias]}, {'params': [net.norm.bias]}])")],
        [("[net.a.bias]", "[net.norm.weight]")],
    ),
    "frozen parameter": ([], [(_RESTORED, "net.d.weight.requires_grad_(False)")]),
    "thawed parameter": (
        [("warmup = 10", "warmup, _ = 10, free.requires_grad_(False)")],
        [("free.requires_grad_(False)", "None")],
    ),
    "load_state_dict that does nothing": ([], [('self.n = state["n"]', "pass")]),
    "load_state_dict that adds": ([], [('self.n = state["n"]', 'self.n = state["n"] + 1')]),
    "object that became plain data": (
        [],
        [("counter = Net(), Counter()", "counter = Net(), {'n': 0}"), ("counter.n += 1", "")],
    ),
    "plain data that became an object": (
        _state_of("{'n': 0}"),
        [("\"more\": {'n': 0}", '"more": Counter()')],
    ),
    "another optimizer of the same keys": ([], [("optim.AdamW", "optim.Adam")]),
    "early stopping on another metric": ([], [('Stopping("val', 'Stopping("train')]),
    "early stopping with less patience": ([], [("patience=50", "patience=2")]),
    "no early stopping": ([], [(_STOP, "None")]),
    "other data": ([], [('sha256="aa"', 'sha256="bb"')]),
    "other data, named late": (
        [],
        [(_INPUT, ""), (_RESTORED, 'run.log_input("text", sha256="bb", size_bytes=1)')],
    ),
    "threads": ([], [(_GLOBAL, "torch.set_num_threads(torch.get_num_threads() + 1)")]),
    "flushed denormals": ([], [(_GLOBAL, "torch.set_flush_denormal(True)")]),
    "deterministic algorithms": ([], [(_GLOBAL, "torch.use_deterministic_algorithms(True)")]),
    "precision of products": ([], [(_GLOBAL, 'torch.set_float32_matmul_precision("medium")')]),
    "no mkldnn": ([], [(_GLOBAL, "torch.backends.mkldnn.enabled = False")]),
    "compilation": ([], [(_RESTORED, 'net.compile(backend="eager")')]),
    "no training mode": ([], [(_RESTORED, "net.eval()")]),
    "one module in evaluation mode": ([], [(_TOP, "net.norm.eval()")]),
    "no evaluation mode": ([(_RESTORED, "net.eval()")], [("net.eval()", "net.train()")]),
    "autocast": (
        [],
        [(_RESTORED, "torch.autocast('cpu', torch.bfloat16).__enter__()")],
    ),
    "scaler switched on": ([], _SCALER),
    "scaler switched off": (_SCALER, [('GradScaler("cpu")', 'GradScaler("cpu", enabled=False)')]),
    "param of a loss": ([], [('"label_smoothing": 0.0', '"label_smoothing": 0.1')]),
    "values of a constant buffer": ([], [("torch.ones(8), p", "torch.full((8,), 0.5), p")]),
    "buffer that counts": (_forward("self.mask += 1"), []),
    "attribute that counts": ([*_CALLS, ("* self.scale", "* self.calls")], []),
    "states of a metric": (_METRIC, []),
    "state_dict that draws": (_DRAWS, []),
    "state_dict that never repeats": (_CLOCK, []),
    "lambda of a schedule": ([], [("(step + 1) / warmup", "(step + 2) / warmup")]),
    "number that a schedule uses": ([], [("warmup = 10", "warmup = 5")]),
    "DataLoader": (_LOADER, []),
    "setting of the code put back after the restore": (
        [],
        [
            (_RESTORED, "opt.param_groups[0].update(weight_decay=0.5)"),
            ("lr=1e-2", "lr=1e-2, weight_decay=0.5"),
        ],
    ),
    "generators left out": ([], [("restore(state)", "restore(state, generators=False)")]),
    "one tensor under two names": (
        [
            (_STATE, '"counter": counter, "one": one, "two": two}'),
            ("warmup = 10", "warmup, one, two = 10, *[torch.ones(2)] * 2"),
            (_TOP, "two.mul_(2)"),
        ],
        [("*[torch.ones(2)] * 2", "torch.ones(2), torch.ones(2)")],
    ),
}

DELIBERATE |= {
    "configuration of a model": (_CONFIG, [("p=0.1", "p=0.4")]),
    "list of a model": (
        _holds("[1.0, 2.0]", "x = x * self.more[1]"),
        [("[1.0, 2.0]", "[1.0, 3.0]")],
    ),
    "nested dict of a model": (
        _holds("{'mlp': {'p': 2.0}}", "x = x * self.more['mlp']['p']"),
        [("{'p': 2.0}", "{'p': 3.0}")],
    ),
    "word with a hyphen": (
        _holds("'pre-norm'", "x = x * (1 + (self.more == 'pre-norm'))"),
        [("more = 'pre", "more = 'post")],
    ),
    "dtype of a model": (
        _holds("torch.float32", "x = x.to(self.more).float()"),
        [("more = torch.float32", "more = torch.bfloat16")],
    ),
    "array of a model": (
        _holds("torch.ones(4).numpy()", "x = x * torch.from_numpy(self.more)"),
        [("ones(4).numpy()", "zeros(4).numpy()")],
    ),
    "nothing that became a number": (
        _holds("None", "x = x if self.more is None else x * self.more"),
        [("self.more = None", "self.more = 0.5")],
    ),
    "attribute of a class": (
        [(_NET, f"{_NET}\n    factor = 1.0"), *_forward("x = x * self.factor")],
        [("factor = 1.0", "factor = 2.0")],
    ),
    "partial function of a model": (
        _holds("functools.partial(lambda x, k: x * k, k=2)", "x = self.more(x)"),
        [("k=2)", "k=3)")],
    ),
    "generator of a model": (
        _holds("torch.Generator()", "x = x + torch.randn(x.shape, generator=self.more)"),
        [],
    ),
    "generator of an object": (
        [
            ("self.n = 0", "self.n, self.more = 0, random.Random(1)"),
            (_TOP, "counter.more.random()"),
        ],
        [],
    ),
    "number of an object": (
        [("self.n = 0", "self.n, self.by = 0, 1"), ("counter.n += 1", "counter.n += counter.by")],
        [("self.by = 0, 1", "self.by = 0, 2")],
    ),
    "order of a sequence": (
        _holds(
            "nn.Sequential(collections.OrderedDict(a=nn.ReLU(), b=nn.Softmax(1)))",
            "x = self.more(x)",
        ),
        [("a=nn.ReLU(), b=nn.Softmax(1)", "b=nn.Softmax(1), a=nn.ReLU()")],
    ),
    "decay of an average": (
        [
            (_STATE, '"counter": counter, "average": average}'),
            (
                "warmup = 10",
                f"warmup = 10; average = _swa.AveragedModel(net, multi_avg_fn=_swa.{_AVERAGE})",
            ),
            (_GLOBAL, "_swa = torch.optim.swa_utils"),
            (_BEFORE, "average.update_parameters(net)"),
        ],
        [("avg_fn(0.9)", "avg_fn(0.5)")],
    ),
    "schedule of another optimizer": (
        [
            (
                "sched = torch",
                "other = torch.optim.SGD([nn.Parameter(torch.ones(2))])\nsched = torch",
            ),
            (_STATE, '"counter": counter, "other": other}'),
        ],
        [("LambdaLR(opt,", "LambdaLR(other,")],
    ),
    "channels last": (
        _holds(
            "nn.Conv2d(4, 4, 3)",
            "x = x + self.more(x[:, :, None, None].expand(-1, -1, 3, 3))[..., 0, 0]",
        ),
        [(_RUN, f"net = net.to(memory_format=torch.channels_last)\n{_RUN}")],
    ),
    "no nnpack": ([], [(_GLOBAL, "torch.backends.nnpack.set_flags(False)")]),
    "parameter that was replaced": (
        [],
        [(_RESTORED, "net.d.weight = nn.Parameter(net.d.weight.detach().clone())")],
    ),
    "learning rate set after the restore": (
        _NO_SCHEDULE,
        [(_RESTORED, "opt.param_groups[0]['lr'] = 5e-2")],
    ),
}

# The same numbers come out, and the report says so.
HARMLESS: dict[str, tuple[Edits, Edits]] = {
    "nothing": ([], []),
    "another seed": ([], [("manual_seed(0)", "manual_seed(7)")]),
    "weights that begin otherwise": ([], [(_RUN, f"nn.init.zeros_(net.a.weight)\n{_RUN}")]),
    "comments and lines": ([], [(_TOP, "\n        # a comment\n\n")]),
    "docstrings": ([], [("class Net(nn.Module):", 'class Net(nn.Module):\n    """A model."""')]),
    "local variable of a model": ([], [("hidden", "activations")]),
    "variable of a script": ([], [("net", "network"), ('"network"', '"net"')]),
    "variable of a schedule": ([], [("warmup", "warmup_steps")]),
    "variable of a lambda": ([], [("lambda step: min(1.0, (step", "lambda s: min(1.0, (s")]),
    "another file": ([], [("class Counter", "__file__ = '/elsewhere/job.py'\nclass Counter")]),
    "lines that print": ([], [(_TOP, "print(step)")]),
    "metrics that are logged": ([], [('"val/loss": 1.0}', '"val/loss": 1.0, "lr": step / 10}')]),
    "log interval": ([], [("run.log_metrics({", "if step % 2: run.log_metrics({")]),
    "param of a log interval": ([], [('"log_every": 1', '"log_every": 2')]),
    "param that is a note": ([], [('"log_every": 1', '"log_every": 1, "notes": "again"')]),
    "param of the folder of logs": (
        [('"log_every": 1', '"log_every": 1, "log_dir": "/a"')],
        [('"/a"', '"/b"')],
    ),
    "param that may change": (
        [("checkpoints(**policies", "checkpoints(**policies, allow_changed=['label_*']")],
        [('"label_smoothing": 0.0', '"label_smoothing": 0.1')],
    ),
    "save policy": ([], [("EverySteps(2)", "EverySteps(3)")]),
    "steps of the policies": ([], [('"stop":', '"max_steps": 7, "stop":')]),
    "what is kept": ([], [('"stop":', '"keep": mt.Keep(last=2), "stop":')]),
    "mode of early stopping, given": ([], [("patience=50", 'patience=50, mode="min"')]),
    "evaluation around the save": (
        [(_BEFORE, "net.eval()"), (_AFTER, "net.train()")],
        [],
    ),
    "training mode set at the top": ([(_TOP, "net.train()"), (_BEFORE, "net.eval()")], []),
    "evaluation now and then": (
        [(_TOP, "net.train()"), (_BEFORE, "if step in (3, 5): net.eval()")],
        [],
    ),
    "gradients that the loop sets": (
        [(_TOP, "free.requires_grad_(step < 1)\n        free.grad = None")],
        [],
    ),
    "object in a repr": (
        [
            (
                "    def forward",
                "    def extra_repr(self):\n        return repr(object())\n    def forward",
            )
        ],
        [],
    ),
    "function as activation": (
        [*_module("twice"), ("class Net", "def twice(x):\n    return x * 2\nclass Net")],
        [("def twice(x):\n    return x * 2", "def twice(y):\n    # doubled\n    return y * 2")],
    ),
    "lambda as activation": (_module("lambda x: x * 2"), []),
    "partial function as activation": (
        _module("functools.partial(nn.functional.leaky_relu, negative_slope=0.2)"),
        [],
    ),
    "function of torch as activation": (_module("torch.tanh"), []),
    "list for a generator of params": (
        [],
        [("[*net.parameters(), free]", "iter([*net.parameters(), free])")],
    ),
    "names of params": (
        [],
        [("[*net.parameters(), free]", "[*net.named_parameters(), ('free', free)]")],
    ),
    "kind of the state": ([], [("state = {", "state = collections.OrderedDict() | {")]),
    "container in a state_dict": (
        [('return {"n": self.n}', 'return {"n": self.n, "shape": (1, 2)}')],
        [("(1, 2)", "[1, 2]")],
    ),
    "number that was another type": ([], [('self.n = state["n"]', 'self.n = float(state["n"])')]),
    "object that is not saved": ([], [(_RUN, f"other = nn.Linear(3, 3)\n{_RUN}")]),
    "attribute that is private": ([], [("self.scale = 1.0", "self.scale, self._n = 1.0, 5")]),
    "path in a module": (
        [("self.scale = 1.0", "self.scale, self.cache = 1.0, '/tmp/one'")],
        [("/tmp/one", "/tmp/two")],
    ),
    "activations that are kept": (_forward("self.last = x.detach()"), []),
    "constant buffer": (
        [
            (
                "self.scale = 1.0",
                "self.scale = 1.0; self.register_buffer('p', torch.arange(9.), persistent=False)",
            )
        ],
        [],
    ),
    "hook": ([], [(_RUN, f"net.register_forward_hook(lambda *_: None)\n{_RUN}")]),
    "evaluation by a loader": (
        [
            (
                _BEFORE,
                "for _ in torch.utils.data.DataLoader(range(4), generator=torch.Generator()): pass",
            )
        ],
        [],
    ),
    "threads as they are": ([], [(_GLOBAL, "torch.set_num_threads(torch.get_num_threads())")]),
    "text and tags": ([], [(_RESTORED, 'run.set_tag("a", "b"); run.log_text("hello", "a.txt")')]),
    "data that has no name any more": ([], [(_INPUT, "")]),
    "stream of numbers beside": ([], [(_TOP, "random.Random(3).random()")]),
}

HARMLESS |= {
    "configuration of a model": (_CONFIG, []),
    "log interval of a configuration": (_CONFIG, [("log_every=1,", "log_every=5,")]),
    "flag that resumes": (_CONFIG, [("resume=False", "resume=True")]),
    "losses that a model keeps": (_holds("[]", "self.more.append(float(x.mean()))"), []),
    "counts that a model keeps": (_holds("{'n': 0}", "self.more['n'] += 1"), []),
    "cache of a model": (_holds("{}", "self.more['x'] = x.detach()"), []),
    "result that a model keeps": (_holds("None", "self.more = 3"), []),
    "cycle in a model": (_holds("[self]", "x = x"), []),
    "set of words": (_holds("{'a', 'b'}", "x = x"), [("{'a', 'b'}", "{'b', 'a'}")]),
    "generator that nobody asks": (_holds("torch.Generator()", "x = x"), []),
    "generator in the state": (
        [
            *_holds("torch.Generator()", "x = x + torch.randn(x.shape, generator=self.more)"),
            (_STATE, '"counter": counter, "generator": net.more}'),
        ],
        [],
    ),
    "time that an object began": (
        [("self.n = 0", "import time; self.n, self.start_time = 0, time.time()")],
        [],
    ),
    "schedule by hand": (
        [*_NO_SCHEDULE, (_TOP, "opt.param_groups[0]['lr'] = 1e-2 / (1 + step)")],
        [],
    ),
    "learning rate set to the same": (
        _NO_SCHEDULE,
        [(_RESTORED, "opt.param_groups[0]['lr'] = 1e-2")],
    ),
}

# The checkpoint replaces what the code says now: exact, and named with both values.
REPLACED: dict[str, tuple[Edits, Edits, str]] = {
    "learning rate": ([], [("lr=1e-2", "lr=5e-2")], "opt.param_groups.0.initial_lr: 0.01 .* 0.05"),
    "weight decay": ([], [("lr=1e-2", "lr=1e-2, weight_decay=0.5")], "weight_decay: 0.01 .* 0.5"),
    "betas": ([], [("lr=1e-2", "lr=1e-2, betas=(0.5, 0.9)")], r"betas: \[0.9, 0.999\] .*0.5"),
    "length of a schedule": (_COSINE, [("T_max=100", "T_max=30")], "sched.T_max: 100 .* 30"),
    "length of one cycle": (
        [(_SCHED, "torch.optim.lr_scheduler.OneCycleLR(opt, 0.1, total_steps=30)")],
        [("total_steps=30", "total_steps=60")],
        "sched.total_steps: 30 .* 60",
    ),
    "growth of a scale": (
        _SCALER,
        [('GradScaler("cpu")', 'GradScaler("cpu", growth_interval=7)')],
        "scaler.growth_interval: 2000 .* 7",
    ),
    "param of the learning rate": (
        [('"log_every": 1', '"log_every": 1, "lr": 0.01')],
        [("lr=1e-2", "lr=5e-2"), ('"lr": 0.01', '"lr": 0.05')],
        "lr 0.01 -> 0.05",
    ),
}
