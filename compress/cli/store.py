"""`compress store`: what is kept, and how to be rid of it."""

import click

from compress.cli import options
from compress.progress import say


@click.group(short_help="List or clean the finished steps that are kept.")
def command() -> None:
    """Finished steps, decoded images and teachers' answers are kept in $COMPRESS_STORE, else ~/.cache/compress, up to
    $COMPRESS_STORE_GB (20): the least recently used go first.
    """


@command.command(name="list")
def list_() -> None:
    """What is kept, most recently used first."""
    import time

    from compress.store import Store

    store = Store.default()
    total = 0
    for folder, size, used, finished in store.entries():
        total += size
        age_h = (time.time() - used) / 3600
        click.echo(f"{size / 1e6:>9.1f} MB  {age_h:>7.1f} h ago  {'' if finished else 'unfinished  '}{folder.name}")
    say(f"{total / 1e6:>9.1f} MB in {store.root}")
    options.next_step("compress", "store", "clean")


@command.command()
@click.option("--all", "everything", is_flag=True, help="Everything, not only what is beyond the size limit.")
def clean(everything: bool) -> None:
    """Remove what is beyond the size limit; with --all, everything that is not in use."""
    from compress.store import Store

    store = Store.default()
    removed = store.clear() if everything else store.trim()
    for folder in removed:
        click.echo(f"removed {folder.name}")
    say(f"removed {len(removed)} entries from {store.root}")
    options.next_step("compress", "store", "list")
