"""Lightning's BackboneFinetuning: a head first, then the backbone too, whose group joins the schedule when it comes:

python examples/lightning_finetuning.py [OPTIMIZER]
"""

import sys

import torch
from data import IGNORED, collate, load_sequences, report, tiny_gpt2
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import BackboneFinetuning
from torch import nn

import schedules
from hfoptim import create_optimizer_v2

EPOCHS, STEPS, SEQUENCES = 4, 20, 16  # STEPS in an epoch
UNFREEZE_AT = 1


class ScheduledFinetuning(BackboneFinetuning):
    """BackboneFinetuning under a schedule: `backbone_initial_lr` is scheduled as the head's learning rate is.

    By itself it sets the backbone's learning rate once an epoch, and the schedule knows nothing of its group.
    """

    def finetune_function(self, module, epoch, optimizer):
        if epoch == self.unfreeze_backbone_at_epoch:
            super().finetune_function(module, epoch, optimizer)
            module.lr_schedulers().take_on()
        elif epoch > self.unfreeze_backbone_at_epoch:
            self.make_trainable(module.backbone)  # a run that goes on from a checkpoint begins with it frozen


class Classifier(LightningModule):
    """A backbone that reads bytes, and a head that says which byte is next."""

    def __init__(self, name):
        super().__init__()
        self.backbone = tiny_gpt2().transformer
        self.head = nn.Linear(self.backbone.config.n_embd, self.backbone.config.vocab_size)
        self.name, self.losses = name, []

    def training_step(self, batch, index):
        hidden = self.backbone(batch["input_ids"]).last_hidden_state[:, :-1]
        labels = batch["labels"][:, 1:]
        loss = nn.functional.cross_entropy(self.head(hidden).flatten(0, 1), labels.flatten(), ignore_index=IGNORED)
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self):
        # Without names, as BackboneFinetuning knows none of the parameters that it adds.
        optimizer = create_optimizer_v2(self.head.parameters(), self.name, lr=5e-3)
        schedule = schedules.get_scheduler("cosine", optimizer, num_warmup_steps=8, num_training_steps=EPOCHS * STEPS)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_train_epoch_end(self):
        rates = ", ".join(f"{group['lr']:.2e}" for group in self.optimizers().param_groups)
        print(f"epoch {self.current_epoch}  loss {self.losses[-1]:.3f}  lr {rates}")


def main(name):
    seed_everything(0, verbose=False)
    module = Classifier(name)
    loader = torch.utils.data.DataLoader(load_sequences(), SEQUENCES, shuffle=True, collate_fn=collate)
    trainer = Trainer(
        max_epochs=EPOCHS,
        limit_train_batches=STEPS,
        accelerator="cpu",
        callbacks=[ScheduledFinetuning(UNFREEZE_AT, backbone_initial_lr=2e-3)],
        enable_checkpointing=False,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, loader)
    report(trainer.optimizers[0], module.losses)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "lion")
