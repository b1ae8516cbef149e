"""A timm model fine-tuned on ImageNet by the paper's recipe, and tested on ImageNet-ReaL before and after each epoch.

    python -m benchmarks.imagenet.real --plan
    python -m benchmarks.imagenet.real --data-dir IMAGENET --arm glem --flow NAME --amp bfloat16 --out runs/glem
    torchrun --nproc-per-node 8 -m benchmarks.imagenet.real --data-dir IMAGENET --arm sa --amp bfloat16 --batch-size 4 ...

IMAGENET holds train/ and val/ with a folder for each wnid. The paper's figures are in `benchmarks.imagenet.recipe`; its
baseline is the untouched model, which every run measures first: where timm's published figures are missed, it stops.

Arms. The data set is every image once as it is and three copies:

- baseline: three plain copies, so that every arm sees as many images (not the paper's baseline, see above);
- sa: copies through timm's RandAugment and RandomErasing;
- ce, glem: copies through NFAugment, with a flow of conditional encoding and one of class Gaussians;
- linear: the same without a network, with the eigen-images of each class, found in some training images of it at the start.

Ours, because the paper does not say: all images are brought to the model's size as for evaluation, without random crop or
flip, and the copies are augmented at that size and drawn anew in each epoch; SGD without momentum or weight decay; plain
cross-entropy; no drop path; 32 images a step. The weights stay in float32: a step of this recipe changes them by less than
half precision can hold.

A flow of other classes than ImageNet's 1,000 supplies the class of an image by its own posterior. `NFAugment.fit` would
give it ImageNet's, but not with conditional encoding, and both arms are to be treated alike.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import math
import random
import re
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import torch.distributed as dist
from timm.data import ImageNetInfo, RealLabelsImagenet, create_transform, resolve_data_config
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset
from torchvision.datasets import ImageFolder
from torchvision.datasets.folder import default_loader
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF

from benchmarks.core.common import command_line, environment, markdown_table, write_result
from benchmarks.imagenet import recipe
from timm_nfaug import ConditionalFlow, NFAugment, NFAugmentedDataset, create_flow
from timm_nfaug._utils.files import write_atomically
from timm_nfaug.integration.pillow import guard_posterize
from train_flow.distributed import init_distributed
from train_flow.schedule import generator

ARMS = ("baseline", "sa", "linear", "ce", "glem")
METRICS = ("top1", "top5", "real_top1", "real_top5")

# -- data --------------------------------------------------------------------------------------------------------------


class ImageNetFolder(ImageFolder):
    """Class folders named by wnid, with ImageNet's labels whichever of them are there.

    Images are uint8 (3, H, W), brought to the model's size as timm does for evaluation; an unreadable one raises.
    """

    def __init__(self, root: Path, data_config: dict[str, Any]):
        if not root.is_dir():
            raise FileNotFoundError(
                f"no directory {root}; --data-dir holds train/ and val/ with a folder for each wnid"
            )
        resize = create_transform(**data_config, is_training=False, normalize=False)
        super().__init__(root, loader=partial(_load, resize))

    def find_classes(self, directory: str | Path) -> tuple[list[str], dict[str, int]]:
        index = {wnid: k for k, wnid in enumerate(ImageNetInfo().label_names())}
        found = sorted(p.name for p in Path(directory).iterdir() if p.is_dir())
        strange = [name for name in found if name not in index]
        if strange or not found:
            raise ValueError(
                f"folders in {directory} must be named by ImageNet's wnids (n01440764, ...), got {strange[:4]}"
            )
        return found, {name: index[name] for name in found}


def _load(resize, path: str) -> Tensor:
    return resize(default_loader(path))


def normalized(data_config: dict[str, Any]) -> v2.Transform:
    """uint8 (3, H, W) to what the model takes."""
    return v2.Compose(
        [
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(data_config["mean"], data_config["std"]),
        ]
    )


class StandardCopies(Dataset):
    """The originals first, then `COPIES` versions of them all through timm's RandAugment and RandomErasing.

    The random numbers of a sample follow from (seed, epoch, index) alone, as in NFAugmentedDataset.
    """

    def __init__(self, base: ImageNetFolder, data_config: dict[str, Any], seed: int):
        guard_posterize()
        self.base, self.seed, self.epoch = base, seed, 0
        self.clean = normalized(data_config)
        # timm's own training transform; its crop is the whole image
        self.augmented = create_transform(
            data_config["input_size"], is_training=True, scale=(1.0, 1.0), ratio=(1.0, 1.0), hflip=0.0, color_jitter=0.0,
            auto_augment=recipe.RANDAUGMENT, **recipe.ERASING,
            interpolation=data_config["interpolation"], mean=data_config["mean"], std=data_config["std"],
        )  # fmt: skip

    def __len__(self) -> int:
        return (1 + recipe.COPIES) * len(self.base)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        copy, i = divmod(index, len(self.base))
        image, label = self.base[i]
        if not copy:
            return self.clean(image), label
        with seeded(f"{self.seed} {self.epoch} {index}"):
            return self.augmented(TF.to_pil_image(image)), label


@contextlib.contextmanager
def seeded(key: str):
    """Seeds the global generators, from which timm's augmentations draw, and puts them back as they were."""
    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "little")
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng(devices=[]):
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        torch.manual_seed(seed % 2**63)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002


