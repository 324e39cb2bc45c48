"""Rebuild the micro models and scorers: `python -m pretraining <step>` (see the model card).

Steps of a complete rebuild, in order: bank, denoiser, denoiser --anneal, vae, export, scorers, factors, evaluate.
`denoiser`, `export` and `evaluate` have `--model`. `build` runs all steps of a model that has no weights in the
package.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from lorabench.base import ASSETS, CACHE, UserError
from lorabench.models.files import MICRO

WORK = CACHE / "pretraining"
MODELS = ("micro_sdxl", "micro_sd3")  # those of pretraining/models.py, which imports torch


def arguments() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m pretraining", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, default=WORK, help="folder of images and checkpoints (%(default)s)")
    steps = parser.add_subparsers(dest="step", required=True)

    def model_step(name: str, text: str) -> argparse.ArgumentParser:
        step = steps.add_parser(name, help=text)
        step.add_argument("--model", choices=MODELS, default=MODELS[0], help="(%(default)s)")
        return step

    def training_options(step: argparse.ArgumentParser) -> None:
        step.add_argument("--batch", type=int, default=64, help="samples per step, over all devices (%(default)s)")
        step.add_argument("--lr", type=float, default=6e-4, help="constant learning rate (%(default)s)")
        step.add_argument("--devices", type=int, default=1, help="number of devices (%(default)s)")
        step.add_argument("--every", type=int, default=32_000, help="samples between checkpoints (%(default)s)")

    bank = steps.add_parser("bank", help="render training images, 4,000 per shard (about 40 s of one core each)")
    bank.add_argument("--first", type=int, default=0, help="first shard; 34 begins with image 136,000")
    bank.add_argument("--shards", type=int, default=34, help="number of shards")
    bank.add_argument("--workers", type=int, default=2)

    denoiser = model_step("denoiser", "train a denoiser and its text encoders")
    denoiser.add_argument("--minutes", type=float, help="stop after this time")
    denoiser.add_argument("--samples", type=int, help="stop when the model has seen so many samples in total")
    denoiser.add_argument(
        "--resume", action="store_true", help="resume from the last checkpoint, or from --weights if it is lost"
    )
    denoiser.add_argument(
        "--anneal", type=int, default=0, metavar="M", help="branch a decay over M samples, for export"
    )
    denoiser.add_argument("--weights", type=Path, help="exported pipeline (default: the model's)")
    denoiser.add_argument("--name", help="the checkpoint is <work>/<name>/last.ckpt (unet or transformer)")
    training_options(denoiser)

    vae = steps.add_parser("vae", help="distill the autoencoder onto the latent code")
    vae.add_argument("--steps", type=int, default=2500)
    vae.add_argument("--decay", type=int, default=700)
    vae.add_argument("--batch", type=int, default=32)
    vae.add_argument("--lr", type=float, default=2e-3)

    export = model_step("export", "write the pipeline")
    export.add_argument("--name", help="the checkpoint is <work>/<name>/last.ckpt (unet-anneal or transformer-anneal)")
    export.add_argument("--vae", type=Path, default=MICRO / "vae", help="autoencoder (%(default)s)")
    export.add_argument("--out", type=Path, help="folder of the pipeline (default: the model's)")

    plot = steps.add_parser("plot", help="plot the held-out losses of trainings")
    plot.add_argument("names", nargs="*", default=["unet"], help="folders in <work>, the first with solid lines")
    plot.add_argument("--out", type=Path, default=ASSETS / "curve.png")

    steps.add_parser("development", help="choose the development names")
    steps.add_parser("scorers", help="train the scorers (an hour on one thread) and evaluate them")

    steps.add_parser("factors", help="train the network that reads the world's factors (35 minutes on one thread)")

    evaluate = model_step("evaluate", "generate 400 images and measure how well they match their prompts")
    evaluate.add_argument("--folder", type=Path, help="folder of the pipeline (default: the model's)")

    build = steps.add_parser("build", help="render images, train a denoiser, decay its rate and export it; resumable")
    build.add_argument("--model", choices=MODELS[1:], required=True)
    build.add_argument("--samples", type=int, default=1_000_000, help="samples at constant rate")
    build.add_argument("--anneal", type=int, default=300_000, metavar="M", help="samples of the decay")
    build.add_argument("--shards", type=int, default=30, help="4,000 images each, from image 136,000 on")
    build.add_argument("--workers", type=int, default=2, help="processes that render")
    training_options(build)
    return parser


def main() -> None:
    """Run a step of the command line."""
    try:
        run()
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(2)


def run(typed: list[str] | None = None) -> None:
    """Run the step of some arguments; None: those of the command line."""
    args = arguments().parse_args(typed)
    steps = {
        "bank": bank, "denoiser": denoiser, "vae": vae, "export": export, "plot": plot, "development": development,
        "scorers": scorers, "factors": factors, "evaluate": evaluate, "build": build,
    }  # fmt: skip
    steps[args.step](args)


def bank(args: argparse.Namespace) -> None:
    """Render training images."""
    from tqdm import tqdm

    from pretraining import bank as images

    shards = range(args.first, args.first + args.shards)
    with tqdm(total=len(shards) * images.SHARD, unit="image") as bar:
        images.render(args.work / "bank", shards, args.workers, bar.update)


def denoiser(args: argparse.Namespace) -> None:
    """Train a denoiser and its text encoders."""
    from pretraining.course import check_decay, course_of
    from pretraining.encoded import EncodedBank
    from pretraining.heldout import heldout_data
    from pretraining.models import MODELS
    from pretraining.training import pretrain

    kind = MODELS[args.model]
    name = args.name or kind.part
    out = args.work / name
    last, branch = out / "last.ckpt", args.work / f"{name}-anneal"
    if sum(1 for each in (args.minutes, args.samples, args.anneal or None) if each is not None) != 1:
        raise UserError("denoiser needs one of --minutes, --samples and --anneal; use --minutes 60")
    if args.anneal and not last.exists():
        raise UserError(f"--anneal={args.anneal} needs {last}; use --minutes 60 --resume first")
    if last.exists() and not (args.resume or args.anneal):
        raise UserError(f"--name={name} has a checkpoint; use --resume to continue it, or another --name")
    if args.anneal and (branch / "last.ckpt").exists() and not args.resume:
        raise UserError(f"{branch} has an earlier decay; use --resume to finish it, or remove the folder")
    if args.anneal:
        check_decay(branch, course_of(last)["samples"], args.anneal)
    weights = args.weights or (kind.folder if kind.folder.exists() else None)
    pretrain(
        EncodedBank(args.work / "bank"),
        branch if args.anneal else out,
        start=last if args.anneal else None,
        weights=weights if args.resume else None,
        minutes=args.minutes,
        samples=args.samples,
        anneal=args.anneal,
        batch=args.batch,
        lr=args.lr,
        devices=args.devices,
        every=args.every,
        heldout=heldout_data(),
        kind=kind,
    )


def vae(args: argparse.Namespace) -> None:
    """Distill the autoencoder."""
    from pretraining.vae import distil

    distil(args.work, args.steps, args.decay, args.batch, args.lr)


def export(args: argparse.Namespace) -> None:
    """Write the pipeline of a checkpoint."""
    from pretraining.export import export as write
    from pretraining.models import MODELS

    kind = MODELS[args.model]
    out = args.out or kind.folder
    size = write(args.work / (args.name or f"{kind.part}-anneal") / "last.ckpt", args.vae, out, kind)
    print(f"{out}: {size / 1e6:.1f} MB")


def build(args: argparse.Namespace) -> None:
    """Run all steps of a model; finished steps are not repeated."""
    from pretraining.build import build as run_steps

    numbers = {"batch": args.batch, "lr": args.lr, "devices": args.devices, "every": args.every}
    run_steps(
        args.model,
        args.work,
        args.samples,
        args.anneal,
        bank=["--first", "34", "--shards", str(args.shards), "--workers", str(args.workers)],
        training=[word for name, value in numbers.items() for word in (f"--{name}", str(value))],
        devices=args.devices,
        run=run,
    )


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
    """Train the network that reads the world's factors."""
    import json

    from pretraining.factors import train_factors

    print(json.dumps(train_factors(args.work), indent=1))


def evaluate(args: argparse.Namespace) -> None:
    """Generate images and measure how well they match their prompts."""
    import json

    from tqdm import tqdm

    from pretraining.evaluate import evaluate as read
    from pretraining.models import MODELS

    with tqdm(unit="image") as bar:
        print(json.dumps(read(args.folder or MODELS[args.model].folder, bar.update), indent=1))


if __name__ == "__main__":
    main()
