"""Convert an ONNX file, or what a run ships, for other runtimes, each into a folder of its own that an app can take."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from compress import app_folder, artifact_steps, bench, catalog, files, out_place, plan, runtime_files
from compress.errors import UsageError
from compress.publish import golden_index
from compress.recipe import Recipe
from compress.runtime_files import Offer
from compress.store import Store
from compress.types import Artifact


@dataclass(frozen=True, kw_only=True)
class Converted:
    """What became of one runtime: its folder, or why there is none."""

    offer: Offer
    folder: Path | None


def pick(found: list[Artifact], stage: str) -> Artifact:
    """The artifact to convert, by default the last, which is what a run ships. Raises UsageError for another stage."""
    named = [artifact for artifact in found if artifact.stage == stage] if stage else found[-1:]
    if not named:
        raise UsageError(
            f"there is no `{stage}`; there are: {', '.join(a.stage for a in found)}", code="E-NAME-UNKNOWN"
        )
    return named[0]


def convert_file(
    artifact: Artifact, runtimes: tuple[str, ...], recipe: Recipe, out: Path, store: Store
) -> list[Converted]:  # fmt: skip
    """A folder below `out` for each runtime whose answers stand beside the ONNX file's on real images. `recipe` names
    the data. Before any work, raises UsageError for an unknown runtime, or one that has nothing to give, InputRejected
    for a folder that holds something else, and CompressError for one that cannot be written.
    """
    for runtime in runtimes:
        module = catalog.load("runtimes", runtime).module
        if not (hasattr(module, "SNIPPET") or hasattr(module, "SCRIPT")):
            raise UsageError(
                f"there is no file to give for {runtime}", code="E-RUNTIME-CHOICE", hint="see `compress list runtimes`"
            )
        app_folder.refuse_foreign(out / runtime)
    out_place.check_folder(out)
    splits = plan.load_data(recipe, store)
    files.refuse_other_classes(artifact, artifact.path, splits.report)
    job = plan.make(dataclasses.replace(recipe, teacher=(str(artifact.path),)), splits)
    names = artifact.class_names or splits.report.class_names
    artifact = dataclasses.replace(artifact, class_names=names)
    # samples of those that every file is compared on: their answers are known by then
    asked = artifact_steps.parity_set(job)
    chosen = golden_index(asked)
    done = []
    for runtime in runtimes:
        offer = runtime_files.offer(job, store, artifact, runtime)
        if offer.failure:
            done.append(Converted(offer=offer, folder=None))
            continue
        logits = artifact_steps.answers_step(job, store, offer.artifact, runtime, asked)[chosen]
        app_folder.write(
            out / runtime, artifact=offer.artifact, source=artifact, runtime=runtime,
            module=catalog.load("runtimes", runtime).module,
            version=bench.runtime_state(runtime)["version"], conversion=offer.conversion,
            gate=offer.gate, images=asked.images[chosen], logits=logits,
        )  # fmt: skip
        done.append(Converted(offer=offer, folder=out / runtime))
    return done
