"""Rebuild the shipped model and scorers: `python -m pretraining <step>` (see the model card).

Steps of a complete rebuild, in order: bank, unet, unet --anneal, vae, export, evaluate, scorers.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from lorabench.base import ASSETS, UserError

WORK = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "lorabench" / "pretraining"
SHIPPED = ASSETS / "micro_sdxl"


def arguments() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m pretraining", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, default=WORK, help="folder of images and checkpoints (%(default)s)")
    steps = parser.add_subparsers(dest="step", required=True)

    bank = steps.add_parser("bank", help="render training images, 4,000 per shard (about 40 s of one core each)")
    bank.add_argument("--first", type=int, default=0, help="first shard; 34 begins with image 136,000")
    bank.add_argument("--shards", type=int, default=34, help="number of shards")
    bank.add_argument("--workers", type=int, default=2)

    unet = steps.add_parser("unet", help="train the UNet and the text encoders")
    unet.add_argument("--minutes", type=float, help="stop after this time")
    unet.add_argument("--samples", type=int, help="stop when the model has seen so many samples in total")
    unet.add_argument(
        "--resume", action="store_true", help="resume from the last checkpoint, or from --weights if it is lost"
    )
    unet.add_argument("--anneal", type=int, default=0, metavar="M", help="branch a decay over M samples, for export")
    unet.add_argument("--weights", type=Path, default=SHIPPED, help="exported pipeline (%(default)s)")
    unet.add_argument("--name", default="unet", help="the checkpoint is <work>/<name>/last.ckpt")
    unet.add_argument("--batch", type=int, default=64, help="samples per step, over all devices")
    unet.add_argument("--lr", type=float, default=6e-4)
    unet.add_argument("--devices", type=int, default=1)
    unet.add_argument("--every", type=int, default=32_000, help="samples between checkpoints")

    vae = steps.add_parser("vae", help="distill the autoencoder onto the latent code")
    vae.add_argument("--steps", type=int, default=2500)
    vae.add_argument("--decay", type=int, default=700)
    vae.add_argument("--batch", type=int, default=32)
    vae.add_argument("--lr", type=float, default=2e-3)

    export = steps.add_parser("export", help="write the shipped pipeline")
    export.add_argument("--name", default="unet-anneal", help="the checkpoint is <work>/<name>/last.ckpt")
    export.add_argument("--vae", type=Path, default=SHIPPED / "vae", help="autoencoder (%(default)s)")
    export.add_argument("--out", type=Path, default=SHIPPED)

    plot = steps.add_parser("plot", help="plot the held-out losses of trainings")
    plot.add_argument("names", nargs="*", default=["unet"], help="folders in <work>, the first with solid lines")
    plot.add_argument("--out", type=Path, default=ASSETS / "curve.png")

    steps.add_parser("development", help="choose the development names")
    steps.add_parser("scorers", help="train the scorers (an hour on one thread) and evaluate them")

    steps.add_parser("factors", help="train the networks that read the world's factors")

    evaluate = steps.add_parser("evaluate", help="generate 400 images and measure how well they match their prompts")
    evaluate.add_argument("--folder", type=Path, default=SHIPPED)
    return parser


def main() -> None:
    """Run a step of the command line."""
    args = arguments().parse_args()
    steps = {
        "bank": bank, "unet": unet, "vae": vae, "export": export, "plot": plot, "development": development,
        "scorers": scorers, "factors": factors, "evaluate": evaluate,
    }  # fmt: skip
    try:
        steps[args.step](args)
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(2)


def bank(args: argparse.Namespace) -> None:
    """Render training images."""
    from tqdm import tqdm

    from pretraining import bank as images

    shards = range(args.first, args.first + args.shards)
    with tqdm(total=len(shards) * images.SHARD, unit="image") as bar:
        images.render(args.work / "bank", shards, args.workers, bar.update)


def unet(args: argparse.Namespace) -> None:
    """Train the UNet and the text encoders."""
    from pretraining.encoded import EncodedBank
    from pretraining.heldout import heldout_data
    from pretraining.training import pretrain

    out = args.work / args.name
    last, branch = out / "last.ckpt", args.work / f"{args.name}-anneal"
    if sum(1 for each in (args.minutes, args.samples, args.anneal or None) if each is not None) != 1:
        raise UserError("unet needs one of --minutes, --samples and --anneal; use --minutes 60")
    if args.anneal and not last.exists():
        raise UserError(f"--anneal={args.anneal} needs {last}; use --minutes 60 --resume first")
    if last.exists() and not (args.resume or args.anneal):
        raise UserError(f"--name={args.name} has a checkpoint; use --resume to continue it, or another --name")
    if args.anneal and (branch / "last.ckpt").exists() and not args.resume:
        raise UserError(f"{branch} has an earlier decay; use --resume to finish it, or remove the folder")
    pretrain(
        EncodedBank(args.work / "bank"),
        branch if args.anneal else out,
        start=last if args.anneal else None,
        weights=args.weights if args.resume else None,
        minutes=args.minutes,
        samples=args.samples,
        anneal=args.anneal,
        batch=args.batch,
        lr=args.lr,
        devices=args.devices,
        every=args.every,
        heldout=heldout_data(),
    )


def vae(args: argparse.Namespace) -> None:
    """Distill the autoencoder."""
    from pretraining.vae import distil

    distil(args.work, args.steps, args.decay, args.batch, args.lr)


def export(args: argparse.Namespace) -> None:
    """Write the shipped pipeline."""
    from pretraining.export import export as write

    size = write(args.work / args.name / "last.ckpt", args.vae, args.out)
    print(f"{args.out}: {size / 1e6:.1f} MB")


def plot(args: argparse.Namespace) -> None:
    """Plot the held-out losses of trainings."""
    from pretraining.curve import plot as write

    write({name: args.work / name / "curve.csv" for name in args.names}, args.out)


def development(args: argparse.Namespace) -> None:
    """Choose the development names."""
    from pretraining.development import print_tables

    print_tables()


def scorers(args: argparse.Namespace) -> None:
    """Train the scorers and evaluate them."""
    from lorabench.scoring.files import MICRO_SCORERS
    from pretraining.scorers import train_scorers

    train_scorers(MICRO_SCORERS)


def factors(args: argparse.Namespace) -> None:
    """Train the networks that read the world's factors."""
    import json

    from pretraining.factors import train_factors

    print(json.dumps(train_factors(args.work), indent=1))


def evaluate(args: argparse.Namespace) -> None:
    """Generate images and measure how well they match their prompts."""
    import json

    from tqdm import tqdm

    from pretraining.evaluate import evaluate as read

    with tqdm(unit="image") as bar:
        print(json.dumps(read(args.folder, bar.update), indent=1))


if __name__ == "__main__":
    main()