def make_augment(arm: str, flow_name: str | None, strength: float) -> NFAugment | None:
    """The augmentation of the arms ce and glem; None for the others, which take none."""
    if arm not in ("ce", "glem"):
        if flow_name is not None:
            raise ValueError(
                f"arm {arm} uses no flow, got --flow {flow_name}; leave it out or choose --arm ce or glem"
            )
        return None
    if flow_name is None:
        raise ValueError(f"arm {arm} needs a flow: --flow NAME (bundled, directory or Hub id)")
    flow = ConditionalFlow.from_pretrained(flow_name)
    if flow.config.input_size[0] != 3:
        raise ValueError(
            f"ImageNet's images have 3 channels, {flow_name} takes {flow.config.input_size[0]}; name another flow"
        )
    if arm == "ce" and not flow.config.code_rows:
        raise ValueError(
            f"arm ce takes a flow of conditional encoding, {flow_name} has class Gaussians: use --arm glem"
        )
    if arm == "glem" and flow.config.code_rows:
        raise ValueError(
            f"arm glem takes a flow of class Gaussians, {flow_name} has conditional encoding: use --arm ce"
        )
    labels = "given" if flow.config.class_names == ImageNetInfo().label_names() else "posterior"
    return NFAugment(
        flow, strength=strength, modes=min(recipe.MODES, flow.prior.num_modes), p=1.0, labels=labels
    )


def fit_linear(base: ImageNetFolder, strength: float, workers: int) -> NFAugment:
    """The augmentation of the arm linear, from the first `FIT_IMAGES` training images of each class, in one pass."""
    picked: dict[int, list[int]] = {}
    for i, label in enumerate(base.targets):
        if len(picked.setdefault(label, [])) < recipe.FIT_IMAGES:
            picked[label].append(i)
    some = Subset(base, [i for images in picked.values() for i in images])
    loader = DataLoader(
        some, 64, num_workers=workers, generator=torch.Generator()
    )  # draws nothing from the global one
    flow = create_flow("linear", input_size=(3, recipe.FIT_SIZE, recipe.FIT_SIZE))
    augment = NFAugment.to_fit(flow, strength=strength, modes=recipe.MODES, p=1.0, labels="given")
    return augment.fit(loader, recipe.CLASSES, allow_empty=True)


def training_set(
    arm: str,
    base: ImageNetFolder,
    data_config: dict[str, Any],
    augment: NFAugment | None,
    seed: int,
) -> Dataset:
    """(1 + COPIES) * len(base) samples, the originals first; see the arms above."""
    if arm == "sa":
        return StandardCopies(base, data_config, seed)
    if augment is not None:
        data = NFAugmentedDataset(base, augment, recipe.COPIES, seed=seed)
        data.transform = normalized(data_config)
        return data
    base.transform = normalized(data_config)
    return ConcatDataset([base] * (1 + recipe.COPIES))


