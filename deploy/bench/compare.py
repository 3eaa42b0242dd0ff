"""Lets hdd-node and PyTorch do the same work in turns and says how their speeds compare.

deploy/bench.sh runs it. Each side is a process of its own with the same threads and the same allocator settings; a round is
a turn of each, and a ratio is the median over the rounds, so that what else the machine does weighs on all alike. Before
that, the sides show that they compute the same.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).parent
# Keeps freed pages in the process, as hdd-node sets for itself.
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": 32 << 20, "MALLOC_TRIM_THRESHOLD_": 1 << 30, "MALLOC_TOP_PAD_": 64 << 20}
TOLERANCE = 2e-3  # of the largest number: three steps of Euler in float32, or TensorFloat-32


def architecture(width, depth, heads, patch, **other):
    a = {"width": width, "depth": depth, "heads": heads, "patch": patch, "channels": 4, "size": 32}
    a |= {"text_width": 768, "text_length": 77, "cross_norm": True, "norm_epsilon": 1e-6}
    return a | {"time_scale": 999.0, "round_time": False} | other


SMALL = architecture(192, 6, 6, 4, channels=3, text_width=64, text_length=8)  # 3.9M parameters, 64 tokens
B2 = architecture(768, 12, 12, 2)
XL2 = architecture(1152, 28, 16, 2)
ROUTER = {"width": 96, "depth": 2, "heads": 4, "patch": 8, "text": False, "steps": 1, "batch": 1}
ROUTER |= {"learning_rate": 1e-3, "weight_decay": 0.0}


def train(a, batch, precision="float32", cuda=False, recompute=False):
    work = {"train": {"images": 8 * batch, "micro_batch": batch, "recompute": recompute}}
    return {"architecture": a, "batch": batch, "precision": precision, "cuda": cuda, "work": work}


def sample(a, experts, images, selection, cuda=False):
    work = {"sample": {"experts": experts, "selection": selection, "guidance": 3.0, "router": ROUTER}}
    return {"architecture": a, "batch": images, "precision": "float32", "cuda": cuda, "work": work}


def step_flops(case):
    """Operations of the matrix products that one training step needs, recomputation not counted."""
    a = case["architecture"]
    n, d, l = (a["size"] // a["patch"]) ** 2, a["width"], a["text_length"]
    block = 14 * n * d * d + 2 * l * d * d + 2 * n * n * d + 2 * n * l * d
    ends = 2 * n * d * a["patch"] ** 2 * a["channels"] + l * a["text_width"] * d + (256 + 7 * d) * d
    return 3 * 2 * case["batch"] * (a["depth"] * block + ends)


class Side:
    def __init__(self, command, case, threads):
        limits = {"OMP_NUM_THREADS": threads} | ALLOCATOR
        environment = os.environ | {name: str(value) for name, value in limits.items()}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self.ask(case | {"threads": threads})

    def ask(self, question):
        print(json.dumps(question), file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        if not answer:
            sys.exit(f"compare.py: a side ended with status {self.process.wait()}; its message is above")
        return json.loads(answer)

    def run(self, steps):
        return self.ask({"run": steps})["seconds"]

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def check(name, ours, peer):
    with tempfile.TemporaryDirectory() as folder:
        ours.ask({"check": folder})
        answer = peer.ask({"check": folder})
    if not answer["difference"] <= TOLERANCE * answer["scale"]:
        sys.exit(f"compare.py: {name}: the sides differ by {answer['difference']:.1e} of {answer['scale']:.1e}")


def measure(sides, options):
    """Seconds a step of each (command, case), as a list of rounds."""
    opened = [Side(command, case, options.threads) for command, case in sides]
    for side in opened:
        side.run(1)
    one = opened[0].run(1)
    # Sampling goes in runs of several steps, so that what a run does once counts as little as it does in use.
    least = 1 if one > 0.5 or "train" in sides[0][1]["work"] else 10
    steps = max(least, round(options.seconds / one))
    for side in opened:
        side.run(least)
    rounds = []
    for turn in range(options.rounds):
        order = sorted(range(len(opened)), key=lambda i: (i + turn) % len(opened))
        seconds = {i: opened[i].run(steps) / steps for i in order}
        rounds.append([seconds[i] for i in range(len(opened))])
    for side in opened:
        side.close()
    return rounds


def card_memory():
    """Megabytes in use on the first card."""
    query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits", "--id=0"]
    return int(subprocess.run(query, capture_output=True, text=True, check=True).stdout)


def measure_alone(sides, options, steps):
    """As measure, but one side after the other, for a card that holds only one: also the memory of each, megabytes."""
    columns, memory = [], []
    for command, case in sides:
        before = card_memory()
        side = Side(command, case, options.threads)
        side.run(steps)
        columns.append([side.run(steps) / steps for _ in range(options.rounds)])
        memory.append(card_memory() - before)
        side.close()
    return [list(turn) for turn in zip(*columns)], memory


def show(name, labels, rounds, per_step, unit, goal=None):
    for i, label in enumerate(labels):
        seconds = statistics.median(r[i] for r in rounds)
        line = {"what": name, "side": label, "ms": round(1000 * seconds, 2), unit: round(per_step / seconds, 2)}
        if i:
            ratios = sorted(r[i] / r[0] for r in rounds)
            line |= {"ratio": round(statistics.median(ratios), 3), "from": round(ratios[0], 3), "to": round(ratios[-1], 3)}
            line |= {"goal": goal} if goal and i == 1 else {}
        print(json.dumps(line), flush=True)


def commands(options):
    peer = [sys.executable, HERE / "peer.py"]
    return ["hdd-node", "eager", "compiled"], [[options.ours], peer, peer + ["--compile"]]


def against_peer(name, case, options, goal=None):
    """The sides' ratio is the peer's time by ours: above 1, hdd-node is the faster."""
    labels, sides = commands(options)
    pair = [Side(command, case, options.threads) for command in sides[:2]]
    check(name, *pair)
    for side in pair:
        side.close()
    rounds = measure([(command, case) for command in sides], options)
    unit = "images/s" if "train" in case["work"] else "image steps/s"
    show(name, labels, rounds, case["batch"], unit, goal)


def on_card(name, case, options, steps):
    """As against_peer, on the first CUDA card; for training also the share of the card's own matrix rate."""
    labels, sides = commands(options)
    pair = [Side(command, case, options.threads) for command in sides[:2]]
    check(name, *pair)
    rate = pair[1].ask({"rate": case["precision"]})["rate"]
    for side in pair:
        side.close()
    rounds, memory = measure_alone([(command, case) for command in sides], options, steps)
    training = "train" in case["work"]
    show(name, labels, rounds, case["batch"], "images/s" if training else "image steps/s")
    for i, label in enumerate(labels):
        line = {"what": name, "side": label, "memory MB": memory[i]}
        if training:
            line["of the matrix rate"] = round(step_flops(case) / statistics.median(r[i] for r in rounds) / rate, 3)
        print(json.dumps(line), flush=True)
    print(json.dumps({"what": name, "matrix rate, TFLOP/s": round(rate / 1e12, 1)}), flush=True)


