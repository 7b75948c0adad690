"""The HTTP endpoint: any agent that speaks OpenAI's or Anthropic's API becomes recorded trajectories."""