# -- evaluation --------------------------------------------------------------------------------------------------------


def real_name(path: str) -> str:
    """The official name of a validation image, by which the ReaL labels go.

    Args:
        path: ends in ILSVRC2012_val_%08d.JPEG, or _nXXXXXXXX.JPEG after the number, as copies on the Hub do.
    """
    match = re.fullmatch(r"(ILSVRC2012_val_(\d{8}))(_n\d{8})?\.JPEG", Path(path).name)
    if not match or not 1 <= int(match[2]) <= recipe.VAL_IMAGES:
        raise ValueError(
            f"validation images must be named ILSVRC2012_val_00000001.JPEG to ILSVRC2012_val_{recipe.VAL_IMAGES:08d}.JPEG "
            f"(or ..._nXXXXXXXX.JPEG), because the ReaL labels go by these names; got {Path(path).name}: unpack the "
            "official archive anew"
        )
    return f"{match[1]}.JPEG"


def real_names(paths: list[str]) -> list[str]:
    names = [real_name(path) for path in paths]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(
            f"{twice} is there more than once; remove the copies from the validation folder"
        )
    return names


def accuracy(top5: Tensor, labels: Tensor, names: list[str]) -> dict[str, float]:
    """Percentages top1, top5, real_top1, real_top5 of the five best classes (N, 5) of each image.

    Args:
        labels: (N,) of ImageNet.
        names: official names of the images; see `real_name`. Images without any ReaL label do not count there.
    """
    hit = top5 == labels.unsqueeze(1)
    # timm wants as many names as there are labels, and takes the images in the order of the names
    real = RealLabelsImagenet(names + [""] * (recipe.VAL_IMAGES - len(names)))
    for ranks in top5.split(1000):
        scores = torch.zeros(len(ranks), recipe.CLASSES)
        real.add_result(
            scores.scatter_(1, ranks, torch.arange(5.0, 0.0, -1.0).expand(len(ranks), 5))
        )
    if not real.is_correct[1]:
        raise ValueError(
            f"none of the {len(names)} validation images has a ReaL label; give more of them"
        )
    return {
        "top1": 100 * hit[:, 0].double().mean().item(),
        "top5": 100 * hit.any(1).double().mean().item(),
        "real_top1": real.get_accuracy(1),
        "real_top5": real.get_accuracy(5),
    }


def check_untouched(
    found: dict[str, float], images: int, expected: dict[str, float], tolerance: float
) -> None:
    """Ends the program unless the untouched model reaches the published figures on all validation images."""
    off = [key for key, value in expected.items() if abs(found[key] - value) > tolerance]
    if off or images != recipe.VAL_IMAGES:
        got = ", ".join(
            f"{key} {found[key]:.3f} (expected {value:.3f})" for key, value in expected.items()
        )
        raise SystemExit(
            f"error: the untouched model gives {got} on {images:,} images, not within {tolerance:g} of that on "
            f"{recipe.VAL_IMAGES:,}: weights, images or preprocessing differ from timm's. Mend that; "
            "--skip-check is for smoke runs only"
        )


# -- training ----------------------------------------------------------------------------------------------------------


