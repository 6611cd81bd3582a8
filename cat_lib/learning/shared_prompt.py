"""A GRPO update that computes each shared prompt once, exactly.

TRL runs prompt plus completion for every rollout, so a prompt of a group is computed G times, and few-shot text
that all prompts open with once more for each of them. Here a micro-batch becomes one row, a tree:

    [common prefix] [prompt 1's rest] [rollout 1,1] ... [rollout 1,G] [prompt 2's rest] [rollout 2,1] ...

with an attention mask that lets a token see its own ancestors only, and positions as if each branch stood alone.
The log-probabilities are those of TRL's own pass (a test compares them, and the gradients). Attention over the row
is quadratic in its length, so long rows, and batches with little to share, go TRL's way; so do rollouts that pass a
sliding window, which the tree's mask does not know.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from trl import GRPOTrainer
from trl.trainer.utils import RepeatSampler, split_tensor_dict

from cat_lib.learning.checkpoints import Exact
from cat_lib.models.attention import fits_window
from cat_lib.models.passes import Row, common_prefix

LONGEST_ROW = 4096


class EpochSampler(RepeatSampler):  # type: ignore[misc]
    """TRL's order of questions, which a resume finds again in later epochs too: TRL's own begins with the first."""

    def set_epoch(self, epoch: int) -> None:
        """Called before each epoch: go to where `epoch` earlier ones leave the generator."""
        self.generator.manual_seed(self.seed)
        for _ in range(epoch):
            torch.randperm(self.num_samples, generator=self.generator)


class SharedPromptTrainer(Exact, GRPOTrainer):  # type: ignore[misc]  # TRL ships no types
    """GRPOTrainer with the shared-prompt pass. `computed` counts a step's tokens (with gradient, without)."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.computed = [0, 0]

    def _get_train_sampler(self, dataset: Any = None) -> EpochSampler:
        order = super()._get_train_sampler(dataset)
        repeats = order.mini_repeat_count, order.batch_size, order.repeat_count
        return EpochSampler(order.data_source, *repeats, order.shuffle, order.seed)

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        """As TRL's, less the shuffle of rows: micro-batches keep whole groups, which is what there is to share.

        Right for training alone, and one pass over each rollout: `eval_strategy` and `num_iterations` are decided.
        """
        steps = self.args.steps_per_generation
        if self._step % steps == 0:
            self._buffered_inputs = split_tensor_dict(self._generate_and_score_completions(generation_batch), steps)
        return self._buffered_inputs[self._step % steps]

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """As TRL's, but on several CPU processes it loads to a place `cpu:1`, which torch.load does not know."""
        if checkpoint is None or self.args.world_size == 1 or self.args.device.type != "cpu":
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        for part, name in ((self.optimizer, "optimizer.pt"), (self.lr_scheduler, "scheduler.pt")):
            part.load_state_dict(torch.load(Path(checkpoint) / name, map_location="cpu", weights_only=True))

    def _get_per_token_logps_and_entropies(self, model: Any, *args: Any, **kwargs: Any) -> Any:
        """Log-probabilities (B, C) and entropies (B, C) of the completion tokens, through the tree where it pays."""
        input_ids, attention_mask, keep = args
        size = kwargs.get("batch_size") or len(input_ids)
        trees = [Tree(*part, keep) for part in zip(input_ids.split(size), attention_mask.split(size), strict=True)]
        pays = all(tree.pays and fits_window(self.model.config, max(tree.row.positions) + 1) for tree in trees)
        counter = 0 if torch.is_grad_enabled() else 1
        self.computed[counter] += sum(tree.length for tree in trees) if pays else input_ids.numel()
        if not pays:
            return super()._get_per_token_logps_and_entropies(model, *args, **kwargs)
        parts = zip(*(tree.logps(model, self.temperature) for tree in trees), strict=True)
        logps, entropies = map(torch.cat, parts)
        return logps, entropies if kwargs.get("compute_entropy") else None, None


class Tree:
    """A left-padded batch of prompt + completion rows, laid out as one row of shared tokens."""

    def __init__(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, completion_width: int) -> None:
        rows = [ids[mask.bool()].tolist() for ids, mask in zip(input_ids, attention_mask, strict=True)]
        tails = attention_mask[:, -completion_width:].sum(1).tolist()
        prompts = [row[: len(row) - tail] for row, tail in zip(rows, tails, strict=True)]
        prefix = common_prefix(prompts)
        self.device, self.row = input_ids.device, Row()
        self.source = torch.zeros(len(rows), completion_width, dtype=torch.long)  # what predicts each token
        self.target = input_ids[:, -completion_width:]
        self.row.add(rows[0][:prefix])
        for b, (prompt, tail) in enumerate(zip(prompts, tails, strict=True)):
            if b == 0 or prompt != prompts[b - 1]:
                last = self.row.add(prompt[prefix:], prefix - 1)[-1]
            self.source[b, :tail] = torch.tensor(self.row.add(rows[b][len(prompt) :], last)[:-1])
        self.length = len(self.row.tokens)
        self.pays = self.length <= LONGEST_ROW and 4 * self.length <= 3 * sum(map(len, rows))

    def logps(self, model: Any, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probabilities and entropies (B, C) at `temperature`; padding positions hold arbitrary numbers."""
        wanted, index = torch.unique(self.source, return_inverse=True)
        logits = model(
            input_ids=torch.tensor([self.row.tokens], device=self.device),
            attention_mask=self.row.mask()[None, None].to(self.device),
            position_ids=torch.tensor([self.row.positions], device=self.device),
            logits_to_keep=wanted.to(self.device),
            use_cache=False,
        ).logits[0]
        logp = (logits.float() / temperature).log_softmax(-1)  # (rows wanted, V)
        with torch.no_grad():
            entropy = -(logp.exp() * logp).sum(-1)
        index = index.to(self.device)
        return logp[index, self.target], entropy[index]
