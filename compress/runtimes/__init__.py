"""One file per runtime. Each is stand-alone, so that `worker.py` and one of these can be copied to another machine.

`unavailable() -> str`, `version() -> str`, `open_session(path, threads)`, `run(session, inputs) -> logits`,
`effective(session) -> dict` and the facts REQUIRES, FORMAT and TOLERANCE. An adapter raises RuntimeError when the
runtime, not the file, is to blame; any other error while opening counts against the file. `effective` holds what was
read back, `intra_op_threads` among it, which must be what was asked for; where the runtime does not tell it,
`asked_threads`. It may hold `fixed_batch`, the only batch size that the model takes. Where the work is done in another
process or on a GPU, the adapter takes the time itself: `timed(session, inputs) -> (ns, ns of it that copies to and from
the device took)`. One that rounds int8 files by rules of its own, not by those that the file holds, says
QUANTIZES_ITSELF = True: its answers are compared with the file's network in float. One that compiles when it loads may
declare START_ALLOWANCE_S, the seconds that it is given for that. One that can do without its arena of memory opens a
session so by `open_without_arena(path, threads)`, for what it holds then. One whose converter may live in an
environment of its own says which: `kit() -> Path | None`. One that may leave nodes to the CPU proves where they run:
`placement(path, threads, inputs) -> {provider: nodes}`, with those of the CPU under `CPUExecutionProvider`; the first
round asks when all is timed.

A runtime that has a benchmark program of its own for Android names it in NATIVE, for `--on adb:` (`phone.py`): `tool`,
its file's name; `source`, where it comes from; `note`, what its numbers are not. Then it has
`native_words(model, shape, threads, warmup, runs, result) -> list[str]`, the program's arguments: the paths there of
the model (a file, or the folder of its files) and of a file that may be written, which is read back behind what the
program says; `shape` is (channels, height, width). And `native_facts(said, warmup) -> dict` of its words, in ns, either
`samples_ns` of single inferences, or `n` with `mean_ns`, `min_ns`, `max_ns` and, where it tells it, `median_ns`; beside
that `load_ns`, `first_inference_ns`, `warmup_ns` (single ones), `warmup_runs`, `peak_rss_bytes`, and `rounding_ns`, by
how much its digits may be off. What it does not tell is left out. ValueError where its words tell no time.
"""