class FineTuning:
    """One arm: evaluation of the untouched model, then the epochs, resumably.

    What an epoch trains on and in which order follows from (seed, epoch), so that a resumed run is the uninterrupted one,
    bit for bit on the CPU.

    Args:
        model: float32, on the device.
        train: see `training_set`. val: normalised images in the order of `names`.
        names: official names of the validation images.
        settings: what must be equal for a checkpoint to be resumed.
        args: of the command line, with `accum` set; checkpoint.pt is in args.out.
    """

    def __init__(
        self,
        model: nn.Module,
        train: Dataset,
        val: ImageNetFolder,
        names: list[str],
        settings: dict[str, Any],
        args: argparse.Namespace,
        device: torch.device,
    ):
        self.model, self.train, self.val, self.names = model, train, val, names
        self.settings, self.args, self.device = settings, args, device
        self.checkpoint = Path(args.out) / "checkpoint.pt"
        self.rank = dist.get_rank() if dist.is_initialized() else 0
        self.world = dist.get_world_size() if dist.is_initialized() else 1
        self.batch_size = settings["batch_size"]  # of an optimizer step
        self.steps_per_epoch = len(train) // self.batch_size
        if not self.steps_per_epoch:
            raise ValueError(
                f"{len(train)} samples do not fill one batch of {self.batch_size}; lower --batch-size"
            )
        self.parallel = DistributedDataParallel(model) if self.world > 1 else model
        self.optimizer, self.scheduler = recipe.make_optimizer(model.parameters())
        self.step, self.loss_sum, self.seconds = 0, 0.0, 0.0
        self.untouched: dict[str, float] | None = None
        self.checked = False
        self.epochs: list[dict[str, float]] = []
        if self.checkpoint.exists():
            if not args.resume:
                raise FileExistsError(
                    f"{self.checkpoint} exists; go on with --resume, or choose another --out"
                )
            self._restore()

    # -- state -----------------------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Writes the checkpoint; only the first process does. timm reads the weights from it."""
        if self.rank:
            return
        state = {
            "settings": self.settings,
            "step": self.step,
            "loss_sum": self.loss_sum,
            "seconds": self.seconds,
            "untouched": self.untouched,
            "checked": self.checked,
            "epochs": self.epochs,
            "state_dict": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
        }
        write_atomically(self.checkpoint, lambda p: torch.save(state, p))

    def _restore(self) -> None:
        state = torch.load(self.checkpoint, map_location=self.device, weights_only=True)
        changed = [k for k in self.settings if state["settings"].get(k) != self.settings[k]]
        if changed:
            raise ValueError(
                f"{self.checkpoint} was made with other settings: "
                + ", ".join(
                    f"{k}={state['settings'].get(k)!r} instead of {self.settings[k]!r}"
                    for k in changed
                )
                + "; resume with those, or choose another --out"
            )
        self.model.load_state_dict(state["state_dict"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        for key in ("step", "loss_sum", "seconds", "untouched", "checked", "epochs"):
            setattr(self, key, state[key])

    # -- evaluation ------------------------------------------------------------------------------------------------------

    def _autocast(self):
        dtype = None if self.args.amp is None else getattr(torch, self.args.amp)
        return torch.autocast(self.device.type, dtype, enabled=dtype is not None)

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """`accuracy` on the validation images, each of them evaluated by one process."""
        start = time.monotonic()
        self.model.eval()
        mine = range(self.rank, len(self.val), self.world)
        loader = DataLoader(
            Subset(self.val, mine), 2 * self.args.batch_size, num_workers=self.args.workers
        )
        top5 = torch.zeros(len(self.val), 5, dtype=torch.int64, device=self.device)
        best = []
        for images, _ in loader:
            with self._autocast():
                logits = self.model(images.to(self.device))
            best.append(logits.topk(5).indices)
        if best:
            top5[mine.start :: mine.step] = torch.cat(best)
        if self.world > 1:
            dist.all_reduce(top5)  # each row is zero in all processes but one
        found = accuracy(top5.cpu(), torch.tensor(self.val.targets), self.names)
        self.seconds += time.monotonic() - start
        return found

    # -- training --------------------------------------------------------------------------------------------------------

    def _batches(self, epoch: int, first: int) -> DataLoader:
        """Micro-batches of this process for the optimizer steps of `epoch` from `first` on."""
        if hasattr(self.train, "set_epoch"):
            self.train.set_epoch(epoch)
        order = torch.randperm(len(self.train), generator=generator(self.args.seed, epoch))
        order = order[: self.steps_per_epoch * self.batch_size]
        shares = order.view(self.steps_per_epoch, self.args.accum, self.world, self.args.batch_size)
        mine = shares[first:, :, self.rank].flatten(0, 1)
        return DataLoader(
            self.train, batch_sampler=(batch.tolist() for batch in mine), num_workers=self.args.workers,
            pin_memory=self.device.type == "cuda",
        )  # fmt: skip

    def _optimizer_step(self, batches) -> float:
        """Accumulates --accum micro-batches, clips and steps; returns this process's mean loss."""
        accum, losses = self.args.accum, []
        torch.manual_seed(
            self.args.seed + 1_000_003 * self.step + self.rank
        )  # of dropout, in models that have any
        for i in range(accum):
            images, labels = next(batches)
            last = i == accum - 1
            with contextlib.nullcontext() if last or self.world == 1 else self.parallel.no_sync():
                with self._autocast():
                    logits = self.parallel(images.to(self.device, non_blocking=True))
                loss = nn.functional.cross_entropy(logits.float(), labels.to(self.device)) / accum
                loss.backward()
            losses.append(loss.detach())
        total = torch.stack(losses).sum().item()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), recipe.CLIP_NORM)
        if not math.isfinite(norm):
            raise FloatingPointError(
                f"loss {total} with gradient norm {float(norm)} at step {self.step}; start anew without --amp, or with "
                "another --seed"
            )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return total

    def _train_epoch(self, epoch: int, deadline: float) -> bool:
        """The rest of an epoch; returns whether its end was reached before the deadline."""
        args = self.args
        self.model.train()
        batches = iter(self._batches(epoch, self.step - epoch * self.steps_per_epoch))
        saved = logged = time.monotonic()
        logged_step = self.step
        while self.step < (epoch + 1) * self.steps_per_epoch:
            start = time.monotonic()
            loss = self._optimizer_step(batches)
            status = torch.tensor(
                [loss / self.world, float(time.monotonic() > deadline)], device=self.device
            )
            if (
                self.world > 1
            ):  # one process's clock stops all of them, so that none waits for another
                dist.all_reduce(status)
            loss, stop = status.tolist()
            self.step += 1
            self.loss_sum += loss
            now = time.monotonic()
            self.seconds += now - start
            if self.step % args.log_every == 0:
                speed = (self.step - logged_step) * self.batch_size / (now - logged)
                cuda = self.device.type == "cuda"
                memory = (
                    f", {torch.cuda.max_memory_allocated(self.device) / 1e9:.1f} GB at most"
                    if cuda
                    else ""
                )
                steps = recipe.EPOCHS * self.steps_per_epoch
                self._say(
                    f"step {self.step}/{steps}: loss {loss:.6g}, {speed:.1f} images/s{memory}"
                )
                logged, logged_step = now, self.step
            if stop or now - saved > 60 * args.checkpoint_minutes:
                self.save()
                saved = now
            if stop:
                return False
        return True

    def run(self) -> bool:
        """Everything that is left to do; returns whether the end was reached within --time-limit."""
        args = self.args
        deadline = time.monotonic() + args.time_limit
        if self.untouched is None:
            self.untouched = self.evaluate()
            self._say("untouched: " + describe(self.untouched))
            self.save()  # so that nothing is evaluated twice
        if not (self.checked or args.skip_check):
            expected = {"real_top1": args.check_top1, "real_top5": args.check_top5}
            check_untouched(self.untouched, len(self.val), expected, args.tolerance)
            self.checked = True
        while len(self.epochs) < recipe.EPOCHS:
            epoch = len(self.epochs)
            if not self._train_epoch(epoch, deadline):
                return False
            rate, loss = self.optimizer.param_groups[0]["lr"], self.loss_sum / self.steps_per_epoch
            self.epochs.append(
                {"epoch": epoch + 1, "learning_rate": rate, "loss": loss, **self.evaluate()}
            )
            self.loss_sum = 0.0
            self.scheduler.step()
            self.save()
            self._say(f"epoch {epoch + 1}: loss {loss:.6g}, " + describe(self.epochs[-1]))
        return True

    def _say(self, line: str) -> None:
        if self.rank == 0:
            print(line, flush=True)


