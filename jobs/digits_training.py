"""The training behind ``digits.py``: its steps, its reports, and what a checkpoint holds.

Kept apart from the command line, which answers signals and wrong options before it imports torch.
"""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 - its name everywhere in torch code
from digits_model import DigitsNet, Images, load_images
from jobkit.checkpoint import CheckpointStore, read_checkpoint
from jobkit.metrics import MetricsLog
from jobkit.ranks import Ranks, open_ranks, parameter_digest
from jobkit.stop import CHECKPOINTED, StopRequest

_METRICS_EVERY_STEPS = 10


class UnusableSettingsError(Exception):
    """The settings do not fit the data or the checkpoint that is there."""


@dataclass(frozen=True)
class Recipe:
    """What has to stay the same from the first step to the last for one result to come out."""

    batch_size: int
    """Images per step, over all ranks together."""
    lr: float
    """Peak learning rate."""
    seed: int


@dataclass(frozen=True)
class Settings:
    """Everything that the command line decides."""

    recipe: Recipe
    epochs: int
    checkpoint_dir: Path
    checkpoint_every: int
    """Steps between two checkpoints."""
    step_delay: float
    """Seconds of sleep after every step."""
    amp: bool
    """Mixed precision, where the device is a CUDA GPU."""
    metrics: Path | None


class Validation(NamedTuple):
    """Mean cross entropy in nats, and the share of digits that were recognised, from 0 to 1."""

    loss: float
    accuracy: float


