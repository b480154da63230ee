"""gptoss-native bench: one file per subcommand, imported when it is used."""

from __future__ import annotations

#: as cli.COMMANDS
COMMANDS = {
    "ops": "time each op beside the limits of this machine",
    "decode": "tokens a second of a whole model, by batch and context",
    "prefill": "tokens a second of a whole model's prompts, by length",
    "growth": "how cost grows with context, batch, experts, threads and prompt",
    "serve": "what HTTP adds to the bare engine",
    "startup": "the time line from exec to the first token",
}
DESCRIPTION = "Measure kernels, whole models, the server and the start, each beside its limit."
EPILOG = "docs/benchmarks.md says what the figures mean. Try: gptoss-native bench ops --rows 1 8"