def describe(found: dict[str, float]) -> str:
    return ", ".join(f"{key} {found[key]:.3f}" for key in METRICS)


# -- the command line --------------------------------------------------------------------------------------------------


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.imagenet.real", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--plan", action="store_true", help="print what the recipe costs, and end")
    parser.add_argument(
        "--data-dir", type=Path, help="folder with train/ and val/, a folder for each wnid in them"
    )
    parser.add_argument("--arm", choices=ARMS)
    parser.add_argument(
        "--flow", metavar="NAME", help="of the arms ce and glem: bundled name, directory, Hub id"
    )
    parser.add_argument(
        "--strength", type=float, default=0.5, help="of the arms linear, ce and glem (default: 0.5)"
    )
    parser.add_argument(
        "--out", type=Path, help="directory of the checkpoint (default: runs/imagenet_ARM)"
    )
    parser.add_argument(
        "--resume", action="store_true", help="go on from the checkpoint in --out, if there is one"
    )
    parser.add_argument(
        "--record", metavar="NAME", help="at the end also write benchmarks/results/NAME.json"
    )
    parser.add_argument(
        "--batch-size", type=int, default=8, help="images of one pass of one device (default: 8)"
    )
    parser.add_argument(
        "--accum",
        type=int,
        help=f"passes of an optimizer step (default: what brings it to {recipe.BATCH_SIZE} images)",
    )
    parser.add_argument(
        "--amp", choices=["bfloat16"], help="autocast; the weights stay float32 (default: off)"
    )
    parser.add_argument(
        "--grad-checkpointing",
        action="store_true",
        help="less memory for a third more time (EVA: timm >= 1.0.15)",
    )
    parser.add_argument(
        "--workers", type=int, default=4, help="loading processes of each device (default: 4)"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--time-limit",
        type=float,
        default=math.inf,
        metavar="SECONDS",
        help="stop, resumably, after this",
    )
    parser.add_argument("--checkpoint-minutes", type=float, default=15.0)
    parser.add_argument("--log-every", type=int, default=50, metavar="STEPS")
    check = parser.add_argument_group("check of the untouched model, in percent on ImageNet-ReaL")
    check.add_argument("--check-top1", type=float, default=recipe.PUBLISHED["real_top1"])
    check.add_argument("--check-top5", type=float, default=recipe.PUBLISHED["real_top5"])
    check.add_argument("--tolerance", type=float, default=0.1)
    smoke = parser.add_argument_group("smoke runs")
    smoke.add_argument(
        "--model",
        default=recipe.MODEL,
        help=f"a timm model of 1,000 classes (default: {recipe.MODEL})",
    )
    smoke.add_argument("--no-pretrained", action="store_true", help="random weights")
    smoke.add_argument("--img-size", type=int, help="instead of the model's own")
    smoke.add_argument(
        "--skip-check",
        action="store_true",
        help="train whatever the untouched model gives; recorded",
    )
    return parser