def growth(name, selection, counts, options, goal=None):
    """The ratio is the time with more experts by that with the fewest."""
    rounds = measure([([options.ours], sample(SMALL, k, 16, selection)) for k in counts], options)
    show(name, [f"K = {k}" for k in counts], rounds, 16, "image steps/s", goal)


CASES = {
    "train-small": lambda name, o: against_peer(name, train(SMALL, 32), o, 1.1),
    "train-b2": lambda name, o: against_peer(name, train(B2, 4), o, 1.0),
    "sample-small": lambda name, o: against_peer(name, sample(SMALL, 8, 16, {"top-k": 2}), o, 1.3),
    "sample-b2": lambda name, o: against_peer(name, sample(B2, 2, 1, {"top-k": 2}), o),
    "growth-top2": lambda name, o: growth(name, {"top-k": 2}, [8, 64], o, 1.15),
    "growth-full": lambda name, o: growth(name, "full", [8, 16, 32], o, 2.0),
}
# XL/2 on the first CUDA card: a training step, with and without recomputation, and 50 steps of sampling 256x256 pixels.
CARD_CASES = {
    "card-train-xl2": lambda name, o: on_card(name, train(XL2, 128, "bf16", cuda=True), o, 5),
    "card-train-xl2-recompute": lambda name, o: on_card(name, train(XL2, 128, "bf16", cuda=True, recompute=True), o, 5),
    "card-sample-xl2": lambda name, o: on_card(name, sample(XL2, 8, 4, {"top-k": 2}, cuda=True), o, 50),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"what to measure: {', '.join(CASES)}, which is all by default; on a CUDA card also {', '.join(CARD_CASES)}")
    parser.add_argument("--ours", required=True, help="hdd-node's side")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of each side [%(default)s]")
    parser.add_argument("--rounds", type=int, default=9, help="turns of each side [%(default)s]")
    parser.add_argument("--seconds", type=float, default=3.0, help="of a turn, about [%(default)s]")
    options = parser.parse_args()
    known = CASES | CARD_CASES
    if unknown := [name for name in options.cases if name not in known]:
        parser.error(f"no case is named {unknown[0]}; there are {', '.join(known)}")
    for name in options.cases or CASES:
        known[name](name, options)


main()
