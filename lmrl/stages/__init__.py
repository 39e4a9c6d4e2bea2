"""The stages of RLHF, one verb each; every stage reads and writes a run folder."""