def prepare(args: argparse.Namespace, device: torch.device) -> FineTuning:
    """Model, data and settings of a run; raises ValueError or FileNotFoundError for what cannot work."""
    world = dist.get_world_size() if dist.is_initialized() else 1
    if args.batch_size < 1 or (args.accum is not None and args.accum < 1):
        raise ValueError(
            f"--batch-size and --accum must be at least 1, got {args.batch_size} and {args.accum}"
        )
    if args.accum is None:
        args.accum, rest = divmod(recipe.BATCH_SIZE, args.batch_size * world)
        if rest or not args.accum:
            raise ValueError(
                f"--batch-size {args.batch_size} on {world} devices does not divide the recipe's batch of "
                f"{recipe.BATCH_SIZE}; change it, or say --accum for another batch"
            )
    augment = make_augment(args.arm, args.flow, args.strength)
    torch.manual_seed(args.seed)  # of random weights
    size = {} if args.img_size is None else {"img_size": args.img_size}
    model = timm.create_model(args.model, pretrained=not args.no_pretrained, **size).to(device)
    if model.num_classes != recipe.CLASSES:
        raise ValueError(
            f"{args.model} has {model.num_classes} classes, ImageNet {recipe.CLASSES}; name another --model"
        )
    if args.grad_checkpointing:
        model.set_grad_checkpointing()
    data_config = resolve_data_config(
        {"crop_pct": recipe.CROP_PCT, "interpolation": recipe.INTERPOLATION, **size}, model=model
    )
    base = ImageNetFolder(args.data_dir / "train", data_config)
    val = ImageNetFolder(args.data_dir / "val", data_config)
    val.transform = normalized(data_config)
    names = real_names([path for path, _ in val.samples])
    if args.arm == "linear":  # last: what else is wrong is said before a pass over images
        augment = fit_linear(base, args.strength, args.workers)
    flow = None if augment is None else flow_title(args.flow or "linear")
    settings = {
        "model": args.model,
        "pretrained": not args.no_pretrained,
        "image_size": data_config["input_size"][-1],
        "crop_mode": data_config["crop_mode"],
        "arm": args.arm,
        "flow": flow,
        "augment": None if augment is None else repr(augment),
        "batch_size": args.batch_size
        * args.accum
        * world,  # how it is split over devices and passes may change
        "amp": args.amp,
        "seed": args.seed,
        "train_images": len(base),
        "val_images": len(val),
    }
    train = training_set(args.arm, base, data_config, augment, args.seed)
    return FineTuning(model, train, val, names, settings, args, device)


