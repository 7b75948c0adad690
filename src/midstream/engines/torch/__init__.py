"""The in-process torch engine: sampler and learner share one decoder's weights."""
