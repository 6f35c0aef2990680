"""`compress list`: what there is to choose from."""

from pathlib import Path

import click

from compress import catalog, config
from compress.cli import options
from compress.errors import UsageError

# kind → the flag of `compress run` that takes a name of it
_FLAGS = {
    "data": "--data", "nets": "--student", "methods": "--kd", "pruners": "--prune 0.5 --pruner",
    "quantizers": "--quantize", "runtimes": "--runtimes", "targets": "--target", "recipe": "--set",
}  # fmt: skip


def _names(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Names of the kind that was typed before them."""
    kind = ctx.params.get("kind")
    return [n for n in catalog.names(kind) if n.startswith(incomplete)] if kind in catalog.KINDS else []


@click.command(
    name="list", short_help="List data sets, networks, methods, pruners, quantizers, runtimes, targets; or recipe keys."
)
@click.argument(
    "kind",
    required=False,
    shell_complete=lambda ctx, param, incomplete: [
        kind for kind in (*catalog.KINDS, "recipe", "targets") if kind.startswith(incomplete)
    ],
)
@click.argument("names", metavar="[NAME]...", nargs=-1, shell_complete=_names)
@click.option("--input", "input_", metavar="CxHxW", help="Networks: what each would cost here, for such images.")
@click.option("--classes", metavar="N", help="With --input, the number of classes. [1000]")
@options.plugin
def command(
    kind: str | None, names: tuple[str, ...], input_: str | None, classes: str | None, plugins: tuple[Path, ...]
) -> None:
    """List what there is to choose from; with a NAME, its documentation and knobs.

    With --input, a table of networks: parameters, MACs, bytes in int8, and latency on this machine in float32 and int8,
    measured on files with untrained weights.

    \b
    compress list
    compress list methods
    compress list methods fitnet
    compress list nets --input 3x224x224 --classes 1000
    compress list nets mobilenet torchvision:resnet18 --input 3x224x224
    compress list recipe
    compress list targets
    """
    files = options.existing_plugins(plugins)
    if input_ is not None or classes is not None:
        _costs(kind, names, input_, classes, files)
        _next("nets", names[0] if names else "NAME", plugins)
        return
    if len(names) > 1:
        raise UsageError(
            f"one NAME at a time, got {' '.join(names)}", code="E-OPTION-CONFLICT", hint="several go with --input"
        )
    name = next(iter(names), None)
    if kind == "recipe":
        from compress.recipe import Recipe

        _knobs(Recipe)
        _next(kind, "KEY=VALUE")
        return
    if kind == "targets":
        _targets()
        _next(kind, "NAME")
        return
    if kind is not None and kind not in catalog.KINDS:
        from compress.errors import unknown

        raise unknown("kind", kind, [*catalog.KINDS, "recipe", "targets"])
    if kind and name:
        entry = catalog.load(kind, name, files)
        click.echo((entry.module.__doc__ or "").strip() + "\n")
        _knobs(getattr(entry.module, "Config", config.NoKnobs))
        _next(kind, name, plugins)
        return
    for each in [kind] if kind else catalog.KINDS:
        click.echo(each)
        for entry_name in catalog.names(each, files):
            click.echo(f"  {entry_name:<14} {catalog.summary(each, entry_name, files)[:62]}")
    options.next_step("compress", "list", kind or "methods", "NAME")


def _next(kind: str, name: str, plugins: tuple[Path, ...] = ()) -> None:
    """A look at what a run with it would do."""
    files = (word for path in plugins for word in ("--plugin", path))
    options.next_step("compress", "run", "--dry-run", *_FLAGS[kind].split(), name, *files)


def _costs(
    kind: str | None, names: tuple[str, ...], input_: str | None, classes: str | None, plugins: tuple[Path, ...]
) -> None:
    if kind != "nets":
        raise UsageError(
            "--input and --classes are for networks",
            code="E-OPTION-CONFLICT",
            hint="compress list nets --input 3x224x224",
        )
    if input_ is None:
        raise UsageError(
            "--classes needs --input: the shape of the images",
            code="E-OPTION-CONFLICT",
            hint="for example --input 3x224x224",
        )
    number = config.convert(int, "1000" if classes is None else classes, "--classes")
    if not 2 <= number <= 1_000_000:
        raise UsageError(f"--classes must lie in [2, 1000000], got {number}", code="E-OPTION-VALUE")
    from compress import costs
    from compress.store import Store

    shape = costs.parse_input(input_)
    click.echo(costs.table(names, shape, number, Store.default(), plugins))


def _targets() -> None:
    from compress.targets import TARGETS

    for target in TARGETS:
        form = [f"{'symmetric ' * target.symmetric}{target.activations} activations", "int8 weights"]
        form += ["of 7 bits"] * target.reduce_range
        widths = f"opset {target.opset}; widths in steps of {target.round_to}"
        click.echo(f"  {target.name:<10} {target.about}\n{'':13}{' '.join([', '.join(form[:2]), *form[2:]])}; {widths}")


def _knobs(config_class: type) -> None:
    for knob, default, sentence in config.describe(config_class):
        shown = ",".join(default) if isinstance(default, tuple) else default
        click.echo(f"  {knob:<20} {shown!s:<28} {sentence}")
