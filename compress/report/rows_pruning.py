"""What pruning saw: how much accuracy hangs on each layer, and how many of its channels went."""

from typing import Any

from compress.report import format as fmt


def pruned_stage(document: dict[str, Any]) -> dict[str, Any] | None:
    return next((s for s in document["stages"] if (s.get("pruning") or [{}])[0].get("sensitivity")), None)


def removed(stage: dict[str, Any]) -> dict[str, float]:
    """Layer → part of its channels that went over all steps, in the order of the layers."""
    # the last step that names a layer counts: one that has become too narrow is not among those that follow
    kept = {family["layers"][0]: family["kept"] for cut in stage["pruning"] for family in cut["families"]}
    first = {family["layers"][0]: family["channels"] for family in stage["pruning"][0]["families"]}
    return {layer.removeprefix("body."): 1 - kept[layer] / channels for layer, channels in first.items()}


def known_families(facts: dict[str, Any], gone: dict[str, float]) -> list[dict[str, Any]]:
    """Those that were masked in each part, and of which it is known what was removed."""
    shares = len(facts["shares"])
    known = [each for each in facts["families"] if each["layer"] in gone and len(each["correct"]) == shares]
    return known if shares else []


def in_words(stage: dict[str, Any]) -> list[str]:
    """One sentence a layer, the most sensitive first."""
    facts, gone = stage["pruning"][0]["sensitivity"], removed(stage)
    families = known_families(facts, gone)
    middle = len(facts["shares"]) // 2
    return [
        f"{family['layer']}: {fmt.percent(family['correct'][middle] / facts['images'])} with "
        f"{facts['shares'][middle]:.0%} masked, {gone[family['layer']]:.0%} removed"
        for family in sorted(families, key=lambda family: family["correct"][middle])
    ]


def around(document: dict[str, Any]) -> list[str]:
    """The whole network beside those with something masked, and how many layers stayed whole, where some did."""
    stage = pruned_stage(document)
    if stage is None:
        return []
    whole, stays = stage["pruning"][0]["sensitivity"], stage["pruning"][0]["stays"]
    kept = [f"{len(stays)} layers keep their widths, since a removal cannot be followed there"] if stays else []
    return [f"all channels: {fmt.percent(whole['correct'] / whole['images'])} of {fmt.count(whole['images'])} images",
            *kept]  # fmt: skip


def lines(document: dict[str, Any], most: int = 5) -> list[str]:
    """The most sensitive layers for the Markdown report, and what stayed whole."""
    stage = pruned_stage(document)
    if stage is None:
        return []
    whole, *kept = around(document)
    return [whole, *in_words(stage)[:most], *kept]
