"""A picture and words in, masks out:  python examples/segment.py [PICTURE WORDS ...] [--model FOLDER]

Without arguments it asks the embedded model about the picture beside it.
"""

import argparse
from pathlib import Path

from vlseg import Segmenter

parser = argparse.ArgumentParser()
parser.add_argument("picture", nargs="?", default=str(Path(__file__).with_name("peacocks.png")))
parser.add_argument("words", nargs="*", default=["all the peacocks", "the pretzel", "the fuel pump"])
parser.add_argument(
    "--model", help="a checkpoint folder, org/name, or a system such as clipseg; default: the embedded model"
)
parser.add_argument("--overlay", help="write the picture with its masks to this file")
args = parser.parse_args()

# All words are asked at once: the picture is encoded once.
result = Segmenter(args.model)(args.picture, args.words)
for answer in result:
    if answer.status == "found":
        print(f"{answer.text}: found, score {answer.score:.2f}, {answer.mask.sum()} pixels")
    else:  # "absent": the words fit nothing in the picture; "failed": with the reason
        print(f"{answer.text}: {answer.status} {answer.reason or ''}".rstrip())
if args.overlay:
    result.overlay().save(args.overlay)
