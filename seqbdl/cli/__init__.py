"""The `seqbdl` command: `demo`, `optimize`, `surrogates`, `envs`."""
