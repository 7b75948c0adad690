"""The in-process engine on torch: one decoder whose weights the sampler and the learner share."""
