"""Fine-tuning on pseudo-references, with the real model."""

from __future__ import annotations

import json
from dataclasses import replace

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from tiny import tiny_policy

from cat_lib.learning.grpo import add_lora
from cat_lib.learning.session import SFTSession
from cat_lib.learning.sft import SFTSettings, _ended, _row, finetune, kept_references
from cat_lib.ledger import Cost, Ledger
from cat_lib.models import load_model
from cat_lib.runs.tracking import Run
from cat_lib.schema import Example, Reference
from cat_lib.tasks.arithmetic import Arithmetic
from cat_lib.tasks.formulate import FormulateTask

TASK = Arithmetic()
QUESTIONS = TASK.examples("train", 16, 0)


def references(questions) -> list[Reference | None]:
    return [Reference(f"{e.question[8:-1]} = 77", "77", "made up") for e in questions]


def test_the_policy_learns_to_write_its_references_and_keeps_the_best_epoch(tmp_path):
    policy = add_lora(load_model("embedded"), 8, 0)
    lies = [replace(e, gold="123456") for e in QUESTIONS]
    settings = SFTSettings(epochs=4, batch_size=4, learning_rate=2e-3)
    tuned = finetune(
        policy, TASK, lies, [*references(lies)[:-2], None, Reference("no", None, "x")], settings, Run(tmp_path)
    )
    assert tuned.references == 14
    losses = tuned.history["validation_loss"]
    assert losses.min() < losses.iloc[0]
    assert tuned.best_epoch == tuned.history.loc[losses.idxmin(), "epoch"]
    assert (tuned.adapter / "adapter_model.safetensors").exists()
    held = TASK.examples("heldout", 8, 0)
    written = [c.text for (c,) in policy.generate([e.prompt for e in held], 1, replace(TASK.sampling, temperature=0))]
    assert sum(text.strip().endswith("= 77") for text in written) >= 6, written
    assert policy.ledger.roles["update"].flops > 0


def test_targets_are_what_the_policy_would_have_generated(embedded):
    row = _row(embedded, TASK, QUESTIONS[0], Reference("2 + 2 = 4", "4", "x"))
    prompt = embedded.encode(QUESTIONS[0].prompt)
    assert row["input_ids"][: len(prompt)] == prompt
    assert row["labels"][: len(prompt)] == [-100] * len(prompt)
    target = row["labels"][len(prompt) :]
    assert embedded.tokenizer.decode(target) == " 2 + 2 = 4\n"
    assert target[-1] in embedded.stop_ids(TASK.sampling.stop)
    chat = Example("c", "Hi?", [{"role": "user", "content": "Hi?"}], "", "")
    task = replace_sampling(TASK, ())
    row = _row(embedded, task, chat, Reference("Hello.", None, "x"))
    assert row["labels"][-1] == embedded.tokenizer.eos_token_id


def test_a_word_that_ends_a_target_stands_on_a_line_of_its_own(embedded):
    task = FormulateTask(("one_product",), each=1)
    (example,) = task.examples("train", 1, 0)
    model = task.gold_models[example.id]
    row = _row(embedded, task, example, Reference(model.removesuffix("end"), example.gold, "gold"))
    target = [token for token in row["labels"] if token >= 0]
    assert embedded.tokenizer.decode(target) == model
    assert target[-1] in embedded.stop_ids(task.sampling.stop)


def replace_sampling(task, stop):
    other = Arithmetic()
    other.sampling = replace(task.sampling, stop=stop)
    return other


def test_too_little_to_learn_from_is_refused(embedded, tmp_path):
    with pytest.raises(ValueError, match="add_lora"):
        finetune(embedded, TASK, QUESTIONS, references(QUESTIONS), SFTSettings(), Run(tmp_path))
    policy = tiny_policy()
    with pytest.raises(ValueError, match="3 of 16 references can be learnt from; at least 4"):
        finetune(policy, TASK, QUESTIONS, [*references(QUESTIONS)[:3], *[None] * 13], SFTSettings(), Run(tmp_path))
    with pytest.raises(ValueError, match="validation_share=1"):
        SFTSettings(validation_share=1)
    with pytest.raises(ValueError, match="adapter inside"):
        add_lora(replace(policy, model=policy.model.base_model.model, initial=None), 4, 0)


