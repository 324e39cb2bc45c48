"""`python -m lorabench.micro <step>`: rebuild the shipped model and scorers from nothing (see the model card)."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

WORK = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "lorabench" / "micro-v1"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m lorabench.micro", description=__doc__)
    parser.add_argument(
        "--work", type=Path, default=WORK, help="where pictures and checkpoints lie (default: %(default)s)"
    )
    steps = parser.add_subparsers(dest="step", required=True)

    bank = steps.add_parser("bank", help="render the training pictures (120,000: 6 minutes on 2 cores)")
    bank.add_argument("--shards", type=int, default=30)
    bank.add_argument("--workers", type=int, default=2)

    unet = steps.add_parser("unet", help="train the UNet and the text encoders; resumes where it was")
    unet.add_argument("--steps", type=int, default=20000)
    unet.add_argument("--decay", type=int, default=2000, help="the rate falls to zero over this many last steps")
    unet.add_argument("--batch", type=int, default=64, help="pictures a step and device")
    unet.add_argument("--lr", type=float, default=8e-4)
    unet.add_argument("--devices", type=int, default=2)
    unet.add_argument("--name", default="unet", help="checkpoints lie in <work>/<name>")
    unet.add_argument("--start", type=Path, help="branch off this checkpoint, e.g. for an early end")

    vae = steps.add_parser("vae", help="distil the autoencoder onto the latent space of the UNet")
    vae.add_argument("--steps", type=int, default=2500)
    vae.add_argument("--decay", type=int, default=700)
    vae.add_argument("--batch", type=int, default=32)
    vae.add_argument("--lr", type=float, default=2e-3)

    export = steps.add_parser("export", help="write the pipeline that ships")
    export.add_argument("--name", default="unet", help="which checkpoint: <work>/<name>/last.ckpt")
    export.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "assets" / "micro_sdxl")

    steps.add_parser("scorers", help="train the scorers (an hour on one thread) and judge them")

    evaluate = steps.add_parser("evaluate", help="read the pictures of the model that ships with the scorers")
    evaluate.add_argument("--folder", type=Path, default=Path(__file__).parents[1] / "assets" / "micro_sdxl")

    args = parser.parse_args()
    if args.step == "bank":
        from tqdm import tqdm

        from lorabench.micro import bank as pictures

        with tqdm(total=args.shards * pictures.SHARD, unit="picture") as bar:
            pictures.render(args.work / "bank", args.shards, args.workers, bar.update)
    elif args.step == "unet":
        from lorabench.micro.unet import pretrain

        pretrain(
            args.work, args.work / args.name, args.steps, args.decay, args.batch, args.lr, args.devices, args.start
        )
    elif args.step == "vae":
        from lorabench.micro.vae import distil

        distil(args.work, args.steps, args.decay, args.batch, args.lr)
    elif args.step == "export":
        from lorabench.micro.export import export as write

        size = write(args.work / args.name / "last.ckpt", args.work / "vae" / "model", args.out)
        print(f"{args.out}: {size / 1e6:.1f} MB")
    elif args.step == "scorers":
        from lorabench.micro.scorers import train_scorers
        from lorabench.scoring.load import MICRO_SCORERS

        train_scorers(MICRO_SCORERS)
    elif args.step == "evaluate":
        from tqdm import tqdm

        from lorabench.micro.evaluate import evaluate as read
        from lorabench.micro.evaluate import prompts

        with tqdm(total=len(prompts()), unit="picture") as bar:
            print(read(args.folder, bar.update))


if __name__ == "__main__":
    main()
