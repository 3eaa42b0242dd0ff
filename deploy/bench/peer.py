"""The PyTorch side of a benchmark: does the work of a case as one writes it there.

Speaks the lines of JSON of router-service/examples/bench: first a case, then commands, each answered by a line.
With --compile the networks go through torch.compile.
"""

import contextlib
import json
import math
import pathlib
import sys
import time

import torch
from safetensors.torch import load_file
from torch.nn import functional as F
from torch.nn.utils import clip_grad_norm_

from network import Expert, Router


class Training:
    """Flow matching with AdamW, clipping and averaged weights (the defaults of hdd-node's recipe)."""

    def __init__(self, case, compiled):
        self.case, self.a = case, case["architecture"]
        self.device = torch.device("cuda" if case["cuda"] else "cpu")
        images = case["work"]["train"]["images"]
        self.latents = torch.randn(images, self.a["channels"], self.a["size"], self.a["size"], device=self.device)
        self.text = torch.randn(images, self.a["text_length"], self.a["text_width"], device=self.device)
        self.network = Expert(self.a, case["work"]["train"]["recompute"]).to(self.device)
        torch.nn.init.zeros_(self.network.final_layer.linear.weight)
        self.forward = torch.compile(self.network) if compiled else self.network
        self.parameters = list(self.network.parameters())
        self.average = [p.detach().clone() for p in self.parameters]
        self.optimiser = torch.optim.AdamW(self.parameters, lr=1e-4, weight_decay=0.0, fused=True)
        half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(case["precision"])
        self.autocast = torch.autocast(self.device.type, half) if half else contextlib.nullcontext()

    def step(self):
        batch = self.case["batch"]
        rows = torch.randint(len(self.latents), (batch,), device=self.device)
        x0, text = self.latents[rows], self.text[rows]
        t = torch.rand(batch, device=self.device)
        eps = torch.randn_like(x0)
        at = t[:, None, None, None]
        x = (1 - at) * x0 + at * eps
        dropped = torch.rand(batch, 1, 1, device=self.device) < 0.1
        with self.autocast:
            text = torch.where(dropped, self.network.null_embedding, text)
            output = self.forward(x, t, text)
            loss = F.mse_loss(output.float(), eps - x0)
        loss.backward()
        clip_grad_norm_(self.parameters, 1.0)
        self.optimiser.step()
        with torch.no_grad():
            torch._foreach_lerp_(self.average, self.parameters, 1e-4)
        self.optimiser.zero_grad(set_to_none=True)

    def run(self, steps):
        for _ in range(steps):
            self.step()

    @torch.no_grad()
    def check(self, folder):
        case = load_file(folder / "check.safetensors")
        network = Expert(self.a)
        network.load_state_dict(load_file(folder / "expert-0.safetensors"))
        return network(case["x"], case["t"], case["text"]), case["output"]


class Sampling:
    """Euler over a mixture of experts: samples are grouped by expert, both halves of guidance go in one batch."""

    def __init__(self, case, compiled):
        self.case, self.work = case, case["work"]["sample"]
        self.a, self.experts = case["architecture"], self.work["experts"]
        self.device = torch.device("cuda" if case["cuda"] else "cpu")
        self.networks = [Expert(self.a).to(self.device).requires_grad_(False) for _ in range(self.experts)]
        self.router = Router(self.work["router"], self.a, self.experts).to(self.device).requires_grad_(False)
        if compiled:
            for network in self.networks:
                network.compile(dynamic=True)
        self.x = torch.randn(case["batch"], self.a["channels"], self.a["size"], self.a["size"], device=self.device)
        self.text = torch.randn(case["batch"], self.a["text_length"], self.a["text_width"], device=self.device)

    def velocity(self, x, t):
        selection = self.work["selection"]
        count = self.experts if selection == "full" else selection["top-k"]
        p = self.router(x, t.expand(len(x))).softmax(-1)
        weights, chosen = p.topk(count)  # (B, k)
        weights = weights / weights.sum(-1, keepdim=True)
        out = torch.zeros_like(x)
        for expert in chosen.unique().tolist():
            rows, place = (chosen == expert).nonzero(as_tuple=True)
            network = self.networks[expert]
            null = network.null_embedding.expand(len(rows), -1, -1)
            part = x[rows]
            both = network(part.repeat(2, 1, 1, 1), t.expand(2 * len(rows)), torch.cat([self.text[rows], null]))
            c, u = both.chunk(2)
            v = u + self.work["guidance"] * (c - u)
            out.index_add_(0, rows, weights[rows, place, None, None, None] * v)
        return out

    @torch.inference_mode()
    def run(self, steps):
        x, times = self.x, torch.linspace(1, 0, steps + 1, device=self.device)
        for t, after in zip(times, times[1:]):
            x = x + (after - t) * self.velocity(x, t)
        return x

    def check(self, folder):
        case = load_file(folder / "check.safetensors", device=str(self.device))
        for i, network in enumerate(self.networks):
            network.load_state_dict(load_file(folder / f"expert-{i}.safetensors"))
        self.router.load_state_dict(load_file(folder / "router.safetensors"))
        self.x, self.text = case["x"], case["text"]
        return self.run(3), case["output"]


def matrix_rate(case):
    """Operations a second of a large matrix product in the case's precision."""
    device, n = ("cuda", 8192) if case["cuda"] else ("cpu", 1024)
    kind = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(case["precision"], torch.float32)
    a, b = (torch.randn(n, n, device=device, dtype=kind) for _ in range(2))
    best = math.inf
    for _ in range(10):
        start = time.perf_counter()
        for _ in range(10):
            c = a @ b
        c.sum().item()  # waits for the device
        best = min(best, time.perf_counter() - start)
    return 10 * 2 * n**3 / best


def reply(**words):
    print(json.dumps(words), flush=True)


def main():
    case = json.loads(sys.stdin.readline())
    torch.set_num_threads(case["threads"])
    torch.set_float32_matmul_precision("highest" if case["precision"] == "float32" else "high")
    torch.manual_seed(1)
    side = (Training if "train" in case["work"] else Sampling)(case, "--compile" in sys.argv)
    reply(seconds=0.0)
    for line in sys.stdin:
        command = json.loads(line)
        if "check" in command:
            own, other = side.check(pathlib.Path(command["check"]))
            reply(difference=(own - other).abs().max().item(), scale=other.abs().max().item())
        elif "rate" in command:
            reply(rate=matrix_rate(case))
        else:
            start = time.perf_counter()
            side.run(command["run"])
            if case["cuda"]:
                torch.cuda.synchronize()
            reply(seconds=time.perf_counter() - start)


main()
