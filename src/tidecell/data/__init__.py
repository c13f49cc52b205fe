"""Documents to tokens: read, clean, deduplicate, tokenise, pack, load.

Nothing heavy is imported here; take what you need from its module:

    from tidecell.data.dataset import load_manifest, resolve, verify
    from tidecell.data.loader import Loader, SftLoader
    from tidecell.data.tokenizer import TextTokenizer
    from tidecell.data.executor import prepare
    from tidecell.data.pipeline import Recipe

``prepare`` turns text into a version of a dataset; ``Loader(resolve("stdlib"), "train", 256, seed)``
reads it back in an order that no worker count can change.
"""
