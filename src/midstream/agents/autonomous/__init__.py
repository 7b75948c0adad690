"""The `autonomous` flow, also named `autogpt`: an agent that works towards a goal on a task list of its own."""
