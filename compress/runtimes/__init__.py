"""One file per runtime. Each is stand-alone, so that `worker.py` and one of these can be copied to another machine.

`unavailable() -> str`, `version() -> str`, `open_session(path, threads)`, `run(session, inputs) -> logits`,
`effective(session) -> dict` and the facts REQUIRES, FORMAT and TOLERANCE. An adapter raises RuntimeError when the
runtime, not the file, is to blame; any other error while opening counts against the file. `effective` may hold
`fixed_batch`, the only batch size that the model takes. Where the work is done in another process or on a GPU, the
adapter takes the time itself: `timed(session, inputs) -> (ns, ns of it that copies to and from the device took)`.
One that compiles when it loads may declare START_ALLOWANCE_S, the seconds that it is given for that.
"""