WORDS = """grey quilts under umbrellas dream violet oceans beyond marble harbors whispering ancient secrets toward
sleepy foxes while distant thunder rolls across purple meadows""".replace("\n", " ")
# what validation is on (None: the same as is learnt), the learning rate and the most epochs
HELD = {"the same": (None, 2e-3, 3), "what is unlearnt": (WORDS, 1e-2, 5)}


def tune(run, held="the same", resume=True):
    """Fine-tune a tiny policy whose words are far apart, so that it can overfit; validated on one of `HELD`."""
    targets, (text, rate, epochs), policy = references(QUESTIONS), HELD[held], tiny_policy()
    policy.plain.get_output_embeddings().weight.data.mul_(10)
    targets[-3:] = [replace(r, text=text or r.text) for r in targets[-3:]]
    settings = SFTSettings(epochs=epochs, batch_size=4, learning_rate=rate, patience=2)
    tuned = finetune(policy, TASK, QUESTIONS, targets, settings, run, resume=resume)
    return tuned, load_file(tuned.adapter / "adapter_model.safetensors"), policy


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return {held: tune(Run(tmp_path_factory.mktemp("whole")), held, resume=False) for held in HELD}


@pytest.mark.parametrize(("held", "epochs", "best"), [("the same", 3, 3), ("what is unlearnt", 4, 2)])
def test_a_resumed_run_ends_as_the_undisturbed_one_and_an_ended_one_is_not_trained_again(
    tmp_path, undisturbed, held, epochs, best
):
    class Killed(Run):
        def step(self, metrics, step, of=0):
            if step == epochs:
                raise KeyboardInterrupt
            super().step(metrics, step, of)

    whole, adapter, _ = undisturbed[held]
    with pytest.raises(KeyboardInterrupt):
        tune(Killed(tmp_path), held, resume=False)
    resumed, again, _ = tune(Run(tmp_path), held)
    assert resumed.history.equals(whole.history)
    # killed in the last, after none or one without a lower loss
    assert (len(whole.history), whole.best_epoch) == (epochs, best)
    assert all(torch.equal(again[name], value) for name, value in adapter.items())
    assert resumed.spent["update"].flops == whole.spent["update"].flops
    ended, same, policy = tune(Run(tmp_path), held)
    assert all(torch.equal(same[name], value) for name, value in adapter.items())
    assert "update" not in policy.ledger.roles
    assert ended.spent["update"] == resumed.spent["update"]
    assert ended.history.equals(whole.history)


def test_ctrl_c_inside_an_epoch_saves_its_step_and_the_resume_ends_as_the_undisturbed_run(
    tmp_path, undisturbed, monkeypatch
):
    def interrupt(self, args, state, control, **_):
        if state.global_step == 6:  # of four steps an epoch
            raise KeyboardInterrupt

    whole, adapter, _ = undisturbed["the same"]
    with monkeypatch.context() as patch:
        patch.setattr(SFTSession, "on_step_begin", interrupt)
        with pytest.raises(KeyboardInterrupt):
            tune(Run(tmp_path))
    saved = tmp_path / "checkpoints/checkpoint-6"
    assert json.loads((saved / "interrupted.json").read_text()) == {"step": 6, "of": 12}
    resumed, again, _ = tune(Run(tmp_path))
    assert resumed.history.equals(whole.history)
    assert all(torch.equal(again[name], value) for name, value in adapter.items())


def test_references_are_made_once_a_run(tmp_path):
    made, ledger = [], Ledger()

    def make():
        made.append(1)
        ledger.add("anchor", prompt_tokens=3, completion_tokens=1, flops=2.0, seconds=0.5)
        return [Reference("2 + 2 = 4", "4", "x"), None]

    first = kept_references(Run(tmp_path), ledger, make)
    assert kept_references(Run(tmp_path), ledger, make) == first
    assert first == ([Reference("2 + 2 = 4", "4", "x"), None], {"anchor": Cost(1, 3, 1, 2.0, 0.5)})
    assert made == [1]


@pytest.mark.parametrize(
    ("losses", "ended"),
    [([], False), ([3, 2], False), ([3, 2, 2], False), ([3, 2, 2, 2.5], True), ([3, 2, 1, 0.5, 0.4], True)],
)
def test_training_ends_with_its_epochs_or_when_the_loss_has_not_fallen_for_so_many(losses, ended):
    table = pd.DataFrame({"epoch": range(1, len(losses) + 1), "validation_loss": losses})
    assert _ended(table, SFTSettings(epochs=5, patience=2)) == ended