class Trainer:
    """A network on its way through the training, one step at a time, on this rank."""

    def __init__(self, settings: Settings, ranks: Ranks) -> None:
        """Set up step 0.

        Raises:
            UnusableSettingsError: when a batch is larger than the whole training set.
        """
        self._recipe = settings.recipe
        self._ranks = ranks
        self._train, self._val = load_images(ranks.device)
        self.steps_per_epoch = len(self._train.digits) // self._recipe.batch_size
        if self.steps_per_epoch == 0:
            raise UnusableSettingsError(
                f"--batch-size {self._recipe.batch_size} is more than the "
                f"{len(self._train.digits)} training images"
            )
        self.total_steps = settings.epochs * self.steps_per_epoch
        self.step = 0
        torch.manual_seed(self._recipe.seed)
        self._model = DigitsNet().to(ranks.device)
        self._parallel = ranks.wrap(self._model)
        self._optimizer = torch.optim.AdamW(self._model.parameters(), lr=self._recipe.lr)
        self._scheduler = torch.optim.lr_scheduler.LambdaLR(
            self._optimizer, lambda step: _lr_factor(step / self.total_steps)
        )
        self._amp = settings.amp and ranks.device.type == "cuda"
        self._scaler = torch.amp.GradScaler("cuda", enabled=self._amp)
        self._loss = torch.zeros((), device=ranks.device)
        self._loss_sum = torch.zeros((), device=ranks.device)
        # Each rank drops out other neurons. The network above started from one seed everywhere.
        torch.manual_seed(self._recipe.seed + ranks.rank)

    @property
    def epoch(self) -> int:
        """The number of epochs that are finished."""
        return self.step // self.steps_per_epoch

    @property
    def at_epoch_end(self) -> bool:
        """Whether the last step was the last one of an epoch."""
        return self.step % self.steps_per_epoch == 0

    @property
    def lr(self) -> float:
        """The learning rate of the next step."""
        return float(self._scheduler.get_last_lr()[0])

    def train_step(self) -> None:
        """Train on the next batch, of which every rank takes an equal part."""
        if self.at_epoch_end:
            self._loss_sum.zero_()
        batch = self._batch()
        self._parallel.train()
        self._optimizer.zero_grad()
        with torch.autocast(self._ranks.device.type, enabled=self._amp):
            loss = F.cross_entropy(self._parallel(batch.scans), batch.digits)
        self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call] # torch leaves it bare
        scale = self._scaler.get_scale()
        self._scaler.step(self._optimizer)
        self._scaler.update()
        # The scale falls when the step was left out for an overflow. The schedule then waits,
        # and torch would warn about one that runs ahead of the optimizer.
        if self._scaler.get_scale() >= scale:
            self._scheduler.step()
        self._loss = loss.detach()
        self._loss_sum += self._loss
        self.step += 1

    def _batch(self) -> Images:
        """Return this rank's part of the next batch.

        The order of an epoch follows from seed and epoch alone, so a run that resumes in the
        middle of one continues with the images that are left. Those beyond the last full batch
        sit the epoch out; they are others every time.
        """
        generator = torch.Generator().manual_seed(self._recipe.seed * 1_000_003 + self.epoch)
        order = torch.randperm(len(self._train.digits), generator=generator)
        start = (self.step % self.steps_per_epoch) * self._recipe.batch_size
        indices = order[start : start + self._recipe.batch_size]
        mine = indices[self._ranks.rank :: self._ranks.world_size].to(self._ranks.device)
        return Images(self._train.scans[mine], self._train.digits[mine])

    def loss(self) -> float:
        """Return the training loss of the last step, over all ranks."""
        return self._ranks.mean(float(self._loss))

    def epoch_loss(self) -> float:
        """Return the mean training loss of this epoch's steps so far, over all ranks."""
        steps = (self.step - 1) % self.steps_per_epoch + 1
        return self._ranks.mean(float(self._loss_sum)) / steps

    @torch.no_grad()
    def validate(self) -> Validation:
        """Return the result on the validation images, of which every rank looks at a part."""
        self._model.eval()
        scans = self._val.scans[self._ranks.rank :: self._ranks.world_size]
        digits = self._val.digits[self._ranks.rank :: self._ranks.world_size]
        with torch.autocast(self._ranks.device.type, enabled=self._amp):
            logits = self._model(scans)
        loss = F.cross_entropy(logits.float(), digits, reduction="sum")
        correct = (logits.argmax(dim=1) == digits).sum()
        # Sums and not means: the parts need not be of one size.
        sums = self._ranks.sum([float(loss), float(correct), float(len(digits))])
        return Validation(loss=sums[0] / sums[2], accuracy=sums[1] / sums[2])

    def state(self) -> dict[str, Any]:
        """Return all that a resumed run needs, gathered from every rank.

        Any number of ranks can resume from it: the ranks differ in their random generators only,
        and one that is new keeps its own.
        """
        on_gpu = self._ranks.device.type == "cuda"
        return {
            "recipe": asdict(self._recipe),
            "step": self.step,
            "epoch": self.epoch,
            "model": self._model.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "scheduler": self._scheduler.state_dict(),
            "scaler": self._scaler.state_dict(),
            "loss_sum": self._ranks.mean(float(self._loss_sum)),
            "random": self._ranks.gather(torch.get_rng_state()),
            "cuda_random": self._ranks.gather(torch.cuda.get_rng_state() if on_gpu else None),
            "parameter_digests": self._ranks.gather(parameter_digest(self._model)),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from ``state``, which ``state()`` returned in another process.

        Raises:
            UnusableSettingsError: when it belongs to a training with another recipe.
        """
        theirs, ours = state.get("recipe", {}), asdict(self._recipe)
        differing = [name for name in ours if theirs.get(name) != ours[name]]
        if differing:
            names = ", ".join(f"{name} {theirs.get(name)}, not {ours[name]}" for name in differing)
            raise UnusableSettingsError(
                f"the checkpoint was made with {names}: choose another --checkpoint-dir"
            )
        self.step = state["step"]
        self._model.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._scheduler.load_state_dict(state["scheduler"])
        # Empty when the checkpoint was made without mixed precision.
        if self._amp and state["scaler"]:
            self._scaler.load_state_dict(state["scaler"])
        self._loss_sum.fill_(state["loss_sum"])
        rank = self._ranks.rank
        if rank < len(state["random"]):
            torch.set_rng_state(state["random"][rank])
            cuda_random = state["cuda_random"][rank]
            if cuda_random is not None and self._ranks.device.type == "cuda":
                torch.cuda.set_rng_state(cuda_random)


def _lr_factor(progress: float) -> float:
    """Return the share of the peak learning rate: half a cosine, 1 at progress 0 and 0 at 1."""
    return 0.5 * (1 + math.cos(math.pi * min(progress, 1)))


class Session:
    """One run of the program: resumes, trains, reports, and leaves in good order."""

    def __init__(self, settings: Settings, stop: StopRequest, ranks: Ranks) -> None:
        """Continue from the newest intact checkpoint, or start at step 0.

        Raises:
            UnusableSettingsError: when the settings do not fit the data or the checkpoint.
            OSError: when the checkpoint directory or the metrics file cannot be used.
        """
        self._started = time.monotonic()
        self._settings = settings
        self._stop = stop
        self._ranks = ranks
        self._trainer = Trainer(settings, ranks)
        self._store = CheckpointStore(settings.checkpoint_dir)
        self._seconds_before = 0.0
        self._saved_step = -1
        self._say(f"device={ranks.device} ranks={ranks.world_size} backend={ranks.backend or '-'}")
        self._resume()

    def _say(self, line: str) -> None:
        if self._ranks.is_main:
            print(line, flush=True)

    def _resume(self) -> None:
        # Only rank 0 picks the file, so that all of them load the same one.
        latest = self._store.load_latest(self._say) if self._ranks.is_main else None
        path = self._ranks.broadcast(latest.path if latest is not None else None)
        if path is None:
            return
        state = latest.state if latest is not None else read_checkpoint(path)
        self._trainer.load_state(state)
        self._seconds_before = state["seconds"]
        self._saved_step = self._trainer.step
        self._say(f"resumed from step {self._trainer.step}/{self._trainer.total_steps} in {path}")

    def run(self, metrics: MetricsLog) -> int:
        """Train to the end or until somebody asks to stop.

        Returns:
            0 at the end, 75 when stopped with the work in a checkpoint.

        Raises:
            OSError: when a checkpoint or a metrics line cannot be written.
        """
        trainer = self._trainer
        validation: Validation | None = None
        while trainer.step < trainer.total_steps:
            # All ranks leave before the same step, whichever of them was asked. One that left
            # alone would keep the others waiting for its gradients.
            if self._ranks.any(self._stop.reason() is not None):
                return self._leave()
            trainer.train_step()
            self._report_step(metrics)
            if trainer.at_epoch_end:
                validation = self._report_epoch(metrics)
            if trainer.step % self._settings.checkpoint_every == 0:
                self._save()
            self._stop.sleep(self._settings.step_delay)
        self._save()
        accuracy = (validation or trainer.validate()).accuracy
        self._say(
            f"val_accuracy={accuracy:.4f} epochs={trainer.epoch} seconds={self._seconds():.1f}"
        )
        return 0

    def _seconds(self) -> float:
        """Return the seconds spent so far, those before the resumed checkpoint included."""
        return self._seconds_before + time.monotonic() - self._started

    def _leave(self) -> int:
        reason = self._stop.reason() or "asked on another rank"
        self._save()
        self._say(
            f"stopped ({reason}): step {self._trainer.step}/{self._trainer.total_steps} "
            f"is in {self._settings.checkpoint_dir}, exit code {CHECKPOINTED}"
        )
        return CHECKPOINTED

    def _save(self) -> None:
        if self._trainer.step == self._saved_step:
            return
        state = self._trainer.state()
        if len(set(state["parameter_digests"])) > 1:
            self._say("warning: the ranks' parameters differ; the checkpoint holds rank 0's")
        if self._ranks.is_main:
            self._store.save(self._trainer.step, {**state, "seconds": self._seconds()})
        self._saved_step = self._trainer.step

    def _report_step(self, metrics: MetricsLog) -> None:
        trainer = self._trainer
        if trainer.step % _METRICS_EVERY_STEPS == 0:
            loss = trainer.loss()
            metrics.write(step=trainer.step, total=trainer.total_steps, loss=loss, lr=trainer.lr)

    def _report_epoch(self, metrics: MetricsLog) -> Validation:
        trainer = self._trainer
        loss, validation = trainer.epoch_loss(), trainer.validate()
        metrics.write(
            step=trainer.step,
            total=trainer.total_steps,
            epoch=trainer.epoch,
            train_loss=loss,
            val_loss=validation.loss,
            val_accuracy=validation.accuracy,
        )
        self._say(
            f"epoch {trainer.epoch}/{self._settings.epochs} train_loss={loss:.4f} "
            f"val_loss={validation.loss:.4f} val_accuracy={validation.accuracy:.4f}"
        )
        return validation


def train(settings: Settings, stop: StopRequest) -> int:
    """Run the training that ``settings`` describe, on as many ranks as the environment says.

    Returns:
        0 at the end, 75 when stopped with the work in a checkpoint.

    Raises:
        UnusableSettingsError: when the settings do not fit the data or the checkpoint.
        OSError: when checkpoints or metrics cannot be written.
    """
    with open_ranks() as ranks, MetricsLog(settings.metrics if ranks.is_main else None) as metrics:
        return Session(settings, stop, ranks).run(metrics)