def flow_title(name: str) -> str:
    """The name without the directories before it."""
    return name.rstrip("/").rpartition("/")[2]


def result(run: FineTuning, argv: list[str] | None) -> dict[str, Any]:
    s, args = run.settings, run.args
    whole = (s["train_images"], s["val_images"]) == (recipe.TRAIN_IMAGES, recipe.VAL_IMAGES)
    name = (
        "ImageNet-1k and ImageNet-ReaL"
        if whole
        else "images under ImageNet's names (not ImageNet-1k)"
    )
    return {
        "benchmark": "imagenet_real",
        "command": command_line("benchmarks.imagenet.real", argv),
        "data": f"{name}: {s['train_images']} training images, {s['val_images']} validation images",
        "seeds": [args.seed],
        "environment": environment(),
        "settings": {
            **s,
            "devices": run.world,
            "accum": args.accum,
            "grad_checkpointing": args.grad_checkpointing,
        },
        "results": {
            "arm": s["arm"],
            "flow": s["flow"],
            "untouched": run.untouched,
            "checked": run.checked,
            "epochs": run.epochs,
            "images_seen": run.step * run.batch_size,
            "optimizer_steps": run.step,
            "seconds": run.seconds,
        },
    }


def main(argv: list[str] | None = None) -> int:
    parser = make_parser()
    args = parser.parse_args(argv)
    if args.plan:
        print(recipe.plan())
        return 0
    if args.data_dir is None or args.arm is None:
        parser.error("--data-dir and --arm are needed, or --plan")
    args.out = args.out or Path("runs") / f"imagenet_{args.arm}"
    device = init_distributed(args.device)
    try:
        run = prepare(args, device)
    except (ValueError, FileNotFoundError, FileExistsError) as e:
        parser.exit(2, f"error: {e}\n")
    done = run.run()
    if run.rank == 0 and done:
        rows = [["", *METRICS], ["untouched", *(f"{run.untouched[key]:.3f}" for key in METRICS)]]
        rows += [[f"epoch {e['epoch']}", *(f"{e[key]:.3f}" for key in METRICS)] for e in run.epochs]
        print(f"\n{markdown_table(rows)}\n")
        if args.record:
            write_result(args.record, result(run, argv))
    elif run.rank == 0:
        print(
            f"stopped at step {run.step} of {recipe.EPOCHS * run.steps_per_epoch}; go on with --resume"
        )
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())
