"""A LightningModule with an optimizer and a schedule by name, and the averages of schedule-free ones where they belong:

python examples/lightning_module.py [OPTIMIZER]
python examples/lightning_module.py adamw_schedule_free
"""

import sys
import tempfile

import torch
from data import collate, load_sequences, report, tiny_gpt2
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint

import schedules
from hfoptim import create_optimizer_v2

STEPS, VALIDATE_EVERY, SEQUENCES = 80, 40, 16


class EvaluationWeights(Callback):
    """Puts the weights to evaluate with into the model for validation and checkpoints, of optimizers that have others.

    Those are schedule-free optimizers and wrappers: they have `train()` and `eval()`. All others are left alone.
    """

    def setup(self, trainer, module, stage):
        self.trainer = trainer

    def on_train_batch_start(self, *_):
        self.switch("train")

    def on_evaluation(self, *_):
        self.switch("eval")

    # ModelCheckpoint comes after all other callbacks, and saves at the end of a validation, of an epoch, or in between.
    on_validation_start = on_test_start = on_predict_start = on_train_epoch_end = on_train_end = on_evaluation

    def state_dict(self):
        # Asked for by every checkpoint to resume from, before the optimizers are. The weights are not copied by then.
        self.switch("eval")
        return {}

    def switch(self, mode):
        for optimizer in self.trainer.optimizers:
            if hasattr(optimizer, mode):
                getattr(optimizer, mode)()


class LanguageModel(LightningModule):
    def __init__(self, name):
        super().__init__()
        self.model, self.name, self.losses = tiny_gpt2(), name, []

    def training_step(self, batch, index):
        loss = self.model(**batch).loss
        self.losses.append(loss.item())
        return loss

    def validation_step(self, batch, index):
        self.log("val_loss", self.model(**batch).loss, batch_size=len(batch["labels"]))

    def configure_optimizers(self):
        optimizer = create_optimizer_v2(self.model, self.name, lr=2e-3, weight_decay=0.1)
        if "schedule_free" in self.name:
            return optimizer
        schedule = schedules.get_scheduler("cosine", optimizer, num_warmup_steps=8, num_training_steps=STEPS)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def loader(sequences, **options):
    return torch.utils.data.DataLoader(sequences, SEQUENCES, collate_fn=collate, **options)


def main(name, folder):
    seed_everything(0, verbose=False)
    sequences = load_sequences()
    module = LanguageModel(name)
    checkpoint = ModelCheckpoint(folder, "best", monitor="val_loss")
    trainer = Trainer(
        max_steps=STEPS,
        val_check_interval=VALIDATE_EVERY,
        accelerator="cpu",
        callbacks=[EvaluationWeights(), checkpoint],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, loader(sequences[256:], shuffle=True), loader(sequences[:256]))
    saved = torch.load(checkpoint.best_model_path, weights_only=True)["state_dict"]
    module.load_state_dict(saved)
    (again,) = trainer.validate(module, loader(sequences[:256]), verbose=False)
    print(f"val_loss {checkpoint.best_model_score:.4f}, of the checkpoint's weights {again['val_loss']:.4f}")
    report(trainer.optimizers[0], module.losses)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(sys.argv[1] if len(sys.argv) > 1 else "lion", folder)
