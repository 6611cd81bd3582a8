"""The batched judge with shared prefixes against one `generate` call per criterion, on the same model.

    python benchmarks/judge.py [REPEATS]

8 rollouts of 300 to 700 tokens, 5 criteria each, yes-or-no log-odds. Before timing, both sides' verdicts on the 40
pairs are compared in float32 (in bfloat16 a near-tie can fall either way; those are counted too).
"""

from __future__ import annotations

import random
import sys

import torch

from cat_lib.measuring.audit import clinic_pairs
from cat_lib.method.judge import _HOLE, Judge, _log_odds
from cat_lib.models import load_model
from common import compare

repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 5
model = load_model("embedded")
judge = Judge(model.anchor("judge"), "few_shot")
audited = clinic_pairs()[0]
texts = list(dict.fromkeys(p.response for p in audited))
rng = random.Random(0)
rollouts = []
for tokens in range(300, 701, 57):  # 8 lengths
    text = ""
    while len(model.encode(text)) < tokens:
        text += rng.choice(texts) + " "
    rollouts.append(model.tokenizer.decode(model.encode(text)[:tokens]))
criteria = rng.sample([p.criterion for p in audited], 5)
pairs = [(r, c) for r in rollouts for c in criteria]
words = [model.tokenizer(w, add_special_tokens=False).input_ids[0] for w in (" yes", " Yes", " no", " No")]


def one_by_one() -> list[float]:
    """What a plain judge does: one `generate` call of one token for each pair."""
    scores = []
    for response, criterion in pairs:
        before, after = str(judge.request(response, _HOLE)).split(_HOLE)
        tail = model.tokenizer(f" {criterion}{after}", add_special_tokens=False).input_ids
        ids = torch.tensor([model.encode(before.removesuffix(" ")) + list(tail)])
        with torch.inference_mode():
            out = model.model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=1, do_sample=False,
                output_logits=True, return_dict_in_generate=True,
            )  # fmt: skip
        scores.append(_log_odds(out.logits[0][0].float().log_softmax(-1)[words].tolist()))
    return scores


def batched() -> list[float]:
    return [v.score or 0.0 for v in judge(pairs)]


def compared(where: str) -> None:
    theirs, ours = one_by_one(), batched()
    cut = sorted(theirs)[len(theirs) // 2 - 1 : len(theirs) // 2 + 1]
    threshold = sum(cut) / 2  # half of the pairs on each side: the hardest place to agree
    same = sum((a > threshold) == (b > threshold) for a, b in zip(theirs, ours, strict=True))
    furthest = max(abs(a - b) for a, b in zip(theirs, ours, strict=True))
    print(f"{where}: {same} of {len(pairs)} verdicts equal, log-odds differ by at most {furthest:.1e}")


model.model.float()
compared("float32")
model.model.bfloat16()
compared("bfloat16")
what = "seconds of one generate call per criterion over seconds of the batched shared-prefix judge"
compare(lambda _: one_by_one(), lambda _: batched(), repeats, what)
